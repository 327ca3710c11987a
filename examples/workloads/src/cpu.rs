//! Burning processor time, in amounts of CPU time rather than of wall time.
//!
//! Amounts of CPU time make the loads the same on every machine, and a throttled load slower
//! rather than smaller.

use anyhow::{Context, Result};
use clap::Args;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Rounds of arithmetic between two looks at the clock: some 10–20 µs.
const ROUNDS: u32 = 20_000;

/// When a load ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End(Option<Instant>);

impl End {
    /// After so many milliseconds; `None`: never.
    pub(crate) fn after(ms: Option<u64>) -> Self {
        End(ms.map(|ms| Instant::now() + Duration::from_millis(ms)))
    }

    /// It is time to end.
    pub(crate) fn reached(self) -> bool {
        self.0.is_some_and(|end| Instant::now() >= end)
    }

    /// Sleeps for the time given, or until the end.
    pub(crate) fn sleep(self, time: Duration) {
        let left = self.0.map_or(time, |end| {
            end.saturating_duration_since(Instant::now()).min(time)
        });
        std::thread::sleep(left);
    }
}

/// Uses up `time` of this thread's CPU time.
pub(crate) fn burn(time: Duration, end: End) {
    let goal = thread_cpu_time() + time;
    while thread_cpu_time() < goal && !end.reached() {
        spin();
    }
}

/// Burns until the end.
pub(crate) fn burn_until(end: End) {
    while !end.reached() {
        spin();
    }
}

#[derive(Args, Debug)]
pub(crate) struct HopArgs {
    /// CPU time between two moves, milliseconds
    #[arg(long, default_value_t = 5)]
    every_ms: u64,
}

/// Burns on one of its CPUs after the other until the end.
pub(crate) fn run_hop(args: &HopArgs, end: End) -> Result<()> {
    let myself = Pid::from_raw(0);
    let allowed = sched_getaffinity(myself).context("sched_getaffinity")?;
    let cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true));
    for cpu in cpus.collect::<Vec<_>>().into_iter().cycle() {
        if end.reached() {
            break;
        }
        let mut one = CpuSet::new();
        one.set(cpu).context("a CPU out of range")?;
        sched_setaffinity(myself, &one).with_context(|| format!("moving to CPU {cpu}"))?;
        burn(Duration::from_millis(args.every_ms), end);
    }
    Ok(())
}

/// Yields until the end.
pub(crate) fn yield_until(end: End) {
    while !end.reached() {
        for _ in 0..64 {
            std::thread::yield_now();
        }
    }
}

fn spin() {
    let mut x = 0x9e37_79b9_u32;
    for round in 0..ROUNDS {
        x = black_box(x.rotate_left(5) ^ round);
    }
    black_box(x);
}

fn thread_cpu_time() -> Duration {
    // The clock exists on every Linux; were it missing, no time would pass and `end` still ends it.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map(Duration::from)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burning_uses_cpu_time_not_wall_time() {
        let before = thread_cpu_time();
        burn(Duration::from_millis(20), End::after(None));
        assert!(thread_cpu_time() >= before + Duration::from_millis(20));
    }

    #[test]
    fn an_end_that_is_reached_stops_a_burn() {
        burn(Duration::from_hours(1), End::after(Some(1)));
    }
}
