//! A storm of driver calls by two processes against the sensors and a policy: whatever was made is delivered or
//! counted as lost, for each workload.
//!
//! Invariants:
//! - The makers count by themselves; nothing of what they make is known from what is measured.
//! - They end only after everything was delivered, so that the only records lost are driver calls.

use super::loads::{Load, Made};
use super::watched::Watched;
use crate::{PATIENCE, TestCgroup, policy};
use anyhow::{Context, Result};
use palisade_abi::{
    LOSS_COUNTER_MAP, LOSS_HOOK_SKIPPED, LOSS_POLICY_QUEUE, LOSS_RING_BUFFER, LOSS_SOURCES,
    LOSS_STATE_MAP, kind,
};
use std::fmt;
use std::time::{Duration, Instant};

/// Processes that make events.
pub const MAKERS: usize = 2;

/// How hard it storms.
#[derive(Clone, Debug)]
pub struct Storm {
    /// Events a second of all makers together.
    pub per_second: u64,
    /// How long.
    pub seconds: u64,
    /// Size of the ring buffer, as in the configuration.
    pub ring: &'static str,
    /// Batches that may wait for the policy.
    pub queue: u32,
}

impl Default for Storm {
    fn default() -> Self {
        Self {
            per_second: 200_000,
            seconds: 30,
            ring: "4MiB",
            queue: 1024,
        }
    }
}

/// What became of one workload's events.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Its kernfs id.
    pub workload: u64,
    /// Made, as its maker counted.
    pub made: Made,
    /// Delivered to the tables and policies.
    pub delivered: u64,
    /// Told as lost, by [`LOSS_SOURCES`].
    pub lost: [u64; LOSS_SOURCES.len()],
}

impl Account {
    /// Told as lost, at whatever place.
    pub fn lost_in_all(&self) -> u64 {
        self.lost.iter().sum()
    }

    /// Whether nothing is missing and nothing is there twice.
    pub fn exact(&self) -> bool {
        self.delivered + self.lost_in_all() == self.made.made
    }
}

/// What the policy saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyAccount {
    /// Driver calls given to it.
    pub records: u64,
    /// Losses told to it.
    pub lost: u64,
}

/// What became of the storm.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Per workload.
    pub accounts: Vec<Account>,
    /// Of the policy behind its queue.
    pub policy: PolicyAccount,
    /// Program runs that the kernel skipped: it does not say whose. Each is up to one event of somebody, and an
    /// entry that is found by a later call is counted as lost a second time.
    pub skipped: u64,
    /// CPU time that this process (sensors, tables, policy) used, seconds.
    pub cpu_seconds: f64,
    /// From the first event to the last delivery, seconds.
    pub seconds: f64,
}

impl Outcome {
    /// Made by all.
    pub fn made(&self) -> u64 {
        self.accounts.iter().map(|account| account.made.made).sum()
    }

    /// Whether every account is exact, the policy's too. With skipped program runs, an account may differ by
    /// their number at most.
    pub fn exact(&self) -> bool {
        let told = self.policy.records + self.policy.lost;
        if self.skipped == 0 {
            return self.accounts.iter().all(Account::exact) && told == self.made();
        }
        let near = |found: u64, made: u64| found.abs_diff(made) <= self.skipped;
        near(told, self.made())
            && self
                .accounts
                .iter()
                .all(|account| near(account.delivered + account.lost_in_all(), account.made.made))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>20} {:>12} {:>12} {:>12} {:>10} {:>10}  exact",
            "workload", "made", "delivered", "ring", "state", "made/s"
        )?;
        for account in &self.accounts {
            writeln!(
                f,
                "{:>20} {:>12} {:>12} {:>12} {:>10} {:>10.0}  {}",
                account.workload,
                account.made.made,
                account.delivered,
                account.lost[LOSS_RING_BUFFER as usize],
                account.lost[LOSS_STATE_MAP as usize] + account.lost[LOSS_COUNTER_MAP as usize],
                account.made.rate(),
                if account.exact() { "yes" } else { "NO" }
            )?;
        }
        let told = self.policy.records + self.policy.lost;
        writeln!(
            f,
            "policy: {} seen + {} told as lost = {told} of {} made",
            self.policy.records,
            self.policy.lost,
            self.made()
        )?;
        write!(
            f,
            "programs skipped by the kernel: {}; CPU of sensors, tables and policy: {:.0} ns an event, {:.0} % of one CPU",
            self.skipped,
            self.cpu_seconds * 1e9 / (self.made() as f64).max(1.0),
            100.0 * self.cpu_seconds / self.seconds.max(1e-9)
        )
    }
}

