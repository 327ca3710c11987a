//! The variants whose overhead is compared: nothing, Palisade, and public tracers that do equivalent work.
//!
//! Invariants:
//! - A tracer runs in a cgroup of its own, unpinned, from before a slice to after it: programs loaded and attached, not
//!   a stopped process whose programs run on.
//! - All watch the whole host, and /dev/ptmx in the place of a GPU.

use super::loads::Load;
use super::python::scripts;
use crate::{Agent, PATIENCE, TestCgroup, Ward, policy};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// perf does not say when it has attached everything.
const PERF_WARM_UP: Duration = Duration::from_secs(1);
/// Part of every CPU that the control burns, in thousandths.
pub const BURN_PERMILLE: u32 = 10;
/// Longer than any slice: the control is ended before.
const BURN_SECONDS: f64 = 3600.0;
/// How long a tracer may take to end after SIGINT before it is killed.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// What runs beside a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Nothing, compared with nothing: the control in which nothing may be found.
    #[serde(rename = "none-again")]
    Again,
    /// A known part of every CPU: the control that must be found.
    Burn,
    /// `palisade run` with its stock policies, observing.
    Palisade,
    /// bpftrace doing the equivalent of that.
    Bpftrace,
    /// `perf trace` with a summary of the same system calls.
    Perf,
    /// `palisade run` with every signal on besides.
    PalisadeAll,
    /// bpftrace doing the equivalent of that.
    BpftraceAll,
    /// `perf record` of the same events.
    PerfAll,
}

impl Variant {
    /// All of them, the controls first.
    pub const ALL: [Variant; 8] = [
        Variant::Again,
        Variant::Burn,
        Variant::Palisade,
        Variant::Bpftrace,
        Variant::Perf,
        Variant::PalisadeAll,
        Variant::BpftraceAll,
        Variant::PerfAll,
    ];

    /// As on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Again => "none-again",
            Variant::Burn => "burn",
            Variant::Palisade => "palisade",
            Variant::Bpftrace => "bpftrace",
            Variant::Perf => "perf",
            Variant::PalisadeAll => "palisade-all",
            Variant::BpftraceAll => "bpftrace-all",
            Variant::PerfAll => "perf-all",
        }
    }

    /// What it is, for people.
    pub fn what(self) -> &'static str {
        match self {
            Variant::Again => "no tracing, compared with no tracing: what noise alone looks like",
            Variant::Burn => "a hundredth of every CPU used up: what must be found",
            Variant::Palisade => "palisade run, gpu-contention and reload-loop in observe mode",
            Variant::Bpftrace => "bpftrace tests/bench/default.bt: the same signals",
            Variant::Perf => "perf trace -s of the same system calls",
            Variant::PalisadeAll => "palisade run with a policy that subscribes to every signal",
            Variant::BpftraceAll => {
                "bpftrace tests/bench/all.bt: the same signals as far as tracepoints give them"
            }
            Variant::PerfAll => "perf record of the same tracepoints, written to nowhere",
        }
    }
}

/// Configuration of the agent that is measured.
pub fn configuration(all_signals: bool) -> String {
    use std::fmt::Write as _;
    let mut text =
        String::from("[watch]\nall = true\n[[devices]]\nname = \"ptmx\"\npath = \"/dev/ptmx\"\n");
    for name in ["gpu-contention", "reload-loop"] {
        let _ = write!(
            text,
            "[policies.{name}]\npath = {:?}\nmode = \"observe\"\npower = \"throttle\"\n",
            policy(name)
        );
    }
    if all_signals {
        let _ = write!(
            text,
            "[policies.everything]\npath = {:?}\n",
            policy("guests/everything")
        );
    }
    text
}

/// A running tracer.
#[derive(Debug)]
pub struct Tracer {
    running: Running,
    /// Removed after its processes ended.
    cgroup: TestCgroup,
}

#[derive(Debug)]
enum Running {
    Nothing,
    Burn(Vec<Load>),
    Agent(Agent),
    Tool(Ward),
}

impl Tracer {
    /// Starts it and waits until it traces. The control that burns does so on these CPUs and in the load's cgroup: one of
    /// its own would be given the CPU too late to use its part within a slice. An error says why it cannot be run here.
    pub fn start(variant: Variant, cpus: &[usize], load: &TestCgroup) -> Result<Self> {
        let cgroup = TestCgroup::new("tracer")?;
        let running = match variant {
            Variant::Again => Running::Nothing,
            Variant::Burn => burn(load, cpus)?,
            Variant::Palisade => agent(&cgroup, false)?,
            Variant::PalisadeAll => agent(&cgroup, true)?,
            Variant::Bpftrace => bpftrace(&cgroup, "default.bt")?,
            Variant::BpftraceAll => bpftrace(&cgroup, "all.bt")?,
            Variant::Perf => perf(&cgroup, &["trace", "-a", "-s", "-e", SYSCALLS])?,
            Variant::PerfAll => {
                let mut words = vec!["record", "-q", "-a", "-o", "-"];
                words.extend(EVENTS.iter().flat_map(|event| ["-e", event]));
                perf(&cgroup, &words)?
            }
        };
        Ok(Self { running, cgroup })
    }

