//! The loads under which overhead is measured. Each is ready before the first run and runs again and again.
//!
//! Placement: every load keeps all the given CPUs busy, so that whatever a tracer needs is taken from it; the
//! processes that can be pinned are, one to a CPU; the client of the server, hackbench and the tracers are not.

use super::loads::{Load, Made};
use super::python;
use super::tracers::cgroup_cpu_seconds;
use crate::TestCgroup;
use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Bytes of a request's body: an image, as `serve.py` wants it.
const IMAGE: &str = "3072";
/// Pairs of threads on each CPU.
const PAIRS: &str = "2";
/// hackbench: groups of 20 senders and 20 receivers.
const GROUPS: u64 = 2;
/// Messages that one loop of one group passes on.
const MESSAGES: u64 = 20 * 20;

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Workload {
    /// ONNX Runtime serves a model over HTTP.
    Serving,
    /// hackbench.
    Hackbench,
    /// Bytes handed to and fro over pipes.
    Switches,
    /// Driver calls in a loop.
    Calls,
}

impl Workload {
    /// All of them.
    pub const ALL: [Workload; 4] = [
        Workload::Serving,
        Workload::Hackbench,
        Workload::Switches,
        Workload::Calls,
    ];

    /// As on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Serving => "serving",
            Workload::Hackbench => "hackbench",
            Workload::Switches => "switches",
            Workload::Calls => "calls",
        }
    }

    /// What it is, for people.
    pub fn what(self) -> &'static str {
        match self {
            Workload::Serving => {
                "ONNX Runtime on the CPU behind HTTP on loopback, one server a CPU; requests"
            }
            Workload::Hackbench => {
                "hackbench over pipes, 2 groups of 40 processes; messages (it tells no latency)"
            }
            Workload::Switches => {
                "2 pairs of threads on each CPU that hand a byte to and fro; round trips"
            }
            Workload::Calls => {
                "one process a CPU that asks /dev/ptmx for its window size without a pause; calls"
            }
        }
    }

    /// Its part of the seconds given for a run of serving: it needs fewer for as small an error.
    pub fn share(self) -> f64 {
        match self {
            Workload::Serving => 1.0,
            Workload::Hackbench | Workload::Switches | Workload::Calls => 0.5,
        }
    }
}

/// A load that is ready to run.
#[derive(Debug)]
pub struct Prepared {
    workload: Workload,
    cpus: Vec<usize>,
    servers: Vec<Server>,
    /// hackbench: loops that take about a second.
    loops: f64,
    /// Dropped last: it can be removed when its processes are gone.
    cgroup: TestCgroup,
}

#[derive(Debug)]
struct Server {
    port: String,
    _process: crate::Ward,
}

impl Prepared {
    /// Starts what is to stand ready. An error says why the load cannot be run here.
    pub fn new(workload: Workload, cpus: &[usize]) -> Result<Self> {
        let mut this = Self {
            workload,
            cpus: cpus.to_vec(),
            servers: Vec::new(),
            loops: 0.0,
            cgroup: TestCgroup::new(workload.name())?,
        };
        match workload {
            Workload::Serving => {
                let python = python::with_onnx_runtime()?;
                let model = python::model(&python)?;
                for cpu in cpus {
                    let mut command = Command::new(&python);
                    command
                        .arg(python::scripts().join("serve.py"))
                        .arg("serve")
                        .arg(&model)
                        .arg(cpu.to_string())
                        .stdin(Stdio::piped())
                        .stdout(Stdio::piped());
                    this.servers.push(server(&this.cgroup, command)?);
                }
            }
            Workload::Hackbench => {
                // The second one counts: the first brought everything into memory.
                this.loops = 100.0;
                this.hackbench(1.0)?;
                let found = this.hackbench(1.0)?;
                this.loops = 100.0 / found.seconds.max(1e-3);
            }
            Workload::Switches | Workload::Calls => {}
        }
        Ok(this)
    }

    /// Runs it for about so long.
    pub fn run(&self, seconds: f64) -> Result<Made> {
        let seconds = seconds * self.workload.share();
        let time = seconds.to_string();
        let made = match self.workload {
            Workload::Serving => {
                let ports = self.servers.iter().map(|server| server.port.as_str());
                let mut words = vec!["requests", IMAGE, time.as_str()];
                words.extend(ports);
                let load = Load::start(&self.cgroup, &words)?;
                together(vec![load])?
            }
            Workload::Hackbench => self.hackbench(seconds)?,
            Workload::Switches => together(self.each_cpu(&["switches", PAIRS, &time])?)?,
            Workload::Calls => together(self.each_cpu(&["calls", "0", &time])?)?,
        };
        if made.made == 0 {
            bail!("{} made nothing", self.workload.name());
        }
        Ok(made)
    }

    /// CPU time of its processes so far, seconds.
    pub fn cpu_seconds(&self) -> f64 {
        cgroup_cpu_seconds(&self.cgroup).unwrap_or(0.0)
    }

    fn each_cpu(&self, words: &[&str]) -> Result<Vec<Load>> {
        let start = |cpu: &usize| {
            let cpu = cpu.to_string();
            let mut words = words.to_vec();
            words.push(&cpu);
            Load::start(&self.cgroup, &words)
        };
        self.cpus.iter().map(start).collect()
    }

    fn hackbench(&self, seconds: f64) -> Result<Made> {
        let loops = ((self.loops * seconds) as u64).max(1);
        let mut command = Command::new("hackbench");
        command
            .args(["--pipe", "--groups", &GROUPS.to_string(), "--loops"])
            .arg(loops.to_string())
            .stdin(Stdio::null());
        self.cgroup.enter(&mut command);
        let start = Instant::now();
        let output = command
            .output()
            .context("hackbench (Debian: rt-tests) cannot be started")?;
        let whole = start.elapsed().as_secs_f64();
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("hackbench: {}", output.status);
        }
        // Its own time leaves out the start and end of its processes.
        let own = text
            .lines()
            .find_map(|line| line.strip_prefix("Time:")?.trim().parse().ok());
        Ok(Made {
            made: loops * GROUPS * MESSAGES,
            seconds: own.unwrap_or(whole),
            ..Made::default()
        })
    }
}

fn server(cgroup: &TestCgroup, mut command: Command) -> Result<Server> {
    use std::io::BufRead as _;
    cgroup.enter(&mut command);
    let mut process = crate::Ward::start(&mut command)?;
    let out = process.0.stdout.take().context("no standard output")?;
    let mut line = String::new();
    std::io::BufReader::new(out).read_line(&mut line)?;
    let port = line
        .trim()
        .strip_prefix("ready ")
        .with_context(|| format!("the model server says {line:?}"))?;
    Ok(Server {
        port: port.to_owned(),
        _process: process,
    })
}

/// Lets loads work at the same time; the sum of what they made, and the latency of the slowest.
fn together(mut loads: Vec<Load>) -> Result<Made> {
    for load in &mut loads {
        load.go()?;
    }
    let mut sum = Made::default();
    for load in &mut loads {
        let made = load.made()?;
        sum.made += made.made;
        sum.seconds = sum.seconds.max(made.seconds);
        sum.p50_ns = sum.p50_ns.max(made.p50_ns);
        sum.p99_ns = sum.p99_ns.max(made.p99_ns);
    }
    loads.into_iter().try_for_each(Load::finish)?;
    Ok(sum)
}
