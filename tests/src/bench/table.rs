//! The overhead benchmark's tables, from the slices alone.

use super::paired::{Block, Entry, OTHERS_OVER, Quantity, STEAL_OVER, blocks, by_cycle};
use super::signed_rank::{Estimate, UNRESOLVED_OVER, interval, percent};
use super::speed::{Exponent, without_speed};
use super::stats::median;
use super::tracers::{BURN_PERMILLE, Variant};
use super::workloads::Workload;
use std::fmt::{self, Write};

/// Both bounds of a control's interval are missed by this chance each.
const CONTROL_MISSED: f64 = 0.025;

/// Where more than this part of a variant's blocks does not count, the rest says nothing: a tracer that wakes up lets
/// others in who wait for the CPU, so that its own blocks are left out more often than it is just.
const TOO_MANY: f64 = 0.1;

/// Everything that the slices say.
pub fn tables(entries: &[Entry]) -> Result<String, fmt::Error> {
    let mut text = String::new();
    for workload in Workload::ALL {
        let mut all = blocks(entries, workload);
        let exponent = without_speed(&mut all);
        if !all.is_empty() {
            table(&mut text, workload, &all, exponent)?;
        }
    }
    for variant in Variant::ALL {
        if entries.iter().any(|entry| entry.variant == variant) {
            writeln!(text, "{:<14} {}", variant.name(), variant.what())?;
        }
    }
    writeln!(
        text,
        "\nEach figure: what a thing costs with the variant over what it costs without, less 1, over all blocks that \
         count; `≤`: one-sided\nupper 95 % bound. throughput: time for one thing; CPU time: of load and tracer together; \
         p99: of latency. Estimate: Hodges and\nLehmann's with Wilcoxon's bound; mean: of throughput, with Student's \
         bound. `?`: unresolved, the bound is over {UNRESOLVED_OVER} points above\nthe estimate. own CPU: of the \
         tracer's processes, in percent of one CPU. A block does not count if in one of its slices more than\n{:.0} % of \
         the CPU time was stolen by the hypervisor or more than {:.0} % used by others.",
        STEAL_OVER * 100.0,
        OTHERS_OVER * 100.0
    )?;
    Ok(text)
}

fn table(
    text: &mut String,
    workload: Workload,
    all: &[Block],
    exponent: Option<Exponent>,
) -> fmt::Result {
    writeln!(text, "{}: {}", workload.name(), workload.what())?;
    writeln!(
        text,
        "  {:<14} {:>6} {:>10} {:>8} | {:>10} {:>8}   | {:>8} {:>8} | {:>8} {:>8}   | {:>8} {:>8}   | {:>7}",
        "variant",
        "blocks",
        "median/s",
        "p99 µs",
        "throughput",
        "≤",
        "mean",
        "≤",
        "CPU time",
        "≤",
        "p99",
        "≤",
        "own CPU"
    )?;
    let counted: Vec<Block> = all
        .iter()
        .filter(|block| block.undisturbed())
        .cloned()
        .collect();
    reference(text, all)?;
    for variant in Variant::ALL {
        line(text, &counted, variant)?;
    }
    left_out(text, all, &counted)?;
    controls(text, &counted)?;
    for (one, peer) in [
        (Variant::Palisade, Variant::Bpftrace),
        (Variant::Palisade, Variant::Perf),
        (Variant::PalisadeAll, Variant::BpftraceAll),
        (Variant::PalisadeAll, Variant::PerfAll),
    ] {
        against(text, &counted, one, peer)?;
    }
    if counted.iter().any(Block::is_measured) {
        yardsticks(text, &counted, exponent)?;
    }
    writeln!(text)
}

fn reference(text: &mut String, all: &[Block]) -> fmt::Result {
    let slices = |of: fn(&super::paired::Slice) -> f64| {
        let values: Vec<f64> = all
            .iter()
            .flat_map(|block| &block.slices)
            .filter(|(traced, _)| !traced)
            .map(|(_, slice)| of(slice))
            .collect();
        median(&values)
    };
    writeln!(
        text,
        "  {:<14} {:>6} {:>10.0} {:>8}",
        "none",
        "",
        slices(|slice| slice.rate),
        micros(slices(|slice| slice.p99_ns))
    )
}

fn line(text: &mut String, counted: &[Block], variant: Variant) -> fmt::Result {
    let found: Vec<&Block> = counted
        .iter()
        .filter(|block| block.variant == variant)
        .collect();
    if found.is_empty() {
        return Ok(());
    }
    let traced = |of: fn(&super::paired::Slice) -> f64| -> Vec<f64> {
        found
            .iter()
            .flat_map(|block| &block.slices)
            .filter(|(traced, _)| *traced)
            .map(|(_, slice)| of(slice))
            .collect()
    };
    let own = traced(|slice| slice.tracer_cpus);
    let estimate = |quantity| estimate(counted, variant, quantity);
    let throughput = estimate(Quantity::Throughput);
    writeln!(
        text,
        "  {:<14} {:>6} {:>10.0} {:>8} | {:>2}{} | {} | {} | {} | {:>6.2}%",
        variant.name(),
        found.len(),
        median(&traced(|slice| slice.rate)),
        micros(median(&traced(|slice| slice.p99_ns))),
        "",
        marked(throughput),
        plain(throughput.map(|found| (found.mean.mean, found.mean.upper))),
        marked(estimate(Quantity::CpuTime)),
        plain(estimate(Quantity::P99).map(|found| (found.centre, found.upper))),
        100.0 * own.iter().sum::<f64>() / own.len() as f64
    )
}

