//! Whose events count beside those of whole cgroups: who moves into one and out again, who executes
//! a watched program, who uses a watched device.
//!
//! Invariant: the programs are copies of the shell in a temporary folder of the test's own.

use crate::{
    cpu::{gate, open_gate, schedstat_at_rest},
    processes::{switches_at_rest, switches_told},
    support::*,
};
use nix::unistd::{Pid, pipe, read, write};
use palisade::sensors::{Scope, SensorOptions, WatchedProcesses};
use palisade_abi::{Kind, MAX_CGROUP_DEPTH, SampleCpu, SampleGpu, SampleReads, SampleSched, kind};
use palisade_core::WorkloadId;
use std::{
    collections::VecDeque,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

const MODEL: usize = 40_960;

#[test]
fn a_process_that_moves_is_counted_exactly_while_it_is_inside() {
    let Some(object) = object("a_process_that_moves_is_counted_exactly_while_it_is_inside") else {
        return;
    };
    let (inside, outside) = (Cgroup::new(), Cgroup::new());
    let nested = inside.below("nested");
    let (go_read, go) = pipe().expect("pipe");
    let (done, done_write) = pipe().expect("pipe");
    let calls = [100, 200, 300, 400, 500];
    let child = Child::new(move || {
        let device = ptmx();
        let mut code = 0;
        for calls in calls {
            if read(&go_read, &mut [0]) != Ok(1) {
                return 1;
            }
            code += (0..calls).map(|_| ask_window_size(&device)).sum::<i32>();
            if write(&done_write, &[1]) != Ok(1) {
                return 2;
            }
        }
        code
    });
    outside.take(child.pid);
    let watch = Watch::new(
        object,
        options(&[&inside], &[Kind::SampleGpu, Kind::GpuExit]),
    );
    child.start();
    for cgroup in [&outside, &inside, &outside, &nested, &outside] {
        cgroup.take(child.pid);
        assert_eq!(write(&go, &[1]), Ok(1));
        assert_eq!(read(&done, &mut [0]), Ok(1));
    }
    child.wait_done();
    let (inside_id, nested_id) = (inside.id(), nested.id());
    let seen = watch.stop();
    assert_eq!(child.finish(), 0);
    seen.assert_none_lost();
    let sampled = |workload: u64| -> u32 {
        seen.of(kind::SAMPLE_GPU)
            .filter(|record| record.header.workload == workload)
            .filter_map(|record| Some(record.get::<SampleGpu>()?.calls))
            .sum()
    };
    assert_eq!((sampled(inside_id), sampled(nested_id)), (200, 400));
    assert_eq!(seen.count(kind::GPU_EXIT), 600);
}

#[test]
fn a_workload_is_watched_however_deep_it_nests_its_cgroups_up_to_the_limit() {
    let name = "a_workload_is_watched_however_deep_it_nests_its_cgroups_up_to_the_limit";
    let Some(object) = object(name) else {
        return;
    };
    let root = Cgroup::new();
    // The deepest first: that is the order in which they are removed.
    let mut nest: VecDeque<Cgroup> = VecDeque::new();
    for _ in 0..MAX_CGROUP_DEPTH {
        let above = nest.front().unwrap_or(&root);
        let below = above.below("nested");
        nest.push_front(below);
    }
    let limit = MAX_CGROUP_DEPTH as usize;
    let depths = [(20, 100), (limit - 1, 200), (limit, 400)];
    let children = depths.map(|(depth, calls)| {
        let child = Child::new(move || {
            let device = ptmx();
            (0..calls).map(|_| ask_window_size(&device)).sum()
        });
        nest[limit - depth].take(child.pid);
        child
    });
    let ids = depths.map(|(depth, _)| nest[limit - depth].id());
    let watch = Watch::new(object, options(&[&root], &[Kind::SampleGpu]));
    for child in children {
        assert_eq!(child.run(), 0);
    }
    let seen = watch.stop();
    seen.assert_none_lost();
    let sampled = ids.map(|id| {
        let samples: Vec<SampleGpu> = seen.bodies_of(kind::SAMPLE_GPU, id);
        samples.iter().map(|sample| sample.calls).sum::<u32>()
    });
    assert_eq!(sampled, [100, 200, 0]);
}

#[test]
fn switches_out_of_scope_are_neither_counted_nor_lost() {
    const NAPS: u32 = 50;
    let Some(object) = object("switches_out_of_scope_are_neither_counted_nor_lost") else {
        return;
    };
    let (inside, outside) = (Cgroup::new(), Cgroup::new());
    let (gate, open) = gate();
    let (done, done_write) = pipe().expect("pipe");
    let child = Child::new(move || {
        loop {
            gate.pass();
            for _ in 0..NAPS {
                thread::sleep(Duration::from_micros(200));
            }
            if write(&done_write, &[1]) != Ok(1) {
                return 1;
            }
        }
    });
    inside.take(child.pid);
    let kinds = [Kind::SampleSched, Kind::SampleRunq, Kind::SampleCpu];
    let watch = Watch::new(object, options(&[&inside], &kinds));
    child.start();
    // What the kernel counts while the child naps and is back at the gate.
    let naps = || {
        let (before, times) = (switches_at_rest(child.pid), schedstat_at_rest(child.pid));
        open_gate(&open);
        assert_eq!(read(&done, &mut [0]), Ok(1));
        let (after, later) = (switches_at_rest(child.pid), schedstat_at_rest(child.pid));
        let [on, _, turns] = [0, 1, 2].map(|i| later[i] - times[i]);
        (after.0 - before.0, after.1 - before.1, on, turns)
    };
    let mut watched = Vec::new();
    naps(); // until it has a switch in view
    watch.settle();
    let skip = watch.so_far();
    for _ in 0..3 {
        watched.push(naps());
        // Moved away and back.
        outside.take(child.pid);
        naps();
        inside.take(child.pid);
        watched.push(naps());
        // The scope goes elsewhere and comes back.
        watch.handle.set_scope(scope(&[&outside]));
        watch.settle();
        naps();
        watch.handle.set_scope(scope(&[&inside]));
        watch.settle();
    }
    let pid = child.pid;
    let mut seen = watch.stop();
    seen.assert_none_lost();
    seen.records.drain(..skip);
    let voluntary: u64 = watched.iter().map(|it| it.0).sum();
    let involuntary: u64 = watched.iter().map(|it| it.1).sum();
    // Six times as many naps, less those that were over before the thread was off its CPU: preempted on
    // its way to sleep, or late on a busy machine. The check is that the kernel counts the same.
    assert!(voluntary >= 3 * u64::from(NAPS), "{voluntary}");
    assert_eq!(switches_told(&seen, pid), (voluntary, involuntary));
    // The turn in which it came back, five times, is not told: it may have begun out of scope. Not every
    // turn is waited for: a thread that is preempted on its way to sleep has no wait noted.
    let waits = seen.bodies::<SampleSched>(kind::SAMPLE_SCHED);
    let waits: u64 = waits.iter().map(|it| u64::from(it.runq_waits)).sum();
    let turns: u64 = watched.iter().map(|it| it.3).sum();
    assert_eq!(waits + 5, turns);
    let on = seen.bodies::<SampleCpu>(kind::SAMPLE_CPU);
    let on: u64 = on.iter().map(|it| it.on_ns).sum();
    let most: u64 = watched.iter().map(|it| it.2).sum();
    assert!((1..most).contains(&on), "{on} of {most} ns");
}

/// Shells in a temporary folder, and a model to read.
struct Shells(tempfile::TempDir);

impl Shells {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(palisade_tests::binaries()).expect("temporary folder");
        fs::write(dir.path().join("m.gguf"), vec![1; MODEL]).expect("file");
        Self(dir)
    }

    /// A copy of the shell.
    fn copy(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::copy("/bin/sh", &path).expect("copy of the shell");
        path
    }

    /// A script that reads the model `times` times.
    fn script(&self, name: &str, times: u32) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{}", self.reading(times))).expect("file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
        path
    }

    /// Commands that read the model `times` times, each in a process of its own.
    fn reading(&self, times: u32) -> String {
        let model = self.0.path().join("m.gguf");
        let one = format!(
            "dd if={} of=/dev/null bs=4096 status=none\n",
            model.display()
        );
        one.repeat(times as usize)
    }

    fn run(&self, shell: &Path, times: u32) {
        let status = Command::new(shell)
            .args(["-c", &self.reading(times)])
            .status();
        assert!(status.expect("a shell").success());
    }
}

