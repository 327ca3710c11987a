//! Paired slices: which come in which order, what a block of them says, which of them count. Pure functions.
//!
//! A block compares one variant with no tracing by four slices of the load right after one another: two with the
//! variant, two without, so that a steady drift cancels out. A seeded coin decides whether the variant comes inside
//! or outside; that makes the noise of a block's difference symmetric, all that [`super::signed_rank`] asks for.

use super::stats::Random;
use super::tracers::Variant;
use super::workloads::Workload;
use super::yardstick::InYardsticks;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A block does not count if in one of its slices the hypervisor took away more than this part of the CPU time.
pub const STEAL_OVER: f64 = 0.02;
/// Nor if others than load and tracer used more than this part.
pub const OTHERS_OVER: f64 = 0.05;

/// Which form of the benchmark it is: another one's slices are not comparable. It counts up with what a slice measures.
pub const FORM: u32 = 2;

/// What one slice showed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// Things a second.
    pub rate: f64,
    /// Nanoseconds; 0 if it is not told.
    pub p50_ns: f64,
    /// Nanoseconds; 0 if it is not told.
    pub p99_ns: f64,
    /// CPU time of load and tracer together for one thing made, nanoseconds.
    pub cpu_ns: f64,
    /// CPUs that the tracer's own processes used.
    pub tracer_cpus: f64,
    /// CPUs that there are.
    pub cpus: f64,
    /// What a request took, where the server measures it; then that is what is compared.
    pub yardsticks: InYardsticks,
    /// Part of all CPU time that the hypervisor took away.
    pub steal: f64,
    /// Part of all CPU time that others than load and tracer used.
    pub others: f64,
}

impl Slice {
    /// Whether the server measured what a request took.
    pub fn is_measured(&self) -> bool {
        self.yardsticks.is_measured()
    }
}

/// A slice and where it belongs: a line of the raw log.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// See [`FORM`].
    pub form: u32,
    /// The load.
    pub workload: Workload,
    /// Which cycle of its load.
    pub cycle: usize,
    /// Which block of its load.
    pub block: usize,
    /// What its block compares with no tracing.
    pub variant: Variant,
    /// How long the load rested before each slice that was not right behind another one, seconds.
    pub pause: f64,
    /// Whether the variant ran in this slice.
    pub traced: bool,
    /// What was seen.
    #[serde(flatten)]
    pub slice: Slice,
}

/// The order of a block's slices: whether each is with the variant.
pub fn order(random: &mut Random) -> [bool; 4] {
    let inside = random.next_u64() & 1 == 0;
    [!inside, inside, inside, !inside]
}

/// The order of a cycle's blocks: each variant as often as its weight says.
pub fn cycle(variants: &[(Variant, usize)], random: &mut Random) -> Vec<Variant> {
    let mut blocks: Vec<Variant> = variants
        .iter()
        .flat_map(|(variant, weight)| std::iter::repeat_n(*variant, *weight))
        .collect();
    random.shuffle(&mut blocks);
    blocks
}

/// Adds another run; its blocks and cycles are numbered on.
pub fn append(entries: &mut Vec<Entry>, run: Vec<Entry>) {
    let after =
        |number: fn(&Entry) -> usize| entries.iter().map(number).max().map_or(0, |last| last + 1);
    let (block, cycle) = (after(|entry| entry.block), after(|entry| entry.cycle));
    entries.extend(run.into_iter().map(|entry| Entry {
        block: entry.block + block,
        cycle: entry.cycle + cycle,
        ..entry
    }));
}

/// What a quantity is compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Time for one thing: the inverse of throughput.
    Throughput,
    /// CPU time for one thing.
    CpuTime,
    /// 99th percentile of latency.
    P99,
    /// The server's own run of the model: what it takes must not depend on the variant.
    Model,
    /// The server's own way through much code, likewise.
    Code,
}

impl Quantity {
    fn cost(self, slice: &Slice) -> f64 {
        match self {
            Quantity::Throughput if slice.is_measured() => {
                let left = 1.0 - slice.tracer_cpus / slice.cpus;
                slice.yardsticks.with_tracer(left)
            }
            // Not told: the server's own work is in them.
            Quantity::CpuTime | Quantity::P99 if slice.is_measured() => f64::NAN,
            Quantity::Throughput => 1.0 / slice.rate,
            Quantity::CpuTime => slice.cpu_ns,
            Quantity::P99 => slice.p99_ns,
            Quantity::Model => slice.yardsticks.model_ns,
            Quantity::Code => slice.yardsticks.code_ns,
        }
    }
}

/// A block whose four slices all ran.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Which cycle of its load.
    pub cycle: usize,
    /// What is compared.
    pub variant: Variant,
    /// Each slice, and whether it was with the variant.
    pub slices: Vec<(bool, Slice)>,
}