/// What did not count, and what would have been found with it.
fn left_out(text: &mut String, all: &[Block], counted: &[Block]) -> fmt::Result {
    for variant in Variant::ALL {
        let number = |blocks: &[Block]| {
            blocks
                .iter()
                .filter(|block| block.variant == variant)
                .count()
        };
        let (ran, counts) = (number(all), number(counted));
        if counts < ran {
            let with_all = |quantity| {
                plain(estimate(all, variant, quantity).map(|found| (found.centre, found.upper)))
            };
            writeln!(
                text,
                "  {}: {} of {ran} blocks do not count (stolen or others' time){}; with them throughput {}, CPU time {}",
                variant.name(),
                ran - counts,
                if (ran - counts) as f64 > ran as f64 * TOO_MANY {
                    ": TOO MANY, the machine was not quiet"
                } else {
                    ""
                },
                with_all(Quantity::Throughput),
                with_all(Quantity::CpuTime)
            )?;
        }
    }
    Ok(())
}

fn logs(blocks: &[Block], variant: Variant, quantity: Quantity) -> Vec<f64> {
    blocks
        .iter()
        .filter(|block| block.variant == variant)
        .map(|block| block.log_quotient(quantity))
        .collect()
}

fn estimate(blocks: &[Block], variant: Variant, quantity: Quantity) -> Option<Estimate> {
    Estimate::of(&logs(blocks, variant, quantity))
}

/// The estimate and its two-sided 95 % interval.
fn two_sided(
    blocks: &[Block],
    variant: Variant,
    quantity: Quantity,
) -> Option<(Estimate, f64, f64)> {
    let logs = logs(blocks, variant, quantity);
    let found = Estimate::of(&logs)?;
    let (lower, upper) = interval(&logs, CONTROL_MISSED);
    Some((found, lower, upper))
}

/// Whether nothing is found where nothing is, and a known cost where it is.
fn controls(text: &mut String, counted: &[Block]) -> fmt::Result {
    let burnt = percent(-(-f64::from(BURN_PERMILLE) / 1000.0).ln_1p());
    for (variant, truth) in [(Variant::Again, 0.0), (Variant::Burn, burnt)] {
        for (name, quantity) in [
            ("throughput", Quantity::Throughput),
            ("CPU time", Quantity::CpuTime),
        ] {
            let Some((found, lower, upper)) = two_sided(counted, variant, quantity) else {
                continue;
            };
            writeln!(
                text,
                "  control {:<10} {name:>10}: true {truth:.2} %, 95 % interval {lower:.2} to {upper:.2} %: {}; resolution {:.2} points",
                variant.name(),
                if upper.is_infinite() {
                    "too few blocks"
                } else if (lower..=upper).contains(&truth) {
                    "holds"
                } else {
                    "DOES NOT HOLD"
                },
                found.half_width()
            )?;
        }
    }
    Ok(())
}

/// What was taken out, and whether the yardsticks are what they must be: as long with a variant as without.
fn yardsticks(text: &mut String, counted: &[Block], exponent: Option<Exponent>) -> fmt::Result {
    match exponent {
        Some(Exponent(value)) => writeln!(
            text,
            "  the machine's speed was taken out: costs in yardsticks go as yardsticks ^ {value:.3} (fitted)"
        )?,
        None => writeln!(
            text,
            "  the machine's speed was not taken out: too few blocks, or all of one speed"
        )?,
    }
    for variant in Variant::ALL {
        for (name, quantity) in [("model", Quantity::Model), ("much code", Quantity::Code)] {
            let Some((found, lower, upper)) = two_sided(counted, variant, quantity) else {
                continue;
            };
            writeln!(
                text,
                "  yardstick {name:<9} with {:<12} {:.2} %, 95 % interval {lower:.2} to {upper:.2} %{}",
                variant.name(),
                found.centre,
                if (lower..=upper).contains(&0.0) {
                    ""
                } else {
                    ": NOT AS LONG, its cost is wrong by as much"
                }
            )?;
        }
    }
    Ok(())
}

