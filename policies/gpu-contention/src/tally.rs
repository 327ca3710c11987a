//! What one window of driver calls on one device class says. Pure but for the look-up of
//! executables' names; no history here.

use palisade_policy_sdk::abi::{Header, SampleGpu, SampleGpuCommand};
use palisade_policy_sdk::{BoundedMap, ProcessId, host};
use std::collections::BTreeMap;

/// Processes tallied per class and window, and their commands; over that, those seen least recently go.
const MAX_PROCESSES: usize = 1024;
const MAX_COMMANDS: usize = 4096;
/// Waiters whose executables are looked up in a contended window, those that waited longest.
const MAX_LOOKUPS: usize = 64;
/// The part of a waiter's mean waiting that the culprit's hold must explain. Not more, because
/// threads of one process wait at the same time, each for the same hold.
const EXPLAINED: f64 = 0.25;

/// Whom a window's numbers are summed up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unit {
    /// All processes of a workload.
    Workload(u64),
    /// A process whose workload is unknown.
    Process(ProcessId),
}

/// How the calls of one command are to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// What is over its baseline is unusual.
    Usual,
    /// It has no baseline yet.
    Unknown,
    /// It waits by design: neither work nor harm.
    Waits,
}

/// One process's calls of one command. Times in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct CommandUse {
    calls: u64,
    latency_ns: u64,
    /// What of it was over the command's baseline.
    excess_ns: u64,
    has_baseline: bool,
}

/// One process's driver calls. Times in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    workload: u64,
    calls: u64,
    latency_ns: u64,
    hold_ns: u64,
    /// The part of the latency whose commands wait by design.
    by_design_ns: u64,
    /// The part of the latency that is judged by baselines, and what of it was over them.
    known_ns: u64,
    excess_ns: u64,
}

impl Use {
    fn worked_ns(&self) -> u64 {
        self.latency_ns.saturating_sub(self.by_design_ns)
    }

    fn held_ns(&self) -> u64 {
        self.hold_ns.min(self.worked_ns())
    }

    /// Time in the shadow of other processes' calls.
    fn waited_ns(&self) -> u64 {
        let waited_ns = self.latency_ns.saturating_sub(self.hold_ns);
        waited_ns.min(self.worked_ns())
    }

    /// Of that, what was lost: where it is known how long the commands usually take, what is over it.
    fn lost_ns(&self) -> u64 {
        let unknown_ns = self.worked_ns().saturating_sub(self.known_ns);
        self.waited_ns()
            .min(self.excess_ns.saturating_add(unknown_ns))
    }
}

/// Sums over several processes.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    worked_ns: u64,
    known_ns: u64,
    lost_ns: u64,
}

impl Sum {
    fn add(&mut self, entry: &Use) {
        self.worked_ns = self.worked_ns.saturating_add(entry.worked_ns());
        self.known_ns = self.known_ns.saturating_add(entry.known_ns);
        self.lost_ns = self.lost_ns.saturating_add(entry.lost_ns());
    }
}

/// The driver calls of one window on one device class.
#[derive(Debug)]
pub(crate) struct Tally {
    processes: BoundedMap<ProcessId, Use>,
    commands: BoundedMap<(ProcessId, u16), CommandUse>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            processes: BoundedMap::new(MAX_PROCESSES),
            commands: BoundedMap::new(MAX_COMMANDS),
        }
    }
}

impl Tally {
    pub(crate) fn add(&mut self, header: &Header, sample: &SampleGpu) {
        let entry = self
            .processes
            .get_or_insert_with(ProcessId::from(header), Use::default);
        entry.workload = header.workload;
        entry.calls = entry.calls.saturating_add(u64::from(sample.calls));
        entry.latency_ns = entry.latency_ns.saturating_add(sample.latency_ns);
        // More hold than latency cannot be; let no such record make a culprit.
        let hold_ns = sample.hold_ns.min(sample.latency_ns);
        entry.hold_ns = entry.hold_ns.saturating_add(hold_ns);
    }

