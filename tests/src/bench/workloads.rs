//! The loads under which overhead is measured. Each stands ready all the time and works again and again.
//!
//! Placement: every load keeps all the given CPUs busy, so that whatever a tracer needs is taken from it. All
//! processes and threads of a load are pinned: where the scheduler puts them would be the largest noise of all.

use super::loads::{Load, Made};
use super::python;
use super::tracers::{Variant, cgroup_cpu_seconds};
use crate::TestCgroup;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// Bytes of a request's body: an image, as `serve.py` wants it.
const IMAGE: &str = "3072";
/// Pairs of threads on each CPU.
const PAIRS: &str = "2";
/// Messages that one loop of hackbench's one group passes on: 20 senders, 20 receivers.
const MESSAGES: u64 = 20 * 20;
/// hackbench's loops before it is known how long one takes.
const TRIED_LOOPS: u64 = 500;

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// ONNX Runtime serves a model over HTTP.
    Serving,
    /// The same, measured by what the machine can do at that very moment.
    Yardstick,
    /// hackbench.
    Hackbench,
    /// Bytes handed to and fro over pipes.
    Switches,
    /// Driver calls in a loop.
    Calls,
}

impl Workload {
    /// All of them.
    pub const ALL: [Workload; 5] = [
        Workload::Serving,
        Workload::Yardstick,
        Workload::Hackbench,
        Workload::Switches,
        Workload::Calls,
    ];

    /// What is measured in the same blocks: a tracer is started for all of a group at once.
    pub const GROUPS: &[&[Workload]] = &[
        &[Workload::Serving],
        &[Workload::Yardstick],
        &[Workload::Hackbench, Workload::Switches, Workload::Calls],
    ];

    /// Its part of the whole time, in comparison with the others': the harder its cost is to see, the larger.
    pub fn share(self) -> f64 {
        match self {
            Workload::Serving | Workload::Yardstick => 4.5,
            Workload::Hackbench | Workload::Switches | Workload::Calls => 1.0,
        }
    }

    /// Length of its slices in comparison with serving's.
    pub fn length(self) -> f64 {
        match self {
            Workload::Serving => 1.0,
            Workload::Yardstick | Workload::Hackbench | Workload::Switches | Workload::Calls => 0.5,
        }
    }

    /// How many of a cycle's blocks are that variant's. What is to be told from nothing needs many.
    pub fn weight(self, variant: Variant) -> usize {
        match (self, variant) {
            (Workload::Serving | Workload::Yardstick, Variant::Palisade) => 4,
            (Workload::Serving | Workload::Yardstick, Variant::Again) => 2,
            (Workload::Serving | Workload::Yardstick, Variant::Burn) => 1,
            (_, Variant::Burn) => 0,
            _ => 1,
        }
    }

    /// As on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Serving => "serving",
            Workload::Yardstick => "yardstick",
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
            Workload::Yardstick => {
                "the same server, which works for itself before each answer; requests by what they cost in this work"
            }
            Workload::Hackbench => {
                "hackbench over pipes, one of 40 processes on each CPU; messages (it tells no latency)"
            }
            Workload::Switches => {
                "2 pairs of threads on each CPU that hand a byte to and fro; round trips"
            }
            Workload::Calls => {
                "one process a CPU that asks /dev/ptmx for its window size without a pause; calls"
            }
        }
    }
}

/// A load that is ready to run.
#[derive(Debug)]
pub struct Prepared {
    workload: Workload,
    cpus: Vec<usize>,
    loads: Vec<Load>,
    servers: Vec<Server>,
    /// hackbench: loops that take about a second on one CPU.
    loops: f64,
    /// Dropped last: it can be removed when its processes are gone.
    cgroup: Arc<TestCgroup>,
}

#[derive(Debug)]
struct Server {
    port: String,
    process: crate::Ward,
}

impl Prepared {
    /// Starts what is to stand ready. An error says why the load cannot be run here.
    pub fn new(workload: Workload, cpus: &[usize]) -> Result<Self> {
        let mut this = Self {
            workload,
            cpus: cpus.to_vec(),
            loads: Vec::new(),
            servers: Vec::new(),
            loops: 0.0,
            cgroup: Arc::new(TestCgroup::new(workload.name())?),
        };
        match workload {
            Workload::Serving | Workload::Yardstick => {
                let python = python::with_onnx_runtime()?;
                let model = python::model(&python)?;
                let mut words = vec!["requests".to_owned(), IMAGE.to_owned(), "1".to_owned()];
                for cpu in cpus {
                    let mut command = Command::new(&python);
                    command
                        .arg(python::scripts().join("serve.py"))
                        .arg(if workload == Workload::Serving {
                            "serve"
                        } else {
                            "yardstick"
                        })
                        .arg(&model)
                        .arg(cpu.to_string())
                        .stdin(Stdio::piped())
                        .stdout(Stdio::piped());
                    let server = server(&this.cgroup, command)?;
                    words.push(format!("{}@{cpu}", server.port));
                    this.servers.push(server);
                }
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                this.loads.push(Load::start(&this.cgroup, &words)?);
            }
            Workload::Hackbench => {
                // The second one counts: the first brought everything into memory.
                this.hackbench(TRIED_LOOPS)?;
                let found = this.hackbench(TRIED_LOOPS)?;
                this.loops = TRIED_LOOPS as f64 / found.seconds.max(1e-3);
            }
            Workload::Switches => this.each_cpu(&["switches", PAIRS, "1"])?,
            Workload::Calls => this.each_cpu(&["calls", "0", "1"])?,
        }
        Ok(this)
    }

