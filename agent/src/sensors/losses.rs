//! Losses: differences of what the kernel counted, as `LOST` records.
//!
//! Invariants:
//! - Counters are never reset, only subtracted; a difference is told once.
//! - The kernel has room for 2,048 workloads, and charges those that find none to workload 0. So that cgroups which
//!   come and go do not use it up, entries that have not changed for [`FORGET_NS`] are removed; never that of
//!   workload 0, which the agent made to take what finds no room. What was told in totals stays.
//!
//! An entry is read once more right before it is removed. What a program adds to it in the microseconds between is
//! the only loss that can go uncounted: of a workload that had none for minutes, whose next one makes an entry anew
//! and is told. A program that still holds the removed entry writes into memory that the map keeps (it is allocated
//! beforehand), which the kernel clears when it serves another workload; at worst that other one is charged. To
//! keep all entries would be worse: with the room used up, nobody's losses are told apart.

use super::{
    attach::ProgramRuns,
    map_batch::{self, Batch, Unread},
    pod::Plain,
};
use aya::maps::{IterableMap as _, MapData, PerCpuHashMap};
use palisade_abi::{CpuLosses, Header, LOSS_HOOK_SKIPPED, LOSS_SOURCES, Lost, Record};
use rustc_hash::FxBuildHasher;
use std::collections::HashMap;

/// An entry that has not changed for so long, ten minutes, is removed: soon enough to make room, and late enough that
/// hardly one counts again. How long a loss that was told holds anything back does not depend on it.
const FORGET_NS: u64 = 600 * 1_000_000_000;
/// Entries that are removed in one window, at most: each takes two system calls.
const FORGOTTEN_A_WINDOW: usize = 64;

/// The kernel's map of losses.
pub(super) type LossesMap = PerCpuHashMap<MapData, u64, Plain<CpuLosses>>;

/// What is done with single entries of it.
trait Entries {
    /// The sum over the CPUs; `None` if it cannot be read.
    fn sum(&self, workload: u64) -> Option<CpuLosses>;
    /// Whether it is removed.
    fn remove(&mut self, workload: u64) -> bool;
}

impl Entries for LossesMap {
    fn sum(&self, workload: u64) -> Option<CpuLosses> {
        let cpus = self.get(&workload, 0).ok()?;
        let cpus: Vec<CpuLosses> = cpus.iter().map(|cpu| cpu.0).collect();
        Some(map_batch::sum(&cpus))
    }

    fn remove(&mut self, workload: u64) -> bool {
        PerCpuHashMap::remove(self, &workload).is_ok()
    }
}

/// What was told of one workload.
#[derive(Clone, Copy, Debug)]
struct Entry {
    sum: CpuLosses,
    /// When it changed last, was seen first, or could not be removed.
    changed_ns: u64,
}

/// Reads the map and tells what is new in it.
#[derive(Debug)]
pub(super) struct Losses {
    batch: Batch<u64, CpuLosses>,
    unread: Unread,
    account: Account,
}

/// What was told so far.
#[derive(Debug, Default)]
struct Account {
    told: HashMap<u64, Entry>,
    /// By hook, each of them ten times a second.
    skipped: HashMap<&'static str, u64, FxBuildHasher>,
    /// Records lost since the start, by [`LOSS_SOURCES`].
    totals: [u64; LOSS_SOURCES.len()],
}

/// What was lost: whose (0: not known), by which of [`LOSS_SOURCES`], of which kinds (0: not known).
#[derive(Clone, Copy, Debug)]
struct What {
    workload: u64,
    source: u32,
    kinds: u64,
}

impl Losses {
    /// Nothing was told yet. `cpus`: possible CPUs.
    pub(super) fn new(cpus: usize) -> Self {
        Self {
            batch: Batch::new(cpus),
            unread: Unread::of("LOSSES"),
            account: Account::default(),
        }
    }

    /// How often the map could not be read to its end.
    pub(super) fn unread(&self) -> u64 {
        self.unread.count
    }

    /// Records lost since the start, by [`LOSS_SOURCES`].
    pub(super) fn totals(&self) -> [u64; LOSS_SOURCES.len()] {
        self.account.totals
    }

    /// `LOST` records for what was lost since the last call. Drops entries that are no longer needed.
    pub(super) fn collect(
        &mut self,
        map: &mut LossesMap,
        runs: &[ProgramRuns],
        now_ns: u64,
        out: &mut Vec<Record>,
    ) {
        let account = &mut self.account;
        let read = self.batch.read(map.map().fd(), |workload, cpus| {
            account.workload(*workload, map_batch::sum(cpus), now_ns, out);
        });
        self.unread.note(read);
        account.skipped(runs, now_ns, out);
        account.forget(map, now_ns, out);
    }
}

