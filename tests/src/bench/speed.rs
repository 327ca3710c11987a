//! Taking the machine's speed out of what requests cost in yardsticks. Pure functions.

use super::paired::Block;
use super::yardstick::InYardsticks;

/// With fewer pairs of slices nothing is said about the speed's part.
const PAIRS_LEAST: usize = 10;

/// How what a request costs in yardsticks goes with the machine's speed: as this power of the two yardsticks' geometric
/// mean. Fitted: noise in the yardsticks is in it, so it is no property of the machine alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exponent(pub f64);

impl Exponent {
    /// The one that leaves the least sum of differences within pairs of slices that should be alike: the median of the pairs'
    /// own ones, each weighing as much as its speeds differ, so that one wild second among many moves it little. `None` if
    /// there are too few pairs, or none whose speeds differ.
    pub fn of(pairs: &[[InYardsticks; 2]]) -> Option<Self> {
        let slopes = pairs.iter().filter_map(|[one, other]| {
            let speed = one.log_ns() - other.log_ns();
            let slope = (one.cost / other.cost).ln() / speed;
            slope.is_finite().then_some((slope, speed.abs()))
        });
        let mut slopes: Vec<(f64, f64)> = slopes.collect();
        if slopes.len() < PAIRS_LEAST {
            return None;
        }
        slopes.sort_by(|one, other| one.0.total_cmp(&other.0));
        let half = slopes.iter().map(|(_, weight)| weight).sum::<f64>() / 2.0;
        let mut sum = 0.0;
        let middle = slopes.iter().find(|(_, weight)| {
            sum += weight;
            sum >= half
        });
        middle.map(|(slope, _)| Self(*slope))
    }

    /// What a slice would have cost on a machine of any one speed.
    pub fn apply(self, slice: InYardsticks) -> InYardsticks {
        InYardsticks {
            cost: slice.cost / (self.0 * slice.log_ns()).exp(),
            ..slice
        }
    }
}

/// Takes the machine's speed out of the costs of requests that were measured. How it comes in is found by pairs of slices of
/// one block that are alike, both with or both without the variant: so which slices were with it, the coin's doing, makes
/// no difference to what is found, as long as the variant costs a constant factor. Blocks that do not count tell nothing.
/// `None`: left as they were.
pub fn without_speed(blocks: &mut [Block]) -> Option<Exponent> {
    let alike = |block: &Block| {
        [true, false].map(|kind| {
            let mut slices = block.slices.iter().filter(|(traced, _)| *traced == kind);
            let mut next = || slices.next().map(|(_, slice)| slice.yardsticks);
            Some([next()?, next()?]).filter(|pair| pair.iter().all(InYardsticks::is_measured))
        })
    };
    let counted = blocks.iter().filter(|block| block.undisturbed());
    let pairs: Vec<_> = counted.flat_map(alike).flatten().collect();
    let exponent = Exponent::of(&pairs)?;
    for (_, slice) in blocks.iter_mut().flat_map(|block| &mut block.slices) {
        slice.yardsticks = exponent.apply(slice.yardsticks);
    }
    Some(exponent)
}

#[cfg(test)]
mod tests {
    use super::super::paired::{Quantity, Slice, order};
    use super::super::signed_rank::{Estimate, percent};
    use super::super::stats::Random;
    use super::super::tracers::Variant;
    use super::*;

    fn slice(cost: f64, model_ns: f64, code_ns: f64) -> InYardsticks {
        InYardsticks {
            cost,
            model_ns,
            code_ns,
        }
    }

    /// A slice in which the server measured nothing.
    fn plain() -> Slice {
        Slice {
            rate: 1.0,
            p50_ns: 1.0,
            p99_ns: 1.0,
            cpu_ns: 1.0,
            tracer_cpus: 0.0,
            cpus: 2.0,
            yardsticks: InYardsticks::default(),
            steal: 0.0,
            others: 0.0,
        }
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    }

