//! Cgroups, children and effects for the live tests of `act`. Whatever is made here goes away on
//! drop, also when a test panics.
#![allow(clippy::unwrap_used)]

use palisade::act::{Executor, ExecutorOptions, Journal};
use palisade::identity::layout::{Flavour, Layout};
use palisade_core::{
    ActOutcome, Action, Effect, EffectId, Knob, Lease, LeaseId, ProcessId, Target, WorkloadId,
};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Generous bound for anything that has to come about.
pub const LONG: Duration = Duration::from_secs(20);

/// `None`, with a word on standard error, where the test cannot run.
pub fn layout_for(test: &str, needs: &[&str]) -> Option<Layout> {
    let skip = |why: &str| {
        eprintln!("SKIPPED {test}: {why}");
        None
    };
    if !rustix::process::geteuid().is_root() {
        return skip("needs root");
    }
    let layout = match Layout::detect() {
        Ok(layout) => layout,
        Err(error) => return skip(&error.to_string()),
    };
    for need in needs {
        let there = match *need {
            "unified" => layout.unified.is_some(),
            "cpu" => match layout.flavour {
                Flavour::V2 => fs::read_to_string(layout.id_root.join("cgroup.subtree_control"))
                    .is_ok_and(|text| text.split_whitespace().any(|c| c == "cpu")),
                Flavour::V1 | Flavour::Hybrid => true,
            },
            controller => layout.controllers.contains_key(controller),
        };
        if !there {
            return skip(&format!(
                "this host has no {need} hierarchy, or it is not enabled"
            ));
        }
    }
    Some(layout)
}

/// The v2 tree of a hybrid host as if it were the whole host, for freezing and killing.
pub fn v2_only(layout: &Layout) -> Layout {
    let unified = layout.unified.clone().unwrap();
    Layout {
        flavour: Flavour::V2,
        id_root: unified.clone(),
        controllers: std::collections::BTreeMap::new(),
        unified: Some(unified),
    }
}

/// One cgroup name, made in one or more hierarchies, with children in it.
pub struct Group {
    pub path: String,
    pub dirs: Vec<PathBuf>,
    children: Vec<(Child, ChildStdin)>,
}

