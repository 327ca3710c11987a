//! Losses: differences of what the kernel counted, as `LOST` records.

use super::{
    attach::ProgramRuns,
    map_batch::{self, Batch, Unsupported},
    pod::Plain,
};
use aya::maps::{IterableMap as _, MapData, PerCpuHashMap};
use palisade_abi::{CpuLosses, Header, LOSS_HOOK_SKIPPED, LOSS_SOURCES, Lost, Record};
use std::collections::HashMap;

/// What was told so far.
#[derive(Debug)]
pub(super) struct Losses {
    /// `None` where the kernel cannot.
    batch: Option<Batch<u64, CpuLosses>>,
    told: HashMap<u64, CpuLosses>,
    skipped: HashMap<String, u64>,
    /// Records lost since the start, by [`LOSS_SOURCES`].
    pub totals: [u64; LOSS_SOURCES.len()],
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
            batch: Some(Batch::new(cpus)),
            told: HashMap::new(),
            skipped: HashMap::new(),
            totals: [0; LOSS_SOURCES.len()],
        }
    }

    /// `LOST` records for what was lost since the last call.
    pub(super) fn collect(
        &mut self,
        map: &PerCpuHashMap<MapData, u64, Plain<CpuLosses>>,
        runs: &[ProgramRuns],
        now_ns: u64,
        out: &mut Vec<Record>,
    ) {
        let mut batch = self.batch.take();
        let read = batch.as_mut().map(|batch| {
            batch.read(map.map().fd(), |workload, cpus| {
                self.workload(*workload, map_batch::sum(cpus), now_ns, out);
            })
        });
        match read {
            Some(Ok(_)) => self.batch = batch,
            Some(Err(Unsupported)) | None => {
                for (workload, cpus) in map.iter().filter_map(Result::ok) {
                    let cpus: Vec<CpuLosses> = cpus.iter().map(|cpu| cpu.0).collect();
                    self.workload(workload, map_batch::sum(&cpus), now_ns, out);
                }
            }
        }
        self.skipped(runs, now_ns, out);
    }

    fn skipped(&mut self, runs: &[ProgramRuns], now_ns: u64, out: &mut Vec<Record>) {
        for run in runs {
            // Whose event it was nobody knows, but which signal's.
            let before = self
                .skipped
                .insert(run.hook.clone(), run.skipped)
                .unwrap_or(0);
            let what = What {
                workload: 0,
                source: LOSS_HOOK_SKIPPED,
                kinds: run.kinds,
            };
            self.tell(what, run.skipped.saturating_sub(before), now_ns, out);
        }
    }

    fn workload(&mut self, workload: u64, sum: CpuLosses, now_ns: u64, out: &mut Vec<Record>) {
        let before = self.told.insert(workload, sum).unwrap_or_default();
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

    #[test]
    fn only_differences_are_told_and_by_workload_and_source() {
        let mut losses = Losses::new(1);
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

    #[test]
    fn a_skipped_program_is_told_with_the_kinds_that_it_feeds() {
        let mut losses = Losses::new(1);
        let mut out = Vec::new();
        let run = |hook: &str, kinds, skipped| ProgramRuns {
            hook: hook.to_owned(),
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