impl Account {
    /// Removes entries that have not changed for long, once what they hold is told.
    fn forget(&mut self, map: &mut impl Entries, now_ns: u64, out: &mut Vec<Record>) {
        let is_old = |entry: &Entry| now_ns.saturating_sub(entry.changed_ns) >= FORGET_NS;
        let old = self
            .told
            .iter()
            .filter(|(id, entry)| **id != 0 && is_old(entry));
        let old: Vec<u64> = old.map(|(id, _)| *id).take(FORGOTTEN_A_WINDOW).collect();
        for workload in old {
            let sum = map.sum(workload);
            if let Some(sum) = sum {
                self.workload(workload, sum, now_ns, out);
            }
            // Unless it has changed just now.
            let is_due = sum.is_some() && self.told.get(&workload).is_some_and(is_old);
            if is_due && map.remove(workload) {
                self.told.remove(&workload);
            } else if let Some(entry) = self.told.get_mut(&workload) {
                // What stays in the kernel stays here, or it would be told again; and it is not in others' way.
                entry.changed_ns = now_ns;
            }
        }
    }

    fn skipped(&mut self, runs: &[ProgramRuns], now_ns: u64, out: &mut Vec<Record>) {
        for run in runs {
            // Whose event it was nobody knows, but which signal's.
            let before = self.skipped.insert(run.hook, run.skipped).unwrap_or(0);
            let what = What {
                workload: 0,
                source: LOSS_HOOK_SKIPPED,
                kinds: run.kinds,
            };
            self.tell(what, run.skipped.saturating_sub(before), now_ns, out);
        }
    }

    fn workload(&mut self, workload: u64, sum: CpuLosses, now_ns: u64, out: &mut Vec<Record>) {
        let entry = self.told.entry(workload).or_insert_with(|| Entry {
            sum: CpuLosses::default(),
            changed_ns: now_ns,
        });
        if entry.sum == sum {
            return;
        }
        let before = std::mem::replace(&mut entry.sum, sum);
        entry.changed_ns = now_ns;
        for (source, (count, before)) in sum.counts.into_iter().zip(before.counts).enumerate() {
            let what = What {
                workload,
                source: source as u32,
                kinds: 0,
            };
            self.tell(what, count.wrapping_sub(before), now_ns, out);
        }
    }

    fn tell(&mut self, what: What, count: u64, now_ns: u64, out: &mut Vec<Record>) {
        if count == 0 {
            return;
        }
        let What {
            workload,
            source,
            kinds,
        } = what;
        if let Some(total) = self.totals.get_mut(source as usize) {
            *total += count;
        }
        let header = Header {
            time_ns: now_ns,
            workload,
            ..Header::default()
        };
        let body = Lost {
            count,
            source,
            pad: 0,
            kinds,
        };
        out.push(Record::new(header, body));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_abi::{LOSS_COUNTER_MAP, LOSS_RING_BUFFER};
    use std::cell::Cell;

    #[test]
    fn only_differences_are_told_and_by_workload_and_source() {
        let mut losses = Account::default();
        let mut out = Vec::new();
        losses.workload(
            7,
            CpuLosses {
                counts: [3, 1, 0, 0],
            },
            1,
            &mut out,
        );
        losses.workload(
            7,
            CpuLosses {
                counts: [5, 1, 0, 0],
            },
            2,
            &mut out,
        );
        losses.workload(0, CpuLosses::default(), 2, &mut out);
        let told: Vec<_> = out
            .iter()
            .filter_map(|record| {
                let lost = record.get::<Lost>()?;
                Some((record.header.workload, lost.source, lost.count))
            })
            .collect();
        assert_eq!(
            told,
            [
                (7, LOSS_RING_BUFFER, 3),
                (7, LOSS_COUNTER_MAP, 1),
                (7, LOSS_RING_BUFFER, 2)
            ]
        );
        assert_eq!(losses.totals, [5, 1, 0, 0, 0]);
    }

    /// The kernel's map, and what is added to it the next time that one entry is read.
    #[derive(Default)]
    struct Kernel {
        entries: HashMap<u64, u64>,
        late: Cell<u64>,
        refuses: bool,
    }

    impl Entries for Kernel {
        fn sum(&self, workload: u64) -> Option<CpuLosses> {
            let count = *self.entries.get(&workload)? + self.late.take();
            Some(sum(count))
        }

        fn remove(&mut self, workload: u64) -> bool {
            !self.refuses && self.entries.remove(&workload).is_some()
        }
    }

    fn sum(count: u64) -> CpuLosses {
        let mut sum = CpuLosses::default();
        sum.counts[LOSS_RING_BUFFER as usize] = count;
        sum
    }

    /// As [`Losses::collect`]: what was told, as workload and count.
    fn collect(losses: &mut Account, kernel: &mut Kernel, now_ns: u64) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        for (workload, count) in &kernel.entries {
            losses.workload(*workload, sum(*count), now_ns, &mut out);
        }
        losses.forget(kernel, now_ns, &mut out);
        let told = |record: &Record| Some((record.header.workload, record.get::<Lost>()?.count));
        let mut told: Vec<_> = out.iter().filter_map(told).collect();
        told.sort_unstable();
        told
    }