    /// The same calls by command.
    pub(crate) fn add_command(
        &mut self,
        header: &Header,
        sample: &SampleGpuCommand,
        command: Command,
    ) {
        let process = ProcessId::from(header);
        if command == Command::Waits {
            let entry = self.processes.get_or_insert_with(process, Use::default);
            entry.by_design_ns = entry.by_design_ns.saturating_add(sample.latency_ns);
            return;
        }
        let entry = self
            .commands
            .get_or_insert_with((process, sample.command), CommandUse::default);
        entry.calls = entry.calls.saturating_add(u64::from(sample.calls));
        entry.latency_ns = entry.latency_ns.saturating_add(sample.latency_ns);
        let excess_ns = sample.excess_ns.min(sample.latency_ns);
        entry.excess_ns = entry.excess_ns.saturating_add(excess_ns);
        entry.has_baseline |= command == Command::Usual;
    }

    /// Judges the others by their commands' baselines: but not by one that the accused made itself. If half
    /// of a command's calls are the accused's, and it was served most of the time that they took, then
    /// the baseline may be its own hold, and others who wait as long for it are not as usual. Both are
    /// sorted by process.
    fn hear(&self, accused: &[(ProcessId, Use)], others: &mut [(ProcessId, Use)]) {
        let place = |of: &[(ProcessId, Use)], id: &ProcessId| {
            of.binary_search_by_key(id, |(other, _)| *other).ok()
        };
        let sum = |of: fn(&Use) -> u64| accused.iter().map(|(_, entry)| of(entry) as f64).sum();
        let (held_ns, worked_ns): (f64, f64) = (sum(Use::held_ns), sum(Use::worked_ns));
        let mut calls: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
        if held_ns * 2.0 >= worked_ns {
            for ((id, command), entry) in self.commands.iter() {
                let (own, all) = calls.entry(*command).or_default();
                *all = all.saturating_add(entry.calls);
                if place(accused, id).is_some() {
                    *own = own.saturating_add(entry.calls);
                }
            }
        }
        for ((id, command), entry) in self.commands.iter() {
            let is_own = calls
                .get(command)
                .is_some_and(|(own, all)| own.saturating_mul(2) >= *all);
            if !entry.has_baseline || is_own {
                continue;
            }
            if let Some(at) = place(others, id) {
                let used = &mut others[at].1;
                used.known_ns = used.known_ns.saturating_add(entry.latency_ns);
                used.excess_ns = used.excess_ns.saturating_add(entry.excess_ns);
            }
        }
    }

    /// How many processes of a unit made calls.
    pub(crate) fn users_in(&self, unit: Unit) -> usize {
        self.processes
            .iter()
            .filter(|(id, entry)| entry.calls > 0 && unit_of(**id, entry) == unit)
            .count()
    }
}

fn unit_of(id: ProcessId, entry: &Use) -> Unit {
    if entry.workload == 0 {
        Unit::Process(id)
    } else {
        Unit::Workload(entry.workload)
    }
}

/// The numbers of a contended window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Finding {
    pub culprit: Unit,
    /// The culprit's process with the largest hold.
    pub process: ProcessId,
    pub hold_ns: u64,
    /// The culprit's part of all hold, 0 to 1.
    pub share: f64,
    /// Processes that lost time.
    pub waiters: u32,
    /// What they lost by it.
    pub lost_ns: u64,
    /// That part of the others' time in the driver, 0 to 1.
    pub waiting: f64,
    /// The part of the others' time in the driver for which there is a baseline, 0 to 1.
    pub known: f64,
    pub length_ns: u64,
    /// Culprit and waiters are of one workload.
    pub within: bool,
}

impl Finding {
    /// The culprit's hold, as far as what the others lost, summed up, matches it. More than the
    /// window if a call that returned in it had begun before.
    pub(crate) fn lasted_ns(&self) -> u64 {
        self.hold_ns.min(self.lost_ns)
    }
}

/// The thresholds.
#[derive(Clone, Debug)]
pub(crate) struct Judge {
    pub min_busy: f64,
    pub contention: f64,
    pub dominance: f64,
    pub min_processes: usize,
    pub within_workload: bool,
    pub monitors: Vec<String>,
}