impl Block {
    /// Logarithm of the cost with the variant over the cost without.
    pub fn log_quotient(&self, quantity: Quantity) -> f64 {
        let mean = |traced: bool| {
            let logs: Vec<f64> = self
                .slices
                .iter()
                .filter(|(with, _)| *with == traced)
                .map(|(_, slice)| quantity.cost(slice).ln())
                .collect();
            logs.iter().sum::<f64>() / logs.len() as f64
        };
        mean(true) - mean(false)
    }

    /// Whether its requests were measured by the server.
    pub fn is_measured(&self) -> bool {
        self.slices.iter().all(|(_, slice)| slice.is_measured())
    }

    /// Whether the machine belonged to load and tracer.
    pub fn undisturbed(&self) -> bool {
        self.slices
            .iter()
            .all(|(_, slice)| slice.steal <= STEAL_OVER && slice.others <= OTHERS_OVER)
    }
}

/// The blocks of a load in the order in which they ran; unfinished ones are left out.
pub fn blocks(entries: &[Entry], workload: Workload) -> Vec<Block> {
    let mut blocks = BTreeMap::<usize, Block>::new();
    for entry in entries.iter().filter(|entry| entry.workload == workload) {
        let block = blocks.entry(entry.block).or_insert(Block {
            cycle: entry.cycle,
            variant: entry.variant,
            slices: Vec::new(),
        });
        block.slices.push((entry.traced, entry.slice));
    }
    blocks
        .into_values()
        .filter(|block| block.slices.len() == 4)
        .collect()
}