    #[test]
    fn the_exponent_is_found_and_takes_the_speed_out() {
        let mut random = Random::new(1);
        let mut slow = |cost: f64| {
            let speed = random.normal().exp();
            slice(cost * speed.powf(0.1), 2.0 * speed, speed / 2.0)
        };
        let pairs: Vec<_> = (0..PAIRS_LEAST).map(|_| [slow(1.5), slow(1.5)]).collect();
        let found = Exponent::of(&pairs).expect("there are enough pairs");
        near(found.0, 0.1);
        near(found.apply(slow(1.5)).cost, 1.5);
        near(found.apply(slow(1.53)).cost, 1.53);
        assert_eq!(Exponent::of(&pairs[1..]), None, "too few");
        let alike = vec![[slice(1.0, 1.0, 1.0), slice(1.1, 1.0, 1.0)]; PAIRS_LEAST];
        assert_eq!(Exponent::of(&alike), None, "of one speed");
    }

    /// Blocks of requests that cost more on a slow machine, with the variant a fiftieth more. The yardsticks are read with
    /// noise, which is in what the requests cost in them, too.
    fn of_a_wandering_machine(random: &mut Random, noise: f64, count: usize) -> Vec<Block> {
        let mut wander = 0.0;
        let block = |_| Block {
            cycle: 0,
            variant: Variant::Palisade,
            slices: order(random)
                .map(|traced| {
                    wander += 0.1 * random.normal();
                    let speed: f64 = wander.exp();
                    let [model, code, request] = [(); 3].map(|()| noise * random.normal());
                    let effect = if traced { 1.02 } else { 1.0 };
                    let log = 1.3 * wander + request - f64::midpoint(wander + model, wander + code);
                    let yardsticks = InYardsticks {
                        cost: effect * log.exp(),
                        model_ns: speed * model.exp(),
                        code_ns: speed * code.exp(),
                    };
                    let plain = plain();
                    (
                        traced,
                        Slice {
                            yardsticks,
                            ..plain
                        },
                    )
                })
                .to_vec(),
        };
        (0..count).map(block).collect()
    }

    #[test]
    fn the_speed_goes_out_of_measured_costs_and_the_effect_stays() {
        let mut random = Random::new(1);
        let mut blocks = of_a_wandering_machine(&mut random, 0.0, 20);
        // What does not count does not tell either.
        blocks[7].slices[2].1.others = 0.5;
        blocks[7].slices[2].1.yardsticks.cost = 70.0;
        // One wild second is one of many.
        blocks[9].slices[0].1.yardsticks.cost *= 1.5;
        let found = without_speed(&mut blocks).expect("they are measured");
        assert!((found.0 - 0.3).abs() < 1e-9, "{found:?}");
        blocks.remove(9);
        for block in blocks.iter().filter(|block| block.undisturbed()) {
            let found = percent(block.log_quotient(Quantity::Throughput));
            assert!((found - 2.0).abs() < 1e-9, "{found}");
        }
        let mut others = vec![blocks[0].clone(); 20];
        for (_, slice) in others.iter_mut().flat_map(|block| &mut block.slices) {
            slice.yardsticks = InYardsticks::default();
        }
        assert_eq!(without_speed(&mut others), None, "not measured");
    }

    #[test]
    fn the_bounds_cover_when_the_speed_was_taken_out_and_are_closer() {
        let estimate = |blocks: &[Block]| {
            let logs = blocks
                .iter()
                .map(|block| block.log_quotient(Quantity::Throughput));
            Estimate::of(&logs.collect::<Vec<_>>()).expect("blocks")
        };
        let (trials, mut above, mut below, mut closer) = (400, 0, 0, 0);
        for trial in 0..trials {
            let mut blocks = of_a_wandering_machine(&mut Random::new(trial), 0.005, 12);
            let before = estimate(&blocks);
            without_speed(&mut blocks).expect("there are enough pairs");
            let after = estimate(&blocks);
            above += u32::from(after.lower > 2.0);
            below += u32::from(after.upper < 2.0);
            closer += u32::from(after.half_width() < 0.7 * before.half_width());
        }
        // One in twenty of 400, and three deviations.
        assert!(above <= 33 && below <= 33, "{above} {below}");
        assert!(closer > 350, "{closer}");
    }
}
