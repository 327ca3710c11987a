#![allow(clippy::unwrap_used)]

mod ended_leader;
mod executed;
mod learning;
mod moving;
mod walking;

use super::*;
use palisade_abi::{Exec, Exit, Fork, Header, ModelFile, SampleSched};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A child that is killed and reaped also when the test fails.
struct Own(Child);

impl Own {
    fn sleeper() -> Self {
        let child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn();
        Self(child.unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.end();
    }
}

/// A cgroup of the id hierarchy that is removed also when the test fails.
struct OwnCgroup {
    path: String,
    dir: PathBuf,
    root: PathBuf,
}

impl OwnCgroup {
    /// `None`, having said why, where cgroups may not be made.
    fn new(layout: &Layout, test: &str) -> Option<Self> {
        let unique = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .subsec_nanos();
        let path = format!("/palisade-test-{}-{unique}", std::process::id());
        let dir = layout.id_dir(&path);
        if let Err(error) = std::fs::create_dir(&dir) {
            eprintln!("SKIPPED {test}: {}: {error}", dir.display());
            return None;
        }
        Some(Self {
            path,
            dir,
            root: layout.id_root.clone(),
        })
    }

    fn take(&self, pid: u32) {
        std::fs::write(self.dir.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn child(&self, name: &str) -> OwnCgroup {
        let dir = self.dir.join(name);
        std::fs::create_dir(&dir).unwrap();
        OwnCgroup {
            path: format!("{}/{name}", self.path),
            dir,
            root: self.root.clone(),
        }
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        // Nobody of ours may stay inside, or the directory cannot go.
        for pid in std::fs::read_to_string(self.dir.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
        {
            let _ = std::fs::write(self.root.join("cgroup.procs"), pid);
        }
        let _ = std::fs::remove_dir(&self.dir);
    }
}

fn layout(test: &str) -> Option<Layout> {
    Layout::detect()
        .inspect_err(|error| eprintln!("SKIPPED {test}: {error}"))
        .ok()
}

fn tables(layout: Layout) -> Tables {
    Tables::new(layout, Limits::default())
}

/// The process, with a start that is somewhere inside its clock tick, as a record would have it.
fn id_of(tables: &Tables, pid: u32) -> ProcessId {
    let ticks = Stat::read(pid).unwrap().start_ticks;
    ProcessId {
        pid,
        start_ns: tables.tick().nanos(ticks) + 1234,
    }
}

fn header(process: ProcessId, workload: u64, time_ns: u64) -> Header {
    Header {
        time_ns,
        workload,
        start_ns: process.start_ns,
        pid: process.pid,
        tid: process.pid,
        ..Header::default()
    }
}

fn exec(process: ProcessId, workload: u64, comm: &[u8]) -> Record {
    let mut name = [0; 16];
    name[..comm.len()].copy_from_slice(comm);
    let body = Exec {
        parent: std::process::id(),
        uid: 0,
        comm: name,
    };
    Record::new(header(process, workload, 1), body)
}

#[test]
fn scope_covers_whole_components() {
    let scope = ScopeRoots::Below(vec!["/ml".into(), "/a/b".into()]);
    for (cgroup, covered) in [
        ("/ml", true),
        ("/ml/x/y", true),
        ("/mlx", false),
        ("/", false),
        ("/a", false),
        ("/a/b", true),
        ("/a/bc", false),
    ] {
        assert_eq!(scope.covers(cgroup), covered, "{cgroup}");
    }
    assert!(ScopeRoots::All.covers("/x"));
    assert!(ScopeRoots::Below(vec!["/".into()]).covers("/x"));
    assert!(!ScopeRoots::Below(Vec::new()).covers("/"));
}

#[test]
fn a_process_seeded_from_proc_and_its_record_are_one_entry() {
    let Some(layout) = layout("a_process_seeded_from_proc_and_its_record_are_one_entry") else {
        return;
    };
    let tables = tables(layout);
    let child = Own::sleeper();
    tables.seed_from_proc().unwrap();
    let process = id_of(&tables, child.pid());
    let seeded = tables.process(process).unwrap();
    assert_eq!(seeded.parent.unwrap().pid, std::process::id());
    assert!(seeded.exe.unwrap().starts_with('/'));
    let known = tables.stats().processes;
    tables.observe(&[Record::new(header(process, 0, 5), SampleSched::default())]);
    tables.observe(&[exec(process, 0, b"renamed")]);
    assert_eq!(tables.stats().processes, known);
    let now = tables.process(process).unwrap();
    assert_eq!(now.comm, "renamed");
    assert_eq!(now.process, process);
    assert_eq!(now.workload, seeded.workload);
    assert_eq!(now.parent, seeded.parent);
    let other = ProcessId {
        start_ns: process.start_ns + 20_000_000,
        ..process
    };
    assert_eq!(tables.process(other), None);
}

#[test]
fn exec_takes_the_executable_only_from_the_process_that_is_meant() {
    let Some(layout) = layout("exec_takes_the_executable_only_from_the_process_that_is_meant")
    else {
        return;
    };
    let tables = tables(layout);
    let child = Own::sleeper();
    let process = id_of(&tables, child.pid());
    tables.observe(&[exec(process, 0, b"sleep")]);
    assert!(tables.process(process).unwrap().exe.is_some());
    let earlier = ProcessId {
        start_ns: 1,
        ..process
    };
    tables.observe(&[exec(earlier, 0, b"\xff\xfe")]);
    let info = tables.process(earlier).unwrap();
    assert_eq!(info.exe, None);
    assert_eq!(info.comm, "\u{fffd}\u{fffd}");
}

#[test]
fn a_forked_child_is_what_its_parent_is_until_it_ends_and_the_grace_is_over() {
    let Some(layout) = layout("a_forked_child_is_what_its_parent_is") else {
        return;
    };
    let tables = tables(layout);
    let parent_child = Own::sleeper();
    let parent = id_of(&tables, parent_child.pid());
    // A pid beyond the kernel's largest: it cannot exist.
    let child = ProcessId {
        pid: 1 << 30,
        start_ns: 77_000_000_000,
    };
    let fork = Fork {
        child: child.pid,
        child_start_ns: child.start_ns,
        ..Fork::default()
    };
    tables.observe(&[
        exec(parent, 0, b"p"),
        Record::new(header(parent, 0, 2), fork),
    ]);
    let info = tables.process(child).unwrap();
    assert_eq!(info.parent, Some(parent));
    assert_eq!(info.comm, "p");
    assert_eq!(info.exe, tables.process(parent).unwrap().exe);
    let grace = Limits::default().grace_ns;
    tables.observe(&[Record::new(header(child, 0, 100), Exit::default())]);
    assert_eq!(tables.process(child).unwrap().exited_ns, Some(100));
    tables.observe(&[Record::new(header(parent, 0, 99 + grace), Exit::default())]);
    assert!(tables.process(child).is_some());
    tables.observe(&[Record::new(header(parent, 0, 100 + grace), Exit::default())]);
    assert!(tables.process(child).is_none());
}

#[test]
fn tables_stay_bounded_under_a_fork_storm_and_garbage() {
    let Some(layout) = layout("tables_stay_bounded_under_a_fork_storm_and_garbage") else {
        return;
    };
    let limits = Limits {
        processes: 64,
        workloads: 8,
        files: 8,
        grace_ns: 1 << 60,
    };
    let tables = Tables::new(layout, limits);
    let parent = ProcessId {
        pid: 1 << 30,
        start_ns: 1,
    };
    for n in 0..2000_u32 {
        let fork = Fork {
            child: (1 << 30) + n,
            child_start_ns: u64::from(n) << 30,
            ..Fork::default()
        };
        tables.observe(&[Record::new(header(parent, 0, u64::from(n)), fork)]);
        let key = FileKey {
            inode: u64::from(n),
            device: 1,
            pad: 0,
        };
        tables.file_named(key, "m.gguf", 1 << 30, 0, 1);
    }
    // Any bytes are survived.
    for n in 0..2000_u64 {
        let mut record = Record::default();
        record.header.kind = (n % 20) as u16;
        record.header.pid = (n as u32).wrapping_mul(2_654_435_761);
        record.header.start_ns = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        record.header.time_ns = u64::MAX - n;
        record.body = [n.wrapping_mul(0xdead_beef); 3];
        tables.observe(&[record]);
    }
    let stats = tables.stats();
    assert!(stats.processes <= 64 && stats.files <= 8, "{stats:?}");
    assert!(
        stats.processes_evicted > 1000 && stats.files_evicted > 1000,
        "{stats:?}"
    );
}

#[test]
fn a_file_gets_its_whole_path_while_its_descriptor_lasts() {
    let Some(layout) = layout("a_file_gets_its_whole_path_while_its_descriptor_lasts") else {
        return;
    };
    let tables = tables(layout);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.gguf");
    std::fs::write(&path, b"four").unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let meta = file.metadata().unwrap();
    let key = FileKey {
        inode: meta.ino(),
        device: kernel_device(meta.dev()),
        pad: 0,
    };
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file) as u32;
    let pid = std::process::id();
    tables.file_named(key, "weights.gguf", pid, fd, 4);
    let whole = path.to_str().unwrap().to_owned();
    assert_eq!(tables.file_path(key.device, key.inode), Some(whole));
    assert!(tables.file(key.device, key.inode).unwrap().verified);
    // The descriptor is another file by now: only the name is known.
    let other = FileKey {
        inode: key.inode + 1,
        ..key
    };
    tables.file_named(other, "other.gguf", pid, fd, 9);
    assert_eq!(
        tables.file_path(other.device, other.inode),
        Some("other.gguf".into())
    );
    // The descriptor is gone: the path that was checked stays.
    tables.file_named(key, "weights.gguf", pid, 1 << 20, 5);
    let file = tables.file(key.device, key.inode).unwrap();
    assert!(file.verified && file.bytes == 5);
    assert_eq!(tables.file_path(1, 1), None);
    // A path that the kernel told whole needs no descriptor; of an end, nothing more is found without one.
    for (inode, told, verified) in [(1, "/srv/m.gguf", true), (2, "…/srv/m.gguf", false)] {
        let key = FileKey { inode, ..key };
        tables.file_named(key, told, pid, palisade_abi::NO_FD, 4);
        let file = tables.file(key.device, inode).unwrap();
        assert_eq!((file.path.as_str(), file.verified), (told, verified));
    }
    // Kernel dev_t packs 20 bits of minor below the major; stat's does not.
    assert_eq!(kernel_device(rustix::fs::makedev(259, 300)), 0x1030_012c);
    let open = ModelFile::default();
    tables.observe(&[Record::new(
        header(
            ProcessId {
                pid: 0,
                start_ns: 0,
            },
            0,
            0,
        ),
        open,
    )]);
}

#[test]
fn facts_of_a_process_are_those_of_its_cgroup_with_all_below() {
    let name = "facts_of_a_process_are_those_of_its_cgroup_with_all_below";
    let Some(layout) = layout(name) else { return };
    let Some(cgroup) = OwnCgroup::new(&layout, name) else {
        return;
    };
    let below = cgroup.child("below");
    let tables = tables(layout);
    let (mut first, second) = (Own::sleeper(), Own::sleeper());
    cgroup.take(first.pid());
    below.take(second.pid());
    let process = id_of(&tables, first.pid());
    tables.observe(&[exec(process, 0, b"sleep")]);
    let scope = ScopeRoots::Below(vec![cgroup.path.clone()]);

    let facts = tables.facts(&Target::Process(process), &scope);
    assert!(facts.alive, "{facts:?}");
    assert!(facts.watched);
    let id = tables.layout().workload_id(&cgroup.path).unwrap();
    assert_eq!(facts.workload, Some(id));
    assert_eq!(facts.cgroup.as_ref(), Some(&cgroup.path));
    let mut pids: Vec<u32> = facts
        .members
        .iter()
        .map(|member| member.process.pid)
        .collect();
    pids.sort_unstable();
    let mut expected = [first.pid(), second.pid()];
    expected.sort_unstable();
    assert_eq!(pids, expected);
    assert!(
        facts
            .members
            .iter()
            .all(|m| !m.kernel_thread && m.exe.contains('/'))
    );
    // The start is as exact as the record's.
    assert!(facts.members.iter().any(|member| member.process == process));

    let of_id = tables.facts(
        &Target::Workload(id),
        &ScopeRoots::Below(vec!["/elsewhere".into()]),
    );
    assert_eq!(of_id.members, facts.members);
    assert!(of_id.alive && !of_id.watched);
    assert_eq!(tables.workload(id).unwrap().cgroup, cgroup.path);
    let below_id = tables.layout().workload_id(&below.path).unwrap();
    assert_eq!(
        tables
            .facts(&Target::Workload(below_id), &scope)
            .members
            .len(),
        1
    );

    let other = ProcessId {
        start_ns: process.start_ns - 50_000_000,
        ..process
    };
    let facts = tables.facts(&Target::Process(other), &scope);
    assert!(!facts.alive && facts.members.is_empty());
    assert_eq!(
        facts.detail,
        format!("pid {} now belongs to a process started later", first.pid())
    );

    // A zombie is gone: nothing is left to act on.
    first.0.kill().unwrap();
    let zombie = loop {
        match Stat::read(first.pid()) {
            Ok(stat) if !stat.ended() => std::thread::yield_now(),
            _ => break tables.facts(&Target::Process(process), &scope),
        }
    };
    assert!(zombie.detail.contains("waits to be reaped"), "{zombie:?}");
    first.end();
    let gone = tables.facts(&Target::Process(process), &scope);
    assert_eq!(gone.detail, format!("pid {} has ended", first.pid()));

    drop(second);
    drop(below);
    drop(cgroup);
    let removed = tables.facts(&Target::Workload(id), &scope);
    assert!(!removed.alive);
    assert_eq!(removed.detail, format!("no such cgroup (id {})", id.0));
}

#[test]
fn a_workload_id_is_found_in_the_tree_and_a_wrong_one_is_not_searched_for_again() {
    let name = "a_workload_id_is_found_in_the_tree";
    let Some(layout) = layout(name) else { return };
    let Some(cgroup) = OwnCgroup::new(&layout, name) else {
        return;
    };
    let tables = tables(layout);
    let id = tables.layout().workload_id(&cgroup.path).unwrap();
    let child = Own::sleeper();
    let process = id_of(&tables, child.pid());
    // By a clock that stands still, so that no walk is followed by a rest.
    let now = std::time::Instant::now();
    // The process is elsewhere: the id must be found by itself.
    let nothing = |_| None;
    tables.observe_by(&[exec(process, id.0, b"x")], || now, nothing);
    assert_eq!(tables.workload(id).unwrap().cgroup, cgroup.path);
    assert_eq!(tables.process(process).unwrap().workload, Some(id));
    for _ in 0..5 {
        tables.observe_by(&[exec(process, u64::MAX, b"x")], || now, nothing);
    }
    assert_eq!(tables.stats().workloads_unresolved, 1);
    assert_eq!(tables.workload(WorkloadId(u64::MAX)), None);
}

#[test]
fn kernel_threads_and_the_first_process_are_told_as_such() {
    let name = "kernel_threads_and_the_first_process_are_told_as_such";
    let Some(layout) = layout(name) else { return };
    let root = layout.workload_id("/").unwrap();
    let tables = tables(layout);
    let facts = tables.facts(&Target::Workload(root), &ScopeRoots::All);
    if !facts.alive {
        // More than are looked at, or (in a container) than can be: refused, with the reason.
        let why = facts.detail;
        assert!(
            why.contains("too many") || why.contains("cannot be seen"),
            "{why}"
        );
        return;
    }
    assert!(facts.members.iter().any(|member| member.process.pid == 1));
    for member in facts.members.iter().filter(|member| member.kernel_thread) {
        assert!(member.exe.is_empty(), "{member:?}");
    }
}
