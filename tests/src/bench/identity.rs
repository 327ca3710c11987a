//! Short-lived processes against the process table: which are known when their first record is delivered.

use super::loads::{Load, Made};
use super::watched::{Execs, Watched};
use crate::{PATIENCE, TestCgroup};
use anyhow::Result;
use palisade::identity::Stats;
use palisade_abi::{Kind, kind};
use std::fmt;
use std::time::Duration;

/// What the tables knew.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Processes made, each of which executes one program.
    pub made: Made,
    /// Executions that were delivered.
    pub execs: Execs,
    /// Ends that were delivered.
    pub exits: u64,
    /// Told as lost.
    pub lost: u64,
    /// The tables right after.
    pub full: Stats,
    /// The most processes that the table held.
    pub most: usize,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |count: u64| 100.0 * count as f64 / (self.execs.all as f64).max(1.0);
        writeln!(
            f,
            "processes made: {} ({:.0} a second); executions delivered {}, ends {}, lost {}",
            self.made.made,
            self.made.rate(),
            self.execs.all,
            self.exits,
            self.lost
        )?;
        writeln!(
            f,
            "known when their execution was delivered: {:.2} % with name, parent and workload; {:.2} % with the path of \
             the executable too; {:.2} % unknown",
            share(self.execs.resolved),
            share(self.execs.with_path),
            share(self.execs.unknown)
        )?;
        write!(
            f,
            "process table: at most {} entries, {} now, {} dropped to make room; workloads {}, not found {}",
            self.most,
            self.full.processes,
            self.full.processes_evicted,
            self.full.workloads,
            self.full.workloads_unresolved
        )
    }
}

/// Starts so many processes a second for so long.
pub fn run(per_second: u64, seconds: u64) -> Result<Outcome> {
    let cgroup = TestCgroup::new("churn")?;
    let config = format!("[watch]\ncgroups = [{:?}]\n", cgroup.path());
    let mut churn = Load::start(
        &cgroup,
        &["churn", &per_second.to_string(), &seconds.to_string()],
    )?;
    let kinds = Kind::Exec.bit() | Kind::Exit.bit() | Kind::Fork.bit();
    let watched = Watched::start(&config, kinds)?;
    watched.settle(PATIENCE)?;
    churn.go()?;
    let mut most = 0;
    let look = |most: &mut usize| {
        *most = (*most).max(watched.tables.stats().processes);
        std::thread::sleep(Duration::from_millis(50));
    };
    let made = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| churn.made());
        while !waiting.is_finished() {
            look(&mut most);
        }
        waiting
            .join()
            .map_err(|_| anyhow::anyhow!("a thread failed"))?
    })?;
    watched.settle(PATIENCE)?;
    look(&mut most);
    let counted = watched.counted();
    let full = watched.tables.stats();
    churn.finish()?;
    Ok(Outcome {
        made,
        execs: counted.execs,
        exits: counted.of(cgroup.id(), kind::EXIT),
        lost: counted.lost.values().sum(),
        full,
        most,
    })
}