/// Lets it storm.
pub fn run(storm: &Storm) -> Result<Outcome> {
    let cgroups = (0..MAKERS)
        .map(|_| TestCgroup::new("storm"))
        .collect::<Result<Vec<_>>>()?;
    let paths: Vec<&str> = cgroups.iter().map(TestCgroup::path).collect();
    let config = format!(
        "[watch]\ncgroups = {paths:?}\n[limits]\nring-buffer = {:?}\n[[devices]]\nname = \"ptmx\"\npath = \"/dev/ptmx\"\nslow = \"0s\"\n\
         [policies.tally]\npath = {:?}\n[policies.tally.limits]\nqueue = {}\n",
        storm.ring,
        policy("guests/tally"),
        storm.queue
    );
    let rate = (storm.per_second / MAKERS as u64).to_string();
    let seconds = storm.seconds.to_string();
    let mut makers = cgroups
        .iter()
        .map(|cgroup| Load::start(cgroup, &["calls", &rate, &seconds]))
        .collect::<Result<Vec<_>>>()?;
    let watched = Watched::start(&config, 0)?;
    watched.settle(PATIENCE)?;

    let (start, cpu) = (Instant::now(), cpu_seconds());
    for maker in &mut makers {
        maker.go()?;
    }
    let made = makers
        .iter_mut()
        .map(Load::made)
        .collect::<Result<Vec<_>>>()?;
    watched.settle(PATIENCE)?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu_seconds = cpu_seconds() - cpu;
    // A tick comes when a window was empty: the policy's last word is about everything.
    let policy = last_word(&watched)?;
    let counted = watched.counted();
    let accounts = cgroups
        .iter()
        .zip(made)
        .map(|(cgroup, made)| {
            let workload = cgroup.id();
            let mut lost = [0; LOSS_SOURCES.len()];
            for (source, count) in lost.iter_mut().enumerate() {
                *count = counted.lost_by(workload, source as u32);
            }
            Account {
                workload,
                made,
                delivered: counted.of(workload, kind::GPU_EXIT),
                lost,
            }
        })
        .collect();
    for maker in makers {
        maker.finish()?;
    }
    Ok(Outcome {
        accounts,
        policy,
        skipped: counted.lost_by(0, LOSS_HOOK_SKIPPED),
        cpu_seconds,
        seconds,
    })
}

/// The policy's report of an idle window after everything was delivered.
fn last_word(watched: &Watched) -> Result<PolicyAccount> {
    let before = watched.reports();
    let until = Instant::now() + PATIENCE;
    while watched.reports() < before + 2 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let [records, lost] = watched
        .last_report(["records", "lost"])
        .context("the policy never reported")?;
    Ok(PolicyAccount { records, lost })
}

/// CPU time of this process so far, seconds.
fn cpu_seconds() -> f64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(0.0, |time| {
        time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9
    })
}

/// Losses at a policy's queue stand for no workload: they are the policy's alone.
const _: () = assert!(LOSS_POLICY_QUEUE == 2);

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(made: u64, delivered: u64, ring: u64, policy: (u64, u64), skipped: u64) -> Outcome {
        let mut lost = [0; LOSS_SOURCES.len()];
        lost[LOSS_RING_BUFFER as usize] = ring;
        Outcome {
            accounts: vec![Account {
                workload: 7,
                made: Made {
                    made,
                    ..Made::default()
                },
                delivered,
                lost,
            }],
            policy: PolicyAccount {
                records: policy.0,
                lost: policy.1,
            },
            skipped,
            cpu_seconds: 1.0,
            seconds: 1.0,
        }
    }

    #[test]
    fn one_event_too_few_or_too_many_is_not_exact() {
        assert!(outcome(10, 7, 3, (6, 4), 0).exact());
        assert!(!outcome(10, 7, 2, (6, 4), 0).exact());
        assert!(!outcome(10, 8, 3, (6, 4), 0).exact());
        assert!(!outcome(10, 7, 3, (6, 3), 0).exact());
    }

    #[test]
    fn what_the_kernel_skipped_bounds_the_difference() {
        assert!(outcome(10, 7, 2, (6, 4), 1).exact());
        assert!(!outcome(10, 6, 2, (6, 4), 1).exact());
    }
}