    #[test]
    fn entries_unchanged_for_long_go_but_for_workload_0_and_what_comes_then_is_told_once() {
        let (mut losses, mut kernel) = (Account::default(), Kernel::default());
        kernel.entries.extend([(0, 4), (7, 3), (8, 1)]);
        let told = collect(&mut losses, &mut kernel, 1);
        assert_eq!(told, [(0, 4), (7, 3), (8, 1)]);
        kernel.entries.insert(8, 2);
        assert_eq!(collect(&mut losses, &mut kernel, FORGET_NS), [(8, 1)]);
        assert_eq!(kernel.entries.len(), 3);
        assert!(collect(&mut losses, &mut kernel, FORGET_NS + 1).is_empty());
        assert!(!kernel.entries.contains_key(&7) && !losses.told.contains_key(&7));
        // The program makes it anew, from nothing.
        kernel.entries.insert(7, 2);
        assert_eq!(collect(&mut losses, &mut kernel, FORGET_NS + 2), [(7, 2)]);
        assert!(collect(&mut losses, &mut kernel, 4 * FORGET_NS).is_empty());
        assert_eq!(kernel.entries.keys().collect::<Vec<_>>(), [&0]);
        assert_eq!(losses.totals[LOSS_RING_BUFFER as usize], 11);
    }

    #[test]
    fn an_entry_that_changes_at_its_removal_is_told_and_stays() {
        let (mut losses, mut kernel) = (Account::default(), Kernel::default());
        kernel.entries.insert(7, 3);
        assert_eq!(collect(&mut losses, &mut kernel, 1), [(7, 3)]);
        kernel.late.set(5);
        assert_eq!(collect(&mut losses, &mut kernel, 1 + FORGET_NS), [(7, 5)]);
        kernel.entries.insert(7, 8);
        assert!(collect(&mut losses, &mut kernel, 2 + FORGET_NS).is_empty());
        assert!(kernel.entries.contains_key(&7));
    }

    #[test]
    fn what_the_kernel_does_not_give_up_is_not_told_again() {
        let (mut losses, mut kernel) = (Account::default(), Kernel::default());
        kernel.entries.insert(7, 3);
        kernel.refuses = true;
        assert_eq!(collect(&mut losses, &mut kernel, 1), [(7, 3)]);
        for turn in 1..4 {
            let told = collect(&mut losses, &mut kernel, turn * FORGET_NS + 1);
            assert!(told.is_empty());
        }
        kernel.refuses = false;
        assert!(collect(&mut losses, &mut kernel, 4 * FORGET_NS + 1).is_empty());
        assert!(kernel.entries.is_empty() && losses.told.is_empty());
    }

    #[test]
    fn so_many_go_in_one_window_at_most() {
        let (mut losses, mut kernel) = (Account::default(), Kernel::default());
        kernel.entries.extend((0..2048).map(|id| (id, 1)));
        collect(&mut losses, &mut kernel, 1);
        for windows in 1..=2047_usize.div_ceil(FORGOTTEN_A_WINDOW) {
            collect(&mut losses, &mut kernel, 1 + FORGET_NS);
            let left = 2048_usize.saturating_sub(windows * FORGOTTEN_A_WINDOW);
            assert_eq!(kernel.entries.len(), left.max(1));
        }
        assert_eq!(losses.told.len(), 1);
    }

    #[test]
    fn a_skipped_program_is_told_with_the_kinds_that_it_feeds() {
        let mut losses = Account::default();
        let mut out = Vec::new();
        let run = |hook: &'static str, kinds, skipped| ProgramRuns {
            hook,
            kinds,
            skipped,
            ..ProgramRuns::default()
        };
        losses.skipped(&[run("switch", 6, 2), run("ioctl", 8, 0)], 1, &mut out);
        losses.skipped(&[run("switch", 6, 2), run("ioctl", 8, 3)], 2, &mut out);
        let told: Vec<_> = out
            .iter()
            .filter_map(Record::get::<Lost>)
            .map(|lost| (lost.source, lost.kinds, lost.count))
            .collect();
        assert_eq!(told, [(LOSS_HOOK_SKIPPED, 6, 2), (LOSS_HOOK_SKIPPED, 8, 3)]);
    }
}