fn bytes_read(seen: &Seen) -> u64 {
    let samples: Vec<SampleReads> = seen.bodies(kind::SAMPLE_READS);
    samples.iter().map(|sample| sample.bytes).sum()
}

#[test]
fn whoever_executes_a_watched_program_is_watched_with_its_children() {
    let Some(object) = object("whoever_executes_a_watched_program_is_watched_with_its_children")
    else {
        return;
    };
    let shells = Shells::new();
    let (watched, other) = (shells.copy("guarded"), shells.copy("unguarded"));
    let link = shells.0.path().join("link");
    std::os::unix::fs::symlink(&watched, &link).expect("link");
    let script = shells.script("serve", 1);
    // This one is there before: it waits for a line.
    let mut early = Command::new(&watched)
        .args(["-c", &format!("read line\n{}", shells.reading(10))])
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    let processes = WatchedProcesses {
        executables: vec![watched.clone(), script.clone()],
        gpu_users: false,
    };
    let watch = Watch::new(
        object,
        SensorOptions {
            scope: Scope::CgroupsAnd(Vec::new(), processes),
            ..options(&[], &[Kind::SampleReads, Kind::Exec])
        },
    );
    shells.run(&other, 1000 / 100);
    shells.run(&watched, 100);
    shells.run(&link, 30);
    assert!(Command::new(&script).status().expect("a script").success());
    let mut line = early.stdin.take().expect("piped");
    line.write_all(b"go\n").expect("written");
    assert!(early.wait().expect("a shell").success());
    // By default nobody is watched any more.
    watch.settle();
    watch.handle.set_scope(Scope::Cgroups(Vec::new()));
    watch.settle();
    shells.run(&watched, 5);
    let seen = watch.stop();
    seen.assert_none_lost();
    assert_eq!(bytes_read(&seen), (100 + 30 + 1 + 10) * MODEL as u64);
    // The three shells that came later and whatever all of them executed.
    assert_eq!(seen.count(kind::EXEC), 3 + 100 + 30 + 1 + 10);
}