    /// Runs it for about so long.
    pub fn run(&mut self, seconds: f64) -> Result<Made> {
        let made = match self.workload {
            Workload::Hackbench => self.hackbench(((self.loops * seconds) as u64).max(1))?,
            Workload::Serving | Workload::Yardstick | Workload::Switches | Workload::Calls => {
                together(&mut self.loads, seconds)?
            }
        };
        if made.made == 0 {
            bail!("{} made nothing", self.workload.name());
        }
        if self.workload == Workload::Yardstick && !made.yardsticks.is_measured() {
            bail!("the server does not say what a request took");
        }
        Ok(made)
    }

    /// Whether the control that burns is the servers' own doing here: what a request takes longer for others is not seen.
    pub fn burns_itself(&self) -> bool {
        self.workload == Workload::Yardstick
    }

    /// Has the servers take a hundredth longer for each request, or no longer.
    pub fn burn(&mut self, on: bool) -> Result<()> {
        use std::io::Write as _;
        for server in &mut self.servers {
            let say = server
                .process
                .0
                .stdin
                .as_mut()
                .context("no standard input")?;
            say.write_all(if on { b"spin\n" } else { b"rest\n" })?;
        }
        Ok(())
    }

    /// Which load it is.
    pub fn workload(&self) -> Workload {
        self.workload
    }

    /// Where it runs.
    pub fn cgroup(&self) -> Arc<TestCgroup> {
        Arc::clone(&self.cgroup)
    }

    /// CPU time of its processes so far, seconds.
    pub fn cpu_seconds(&self) -> f64 {
        cgroup_cpu_seconds(&self.cgroup).unwrap_or(0.0)
    }

    fn each_cpu(&mut self, words: &[&str]) -> Result<()> {
        for cpu in &self.cpus {
            let cpu = cpu.to_string();
            let mut words = words.to_vec();
            words.push(&cpu);
            self.loads.push(Load::start(&self.cgroup, &words)?);
        }
        Ok(())
    }

    /// One on each CPU, at the same time, of so many loops.
    fn hackbench(&self, loops: u64) -> Result<Made> {
        let start = |cpu: &usize| -> Result<Child> {
            let mut command = Command::new("taskset");
            command
                .args(["--cpu-list", &cpu.to_string(), "hackbench"])
                .args(["--pipe", "--groups", "1", "--loops", &loops.to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::piped());
            self.cgroup.enter(&mut command);
            command
                .spawn()
                .context("taskset (Debian: util-linux) cannot be started")
        };
        let running: Vec<Child> = self.cpus.iter().map(start).collect::<Result<_>>()?;
        let mut sum = Made::default();
        for child in running {
            let output = child.wait_with_output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            if !output.status.success() {
                bail!("hackbench (Debian: rt-tests): {}", output.status);
            }
            // Its own time leaves out the start and end of its processes.
            let time: f64 = text
                .lines()
                .find_map(|line| line.strip_prefix("Time:")?.trim().parse().ok())
                .with_context(|| format!("hackbench tells no time: {text:?}"))?;
            sum.made += loops * MESSAGES;
            sum.seconds += time / self.cpus.len() as f64;
        }
        Ok(sum)
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
        process,
    })
}

/// Lets loads work at the same time; the sum of what they made, and the latency of the slowest.
fn together(loads: &mut [Load], seconds: f64) -> Result<Made> {
    for load in &mut *loads {
        load.go_for(seconds)?;
    }
    let mut sum = Made::default();
    for load in loads {
        let made = load.made()?;
        sum.made += made.made;
        sum.seconds = sum.seconds.max(made.seconds);
        sum.p50_ns = sum.p50_ns.max(made.p50_ns);
        sum.p99_ns = sum.p99_ns.max(made.p99_ns);
        // One program asks all servers.
        sum.yardsticks = made.yardsticks;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_runs_with_every_load_but_the_burn_which_servers_alone_need() {
        for workload in Workload::ALL {
            for variant in Variant::ALL {
                let serving = matches!(workload, Workload::Serving | Workload::Yardstick);
                let runs = variant != Variant::Burn || serving;
                assert_eq!(
                    workload.weight(variant) > 0,
                    runs,
                    "{workload:?} {variant:?}"
                );
            }
            let groups = Workload::GROUPS
                .iter()
                .filter(|group| group.contains(&workload));
            assert_eq!(groups.count(), 1, "{workload:?}");
        }
    }
}