/// For each cycle that has blocks of both variants: how much more the one costs than the other, as a logarithm. The
/// blocks' own slices without tracing stand between them.
pub fn by_cycle(blocks: &[Block], one: Variant, other: Variant, quantity: Quantity) -> Vec<f64> {
    let mut cycles = BTreeMap::<usize, [Vec<f64>; 2]>::new();
    for block in blocks {
        let side = match block.variant {
            variant if variant == one => 0,
            variant if variant == other => 1,
            _ => continue,
        };
        cycles.entry(block.cycle).or_default()[side].push(block.log_quotient(quantity));
    }
    let mean = |logs: &[f64]| logs.iter().sum::<f64>() / logs.len() as f64;
    cycles
        .into_values()
        .filter(|sides| sides.iter().all(|logs| !logs.is_empty()))
        .map(|[one, other]| mean(&one) - mean(&other))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::signed_rank::{Estimate, percent};
    use super::*;

    fn slice(cost: f64) -> Slice {
        Slice {
            rate: 1e9 / cost,
            p50_ns: cost,
            p99_ns: 2.0 * cost,
            cpu_ns: cost,
            tracer_cpus: 0.0,
            cpus: 2.0,
            yardsticks: InYardsticks::default(),
            steal: 0.0,
            others: 0.0,
        }
    }

    fn entry(block: usize, variant: Variant, traced: bool, cost: f64) -> Entry {
        Entry {
            form: FORM,
            workload: Workload::Serving,
            cycle: block / 2,
            block,
            variant,
            pause: 1.0,
            traced,
            slice: slice(cost),
        }
    }

    #[test]
    fn a_steady_drift_cancels_in_both_orders() {
        for inside in [true, false] {
            let entries: Vec<Entry> = [!inside, inside, inside, !inside]
                .iter()
                .enumerate()
                .map(|(at, traced)| {
                    let drift = (at as f64 * 0.1).exp();
                    let effect = if *traced { 1.02 } else { 1.0 };
                    entry(0, Variant::Palisade, *traced, 100.0 * drift * effect)
                })
                .collect();
            let found = &blocks(&entries, Workload::Serving)[0];
            for quantity in [Quantity::Throughput, Quantity::CpuTime, Quantity::P99] {
                assert!((percent(found.log_quotient(quantity)) - 2.0).abs() < 1e-9);
            }
            assert!(
                blocks(&entries[..3], Workload::Serving).is_empty(),
                "unfinished"
            );
            assert!(blocks(&entries, Workload::Calls).is_empty(), "another load");
        }
    }

    #[test]
    fn a_measured_request_is_compared_by_its_yardsticks_and_what_the_tracer_left() {
        let measured = |cost: f64, tracer_cpus: f64| Slice {
            tracer_cpus,
            yardsticks: InYardsticks {
                cost,
                model_ns: 1.0,
                code_ns: 1.0,
            },
            ..slice(77.0)
        };
        let slices = [(true, 1.02, 0.02), (false, 1.0, 0.0)];
        let slices = slices.map(|(traced, cost, tracer)| (traced, measured(cost, tracer)));
        let block = Block {
            cycle: 0,
            variant: Variant::Palisade,
            slices: slices.to_vec(),
        };
        let found = block.log_quotient(Quantity::Throughput);
        assert!((found - (1.02_f64 / 0.99).ln()).abs() < 1e-12, "{found}");
        assert!(block.log_quotient(Quantity::CpuTime).is_nan());
        assert!(block.log_quotient(Quantity::P99).is_nan());
    }

    #[test]
    fn another_run_s_blocks_are_others_and_lines_come_back_as_they_were() {
        let run: Vec<Entry> = [true, false, false, true]
            .map(|traced| entry(0, Variant::Again, traced, 1.5))
            .to_vec();
        let mut all = run.clone();
        append(&mut all, run);
        assert_eq!(blocks(&all, Workload::Serving).len(), 2);
        assert_eq!((all[7].block, all[7].cycle), (1, 1));
        let line = serde_json::to_string(&all[7]).expect("text");
        assert!(line.contains("\"variant\":\"none-again\""), "{line}");
        assert_eq!(
            serde_json::from_str::<Entry>(&line).expect("an entry"),
            all[7]
        );
    }

    #[test]
    fn a_disturbed_slice_disturbs_its_block() {
        let mut block = Block {
            cycle: 0,
            variant: Variant::Perf,
            slices: vec![(true, slice(1.0)), (false, slice(1.0))],
        };
        assert!(block.undisturbed());
        block.slices[1].1.others = 0.06;
        assert!(!block.undisturbed());
        block.slices[1].1.others = 0.04;
        block.slices[0].1.steal = 0.03;
        assert!(!block.undisturbed());
    }

    #[test]
    fn variants_are_compared_within_their_cycle() {
        let mut entries = Vec::new();
        // Cycle 0: 3 % and 1 % more than without; cycle 1 lacks the other one.
        for (block, variant, cost) in [
            (0, Variant::Bpftrace, 103.0),
            (1, Variant::Palisade, 101.0),
            (2, Variant::Bpftrace, 150.0),
        ] {
            for traced in [true, false, false, true] {
                entries.push(entry(
                    block,
                    variant,
                    traced,
                    if traced { cost } else { 100.0 },
                ));
            }
        }
        let blocks = blocks(&entries, Workload::Serving);
        let logs = by_cycle(
            &blocks,
            Variant::Bpftrace,
            Variant::Palisade,
            Quantity::CpuTime,
        );
        assert_eq!(logs.len(), 1);
        assert!((logs[0].exp() - 103.0 / 101.0).abs() < 1e-9);
    }

    #[test]
    fn a_cycle_holds_each_variant_by_its_weight_and_both_orders_occur() {
        let mut random = Random::new(1);
        let mut found = cycle(&[(Variant::Palisade, 3), (Variant::Perf, 1)], &mut random);
        found.sort_unstable();
        assert_eq!(
            found,
            [vec![Variant::Palisade; 3], vec![Variant::Perf]].concat()
        );
        let inside = (0..1_000).filter(|_| order(&mut random)[1]).count();
        assert!((430..570).contains(&inside), "{inside}");
    }

    /// A machine whose speed wanders, is slower for a while now and then, and is noisy besides.
    struct Machine {
        random: Random,
        wander: f64,
        slow: usize,
    }

    impl Machine {
        fn cost(&mut self) -> f64 {
            self.wander += 0.004 * self.random.normal();
            self.slow = match self.slow {
                0 if self.random.unit() < 0.05 => 1 + (self.random.next_u64() % 4) as usize,
                slow => slow.saturating_sub(1),
            };
            let slow = if self.slow > 0 { 0.06 } else { 0.0 };
            100.0 * (self.wander + slow + 0.004 * self.random.normal()).exp()
        }
    }

    #[test]
    fn on_a_machine_that_wanders_the_bound_covers_and_nothing_is_found_where_nothing_is() {
        let trials = 400;
        for effect in [1.0, 1.01] {
            let (mut missed, mut found_some) = (0, 0);
            for trial in 0..trials {
                let mut machine = Machine {
                    random: Random::new(trial),
                    wander: 0.0,
                    slow: 0,
                };
                let mut coin = Random::new(1_000 + trial);
                let mut entries = Vec::new();
                for block in 0..30 {
                    for traced in order(&mut coin) {
                        let cost = machine.cost() * if traced { effect } else { 1.0 };
                        entries.push(entry(block, Variant::Palisade, traced, cost));
                    }
                }
                let logs: Vec<f64> = blocks(&entries, Workload::Serving)
                    .iter()
                    .map(|block| block.log_quotient(Quantity::Throughput))
                    .collect();
                let found = Estimate::of(&logs).expect("blocks");
                missed += u32::from(found.upper < percent(effect.ln()));
                found_some += u32::from(found.lower > 0.0);
            }
            // One in twenty of 400, and three deviations.
            assert!(missed <= 33, "{effect}: {missed}");
            if effect > 1.0 {
                assert!(found_some > 300, "a hundredth is found: {found_some}");
            } else {
                assert!(found_some <= 33, "{found_some}");
            }
        }
    }
}