#[test]
fn whoever_uses_a_watched_device_is_watched_from_then_on() {
    const CALLS: u32 = 50;
    let Some(object) = object("whoever_uses_a_watched_device_is_watched_from_then_on") else {
        return;
    };
    let shells = Shells::new();
    let model = shells.0.path().join("m.gguf");
    let read_model = || i32::from(fs::read(&model).is_err());
    // One has the device open before, one calls its driver, one does neither.
    let device = ptmx();
    let holder = Child::new(|| read_model() + i32::from(fs::metadata("/dev/ptmx").is_err()));
    drop(device);
    let caller = Child::new(|| {
        let before = read_model(); // not counted
        let device = ptmx();
        let calls: i32 = (0..CALLS).map(|_| ask_window_size(&device)).sum();
        before + calls + read_model() + read_model()
    });
    let neither = Child::new(read_model);
    let processes = WatchedProcesses {
        executables: Vec::new(),
        gpu_users: true,
    };
    let watch = Watch::new(
        object,
        SensorOptions {
            scope: Scope::CgroupsAnd(vec![WorkloadId(u64::MAX)], processes),
            ..options(&[], &[Kind::SampleReads, Kind::GpuExit])
        },
    );
    let pids: Vec<Pid> = [&holder, &caller, &neither].map(|child| child.pid).into();
    for child in [holder, caller, neither] {
        assert_eq!(child.run(), 0);
    }
    let seen = watch.stop();
    // Others on this host may use the device as well.
    let bytes = |pid: Pid| -> u64 {
        seen.of(kind::SAMPLE_READS)
            .filter(|record| record.header.pid == pid.as_raw() as u32)
            .filter_map(|record| Some(record.get::<SampleReads>()?.bytes))
            .sum()
    };
    let model = MODEL as u64;
    let counted: Vec<u64> = pids.iter().map(|pid| bytes(*pid)).collect();
    assert_eq!(counted, [model, 2 * model, 0]);
    let calls = seen
        .of(kind::GPU_EXIT)
        .filter(|record| record.header.pid == pids[1].as_raw() as u32);
    assert_eq!(calls.count(), CALLS as usize);
}