impl Judge {
    /// Who keeps whom waiting, if anyone does.
    pub(crate) fn find(&self, tally: &Tally, length_ns: u64) -> Option<Finding> {
        let mut users: Vec<(ProcessId, Use)> = tally
            .processes
            .iter()
            .filter(|(_, entry)| entry.calls > 0)
            .map(|(id, entry)| (*id, *entry))
            .collect();
        if users.len() < self.min_processes || length_ns == 0 {
            return None;
        }
        users.sort_unstable_by_key(|(id, _)| *id);
        let workloads = Sums::new(
            users
                .iter()
                .map(|(id, entry)| (unit_of(*id, entry), *entry)),
        );
        let culprit = workloads.largest_hold()?;
        let (inside, mut outside): (Vec<_>, Vec<_>) = users
            .into_iter()
            .partition(|(id, entry)| unit_of(*id, entry) == culprit);
        let processes = Sums::new(inside.iter().copied());
        let process = processes.largest_hold()?;
        let finding = Finding {
            culprit,
            process,
            hold_ns: workloads.hold_of(culprit),
            share: ratio(workloads.hold_of(culprit), workloads.hold_ns),
            waiters: 0,
            lost_ns: 0,
            waiting: 0.0,
            known: 0.0,
            length_ns,
            within: false,
        };
        tally.hear(&inside, &mut outside);
        self.check(finding, outside).or_else(|| {
            if !self.within_workload {
                return None;
            }
            let (accused, mut others): (Vec<_>, Vec<_>) =
                inside.into_iter().partition(|(id, _)| *id == process);
            tally.hear(&accused, &mut others);
            let finding = Finding {
                hold_ns: processes.hold_of(process),
                share: ratio(processes.hold_of(process), processes.hold_ns),
                within: true,
                ..finding
            };
            self.check(finding, others)
        })
    }

    fn check(&self, finding: Finding, mut others: Vec<(ProcessId, Use)>) -> Option<Finding> {
        if finding.share < self.dominance {
            return None;
        }
        let found = self.harmed(finding, &others)?;
        // Look-ups only where something is about to be said.
        others.sort_unstable_by_key(|(id, entry)| (std::cmp::Reverse(entry.lost_ns()), *id));
        let mut looked_up = 0;
        others.retain(|(id, _)| {
            looked_up += 1;
            looked_up > MAX_LOOKUPS || !self.is_monitor(*id)
        });
        if others.len() == looked_up {
            Some(found)
        } else {
            self.harmed(finding, &others)
        }
    }

    /// The finding with the waiters' numbers, if they suffer enough and by this culprit.
    fn harmed(&self, finding: Finding, others: &[(ProcessId, Use)]) -> Option<Finding> {
        let mut sum = Sum::default();
        let (mut waiters, mut losers) = (0_u32, 0_u32);
        let mut mean_wait = 0.0;
        for (_, entry) in others {
            sum.add(entry);
            losers += u32::from(entry.lost_ns() > 0);
            if entry.waited_ns() > 0 {
                waiters += 1;
                mean_wait += entry.waited_ns().min(finding.length_ns) as f64;
            }
        }
        mean_wait /= f64::from(waiters.max(1));
        let waiting = ratio(sum.lost_ns, sum.worked_ns);
        let enough = losers > 0
            && waiting >= self.contention
            && ratio(sum.lost_ns, finding.length_ns) >= self.min_busy
            && finding.hold_ns as f64 >= EXPLAINED * mean_wait;
        enough.then_some(Finding {
            waiters: losers,
            lost_ns: sum.lost_ns,
            waiting,
            known: ratio(sum.known_ns, sum.worked_ns),
            ..finding
        })
    }

    fn is_monitor(&self, id: ProcessId) -> bool {
        host::process_of(id).is_some_and(|info| {
            // The executable, not the name that a process gives itself.
            let name = info.exe.rsplit('/').next().unwrap_or_default();
            !name.is_empty() && self.monitors.iter().any(|monitor| monitor == name)
        })
    }
}

/// Holds by key, in the key's order so that ties are settled the same way every time.
struct Sums<K> {
    holds: BTreeMap<K, u64>,
    hold_ns: u64,
}

impl<K: Ord + Copy> Sums<K> {
    fn new(uses: impl Iterator<Item = (K, Use)>) -> Self {
        let mut sums = Self {
            holds: BTreeMap::new(),
            hold_ns: 0,
        };
        for (key, entry) in uses {
            let hold = sums.holds.entry(key).or_default();
            *hold = hold.saturating_add(entry.held_ns());
            sums.hold_ns = sums.hold_ns.saturating_add(entry.held_ns());
        }
        sums
    }

    fn hold_of(&self, key: K) -> u64 {
        self.holds.get(&key).copied().unwrap_or_default()
    }

    fn largest_hold(&self) -> Option<K> {
        let largest = self.holds.values().copied().max()?;
        self.holds
            .iter()
            .find(|(_, hold)| **hold == largest)
            .map(|(key, _)| *key)
    }
}

/// 0 where there is nothing to divide by.
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}