/// Who is cheaper.
fn against(text: &mut String, counted: &[Block], one: Variant, peer: Variant) -> fmt::Result {
    for (name, quantity) in [
        ("throughput", Quantity::Throughput),
        ("CPU time", Quantity::CpuTime),
    ] {
        let Some(found) = Estimate::of(&by_cycle(counted, peer, one, quantity)) else {
            continue;
        };
        let verdict = if found.upper.is_infinite() {
            "too few cycles"
        } else if found.lower > 0.0 {
            "costs more"
        } else if found.upper < 0.0 {
            "costs less"
        } else {
            "undecided"
        };
        writeln!(
            text,
            "  {} against {}, {name:>10}: {:.2} % ({:.2} to {:.2}, {} cycles): {verdict}",
            peer.name(),
            one.name(),
            found.centre,
            found.lower,
            found.upper,
            found.count
        )?;
    }
    Ok(())
}

fn micros(nanoseconds: f64) -> String {
    if nanoseconds > 0.0 {
        format!("{:.1}", nanoseconds / 1e3)
    } else {
        "-".to_owned()
    }
}

fn plain(found: Option<(f64, f64)>) -> String {
    found.map_or_else(
        || format!("{:>8} {:>8}", "-", "-"),
        |(estimate, upper)| format!("{estimate:>7.2}% {upper:>7.2}%"),
    )
}

fn marked(found: Option<Estimate>) -> String {
    let mark = match found {
        Some(found) if !found.resolved() => "?",
        _ => " ",
    };
    format!(
        "{} {mark}",
        plain(found.map(|found| (found.centre, found.upper)))
    )
}

#[cfg(test)]
mod tests {
    use super::super::paired::{FORM, Slice};
    use super::super::yardstick::InYardsticks;
    use super::*;

    fn entries(variant: Variant, blocks: std::ops::Range<usize>, cost: f64) -> Vec<Entry> {
        blocks
            .flat_map(|block| {
                [true, false, false, true].map(|traced| {
                    let cost = if traced { 100.0 * cost } else { 100.0 };
                    Entry {
                        form: FORM,
                        workload: Workload::Calls,
                        cycle: block % 10,
                        block,
                        variant,
                        pause: 1.0,
                        traced,
                        slice: Slice {
                            rate: 1e9 / cost,
                            p50_ns: cost,
                            p99_ns: 0.0,
                            cpu_ns: cost,
                            tracer_cpus: 0.01,
                            cpus: 2.0,
                            yardsticks: InYardsticks::default(),
                            steal: 0.0,
                            others: if block == 0 { 0.5 } else { 0.0 },
                        },
                    }
                })
            })
            .collect()
    }

    #[test]
    fn a_table_of_measured_requests_tells_of_their_yardsticks() {
        let measured = |blocks: usize| {
            let mut all = entries(Variant::Palisade, 1..blocks + 1, 1.0);
            for (at, entry) in all.iter_mut().enumerate() {
                entry.workload = Workload::Yardstick;
                // Of two speeds, in turns: the slices of a pair differ.
                let speed = if at % 4 < 2 { 1.0 } else { 2.0_f64 };
                entry.slice.yardsticks = InYardsticks {
                    cost: speed.powf(0.5) * if entry.traced { 1.02 } else { 1.0 },
                    model_ns: 100.0 * speed,
                    code_ns: 100.0 * speed * if entry.traced { 1.1 } else { 1.0 },
                };
            }
            tables(&all).expect("text")
        };
        let text = measured(5);
        for part in [
            "costs in yardsticks go as yardsticks ^ 0.500 (fitted)",
            "yardstick model     with palisade     0.00 %, 95 % interval",
            "yardstick much code with palisade     10.00 %, 95 % interval",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(measured(4).contains("was not taken out: too few blocks"));
        let many = measured(10);
        assert!(many.contains("to 10.00 %: NOT AS LONG"), "{many}");
        assert_eq!(many.matches("NOT AS LONG").count(), 1, "{many}");
    }

    #[test]
    fn a_table_names_costs_controls_peers_and_what_does_not_count() {
        let mut all = entries(Variant::Palisade, 0..10, 1.02);
        all.extend(entries(Variant::Bpftrace, 10..20, 1.05));
        all.extend(entries(Variant::Again, 20..30, 1.01));
        all.extend(entries(Variant::Burn, 30..40, 1.0 / 0.99));
        let text = tables(&all).expect("text");
        for part in [
            "palisade            9    9803922        - |      2.00%    2.00%  ",
            "palisade: 1 of 10 blocks do not count (stolen or others' time); with them",
            "control none-again throughput: true 0.00 %, 95 % interval 1.00 to 1.00 %: DOES NOT HOLD",
            "control burn       throughput: true 1.01 %",
            "bpftrace against palisade, throughput: 2.94 % (2.94 to 2.94, 9 cycles): costs more",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("serving"));
        let half = entries(Variant::Perf, 0..2, 1.1);
        let text = tables(&half).expect("text");
        assert!(
            text.contains("perf: 1 of 2 blocks do not count (stolen or others' time): TOO MANY"),
            "{text}"
        );
    }
}