impl Group {
    /// `keys`: controllers of v1, `""` for the v2 tree, `"id"` for the id hierarchy.
    pub fn new(layout: &Layout, keys: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = format!(
            "/palisade-test-{}-{}{}",
            std::process::id(),
            palisade::boot_clock::now_ns(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let mut group = Self {
            path: path.clone(),
            dirs: Vec::new(),
            children: Vec::new(),
        };
        for key in keys {
            let dir = match *key {
                "id" => layout.id_dir(&path),
                "" => layout.unified.as_ref().unwrap().join(&path[1..]),
                controller => layout.controllers[controller].join(&path[1..]),
            };
            fs::create_dir(&dir).unwrap();
            group.dirs.push(dir);
        }
        group
    }

    /// A cgroup below the first one; drop it first.
    pub fn child_group(&self, name: &str) -> Self {
        let dir = self.dirs[0].join(name);
        fs::create_dir(&dir).unwrap();
        Self {
            path: format!("{}/{name}", self.path),
            dirs: vec![dir],
            children: Vec::new(),
        }
    }

    /// Starts a shell script that begins once it is in the cgroup.
    pub fn run(&mut self, script: &str) -> u32 {
        let mut child = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("read start; {script}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        let mut stdin = child.stdin.take().unwrap();
        let moved = self
            .dirs
            .iter()
            .try_for_each(|dir| fs::write(dir.join("cgroup.procs"), pid.to_string()));
        let started = writeln!(stdin, "go");
        self.children.push((child, stdin));
        moved.unwrap();
        started.unwrap();
        pid
    }

    pub fn burn(&mut self) -> u32 {
        self.run("while :; do :; done")
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.children[0].0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dirs[0].join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name))
            .unwrap()
            .trim()
            .to_owned()
    }

    /// Quota and period, in one form for both versions.
    pub fn quota(&self) -> String {
        if self.file("cpu.max").exists() {
            self.read("cpu.max").replace("max ", "-1 ")
        } else {
            format!(
                "{} {}",
                self.read("cpu.cfs_quota_us"),
                self.read("cpu.cfs_period_us")
            )
        }
    }

    pub fn set_quota_us(&self, quota: u32) {
        let (file, text) = if self.file("cpu.max").exists() {
            ("cpu.max", format!("{quota} 100000"))
        } else {
            ("cpu.cfs_quota_us", quota.to_string())
        };
        fs::write(self.file(file), text).unwrap();
    }

    pub fn members(&self) -> Vec<u32> {
        fs::read_to_string(self.file("cgroup.procs"))
            .unwrap_or_default()
            .lines()
            .filter_map(|l| l.parse().ok())
            .collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for dir in &self.dirs {
            // Each file exists in one kind of hierarchy.
            let _ = put(&dir.join("freezer.state"), "THAWED");
            let _ = put(&dir.join("cgroup.freeze"), "0");
            let _ = put(&dir.join("cgroup.kill"), "1");
        }
        for (child, _) in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for dir in &self.dirs {
            let start = Instant::now();
            // Grandchildren on v1: ours, since nobody else knows the cgroup's name.
            while fs::remove_dir(dir).is_err() && dir.exists() && start.elapsed() < LONG {
                let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                for pid in text.lines().filter_map(|l| l.parse().ok()) {
                    if let Some(pid) = rustix::process::Pid::from_raw(pid)
                        && let Ok(fd) =
                            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
                    {
                        let _ =
                            rustix::process::pidfd_send_signal(&fd, rustix::process::Signal::KILL);
                    }
                }
                sleep(Duration::from_millis(5));
            }
        }
    }
}

fn put(path: &Path, text: &str) -> std::io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

/// An executor with a journal of its own.
pub fn executor(layout: &Layout, dir: &Path) -> Executor {
    let (journal, _) = Journal::open(dir).unwrap();
    Executor::new(layout.clone(), journal, ExecutorOptions::default())
}

pub fn lease(layout: &Layout, group: &Group, knob: Knob, value: u32) -> Lease {
    Lease {
        id: LeaseId(1),
        workload: layout.workload_id(&group.path).unwrap(),
        cgroup: group.path.clone(),
        knob,
        value,
        owners: vec!["test".to_owned()],
        until_ns: u64::MAX,
    }
}

pub fn contain(executor: &mut Executor, lease: &Lease) -> ActOutcome {
    let action = match lease.knob {
        Knob::CpuQuota => Action::CpuQuota(lease.value),
        Knob::CpuWeight => Action::CpuWeight(lease.value),
        Knob::Freeze => Action::Freeze,
    };
    act(
        executor,
        Target::Workload(lease.workload),
        Some(lease.workload),
        &lease.cgroup,
        action,
        Some(lease.clone()),
    )
}

pub fn act(
    executor: &mut Executor,
    target: Target,
    workload: Option<WorkloadId>,
    cgroup: &str,
    action: Action,
    lease: Option<Lease>,
) -> ActOutcome {
    executor
        .perform(&Effect::Act {
            id: EffectId(1),
            decision: 1,
            policy: "test".to_owned(),
            target,
            workload,
            cgroup: Some(cgroup.to_owned()),
            action,
            lease,
        })
        .unwrap()
}

pub fn undo(executor: &mut Executor, lease: &Lease) -> ActOutcome {
    executor
        .perform(&Effect::Undo {
            id: EffectId(2),
            lease: lease.clone(),
            why: "expired".to_owned(),
        })
        .unwrap()
}

pub fn observed(outcome: ActOutcome) -> String {
    match outcome {
        ActOutcome::Done { observed, .. } => observed,
        other => panic!("{other:?}"),
    }
}

pub fn failure(outcome: ActOutcome) -> String {
    match outcome {
        ActOutcome::Failed { error } => error,
        other => panic!("{other:?}"),
    }
}

/// CPU time of a process so far, ticks; `None` if it is gone.
pub fn cpu_ticks(pid: u32) -> Option<u64> {
    let fields = stat(pid)?;
    Some(fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap())
}

pub fn identity(pid: u32) -> ProcessId {
    let ticks: u64 = stat(pid).unwrap()[19].parse().unwrap();
    ProcessId {
        pid,
        start_ns: ticks * (1_000_000_000 / rustix::param::clock_ticks_per_second()),
    }
}

/// Fields of /proc/PID/stat from the third on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// How long it took until `check` held; panics after [`LONG`].
pub fn until(what: &str, mut check: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < LONG, "{what} did not come about");
        sleep(Duration::from_millis(1));
    }
    start.elapsed()
}

/// The stand-in for the agent, in a process group of its own.
pub struct StandIn {
    pub child: Child,
    pub stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    pub keeper: u32,
}

impl StandIn {
    pub fn start(dir: &Path, group: &Group, permille: u32, deadline_ms: i64, how: &str) -> Self {
        use std::os::unix::process::CommandExt;
        let mut child = Command::new(env!("CARGO_BIN_EXE_act-stand-in"))
            .arg("agent")
            .arg(dir)
            .arg(&group.path)
            .arg(permille.to_string())
            .arg(deadline_ms.to_string())
            .arg(how)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut stand_in = Self {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
            keeper: 0,
        };
        let line = stand_in.line();
        let keeper = line
            .strip_prefix("held ")
            .unwrap_or_else(|| panic!("{line}"));
        stand_in.keeper = keeper.parse().unwrap();
        stand_in
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub fn say(&mut self, word: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{word}").unwrap();
    }

    pub fn keeper_runs(&self) -> bool {
        stat(self.keeper).is_some_and(|fields| fields[0] != "Z")
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Without its agent the keeper ends by itself.
        let start = Instant::now();
        while self.keeper != 0 && self.keeper_runs() && start.elapsed() < LONG {
            sleep(Duration::from_millis(1));
        }
    }
}