    /// CPU time of its processes so far, seconds.
    pub fn cpu_seconds(&self) -> f64 {
        cgroup_cpu_seconds(&self.cgroup).unwrap_or(0.0)
    }

    /// Ends it in order.
    pub fn end(self) -> Result<()> {
        match self.running {
            Running::Nothing => Ok(()),
            // They work on: no word would reach them.
            Running::Burn(loads) => {
                drop(loads);
                Ok(())
            }
            Running::Agent(mut agent) => agent.end().map(drop),
            Running::Tool(mut ward) => {
                let pid = rustix::process::Pid::from_child(&ward.0);
                rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
                let until = Instant::now() + ENDS_WITHIN;
                while ward.0.try_wait()?.is_none() && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(())
            }
        }
    }
}

/// The system calls that the default policies look at.
const SYSCALLS: &str = "ioctl,mmap,open,openat,openat2,read,pread64,readv,preadv,preadv2,execve,clone,clone3,exit_group";
/// The tracepoints of all signals.
const EVENTS: &[&str] = &[
    "raw_syscalls:sys_enter",
    "raw_syscalls:sys_exit",
    "sched:sched_switch",
    "sched:sched_wakeup",
    "sched:sched_wakeup_new",
    "sched:sched_migrate_task",
    "sched:sched_process_exec",
    "sched:sched_process_fork",
    "sched:sched_process_exit",
    "exceptions:page_fault_user",
    "exceptions:page_fault_kernel",
    "sock:sock_send_length",
    "sock:sock_recv_length",
    "tcp:tcp_retransmit_skb",
    "vmscan:mm_vmscan_direct_reclaim_begin",
    "vmscan:mm_vmscan_direct_reclaim_end",
    "oom:mark_victim",
];

fn burn(cgroup: &TestCgroup, cpus: &[usize]) -> Result<Running> {
    let permille = BURN_PERMILLE.to_string();
    let start = |cpu: &usize| {
        let mut load = Load::start(cgroup, &["burn", &permille, "1", &cpu.to_string()])?;
        load.go_for(BURN_SECONDS)?;
        Ok(load)
    };
    Ok(Running::Burn(
        cpus.iter().map(start).collect::<Result<_>>()?,
    ))
}

fn agent(cgroup: &TestCgroup, all_signals: bool) -> Result<Running> {
    let agent = Agent::start(&configuration(all_signals))?;
    adopt(cgroup, agent.ward.pid())?;
    Ok(Running::Agent(agent))
}

/// Moves a process into a cgroup, with all its threads and children.
fn adopt(cgroup: &TestCgroup, pid: u32) -> Result<()> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    let children: String = threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .collect();
    let pids =
        std::iter::once(pid.to_string()).chain(children.split_whitespace().map(str::to_owned));
    for pid in pids {
        for dir in cgroup.dirs() {
            let file = dir.join("cgroup.procs");
            std::fs::write(&file, &pid)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    Ok(())
}

fn bpftrace(cgroup: &TestCgroup, script: &str) -> Result<Running> {
    let mut command = Command::new("bpftrace");
    command
        .arg(scripts().join(script))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    cgroup.enter(&mut command);
    let mut ward = Ward::start(&mut command)?;
    let errors = ward.0.stderr.take().map(read_all);
    let out = ward.0.stdout.take().context("no standard output")?;
    let (sender, ready) = std::sync::mpsc::channel();
    // Reads on until it ends: a full pipe would stop it.
    std::thread::spawn(move || {
        for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
            if line == b"ready" {
                let _ = sender.send(());
            }
        }
    });
    if ready.recv_timeout(PATIENCE).is_err() {
        drop(ward);
        let text = errors
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        bail!("{script} does not run here: {}", last_lines(&text));
    }
    Ok(Running::Tool(ward))
}

fn perf(cgroup: &TestCgroup, words: &[&str]) -> Result<Running> {
    let mut command = Command::new("perf");
    command
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    cgroup.enter(&mut command);
    let mut ward = Ward::start(&mut command)?;
    let errors = ward.0.stderr.take().map(read_all);
    std::thread::sleep(PERF_WARM_UP);
    if let Some(status) = ward.0.try_wait()? {
        let text = errors
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        bail!(
            "perf {} does not run here ({status}): {}",
            words[0],
            last_lines(&text)
        );
    }
    Ok(Running::Tool(ward))
}

fn read_all(from: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = BufReader::new(from).read_until(0, &mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}

/// CPU time of a cgroup so far, seconds, as the kernel counts it.
pub fn cgroup_cpu_seconds(cgroup: &TestCgroup) -> Option<f64> {
    cgroup.dirs().iter().find_map(|dir| {
        if let Ok(text) = std::fs::read_to_string(dir.join("cpuacct.usage")) {
            return Some(text.trim().parse::<f64>().ok()? / 1e9);
        }
        let text = std::fs::read_to_string(dir.join("cpu.stat")).ok()?;
        let usec = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))?;
        Some(usec.trim().parse::<f64>().ok()? / 1e6)
    })
}
