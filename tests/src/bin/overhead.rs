//! `./x bench overhead`: what tracing costs, by paired and interleaved runs.
//!
//! Each round runs every variant once, in an order that a seeded generator shuffles; under each variant all loads
//! run one after another. A variant is compared with the runs without tracing of the same round.

use anyhow::{Context, Result, bail};
use palisade_tests::bench::arguments::Arguments;
use palisade_tests::bench::stats::{Overhead, Random, median};
use palisade_tests::bench::tracers::{Tracer, Variant};
use palisade_tests::bench::workloads::{Prepared, Workload};
use palisade_tests::bench::{python, report};
use palisade_tests::cannot_run_live;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "overhead [--minutes 8] [--seconds 2] [--seed 1] [--file RESULTS.jsonl] \
                     [--workloads serving,hackbench,switches,calls] [--variants none,none-again,palisade,…]";

/// One run of one load under one variant.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Things a second.
    rate: f64,
    /// Nanoseconds; 0 if it is not told.
    p99_ns: f64,
    /// CPU time of the load and the tracer together for one thing made, nanoseconds.
    cpu_ns: f64,
    /// CPUs that the tracer's own processes used meanwhile.
    tracer_cpus: f64,
}

/// Runs of one variant and load, by round.
type Runs = BTreeMap<(Workload, Variant), BTreeMap<usize, Run>>;

struct Bench {
    loads: Vec<(Workload, Prepared)>,
    variants: Vec<Variant>,
    /// Why a load or a variant does not run.
    absent: Vec<(&'static str, String)>,
    seconds: f64,
    runs: Runs,
    raw: File,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::of_process(
        &[
            "minutes",
            "seconds",
            "seed",
            "workloads",
            "variants",
            "file",
        ],
        USAGE,
    )?;
    if let Some(why) = cannot_run_live() {
        println!("SKIPPED overhead: {why}");
        return Ok(ExitCode::SUCCESS);
    }
    if report::bpf_stats() != Some(false) {
        bail!("bpf_stats is on, which costs time itself: sysctl kernel.bpf_stats_enabled=0");
    }
    println!("{}", report::machine());
    let minutes: f64 = arguments.value("minutes", 8.0)?;
    let mut bench = Bench::prepare(&arguments)?;
    let mut random = Random::new(arguments.value("seed", 1)?);
    let (start, ticks) = (Instant::now(), report::cpu_ticks());
    let budget = Duration::try_from_secs_f64(minutes * 60.0)?;
    let mut round = 0;
    loop {
        let begun = Instant::now();
        bench.round(round, &mut random)?;
        round += 1;
        // A round that would not end in time is not begun.
        if start.elapsed() + begun.elapsed() > budget {
            break;
        }
    }
    let after = report::cpu_ticks();
    println!(
        "{round} rounds in {:.1} min; taken away by the hypervisor: {:.2} % of the CPU time\n",
        start.elapsed().as_secs_f64() / 60.0,
        100.0 * after.1.saturating_sub(ticks.1) as f64
            / after.0.saturating_sub(ticks.0).max(1) as f64
    );
    bench.report();
    Ok(ExitCode::SUCCESS)
}

impl Bench {
    /// Starts the loads and finds out what cannot run here.
    fn prepare(arguments: &Arguments) -> Result<Self> {
        let cpus = cpus()?;
        println!(
            "CPUs {cpus:?}: pinned to one each are model servers, pairs of threads and driver callers; \
             client, hackbench and tracers are not pinned\n"
        );
        let mut absent = Vec::new();
        let mut loads = Vec::new();
        for workload in Workload::ALL {
            if !arguments.lists("workloads", workload.name()) {
                continue;
            }
            match Prepared::new(workload, &cpus) {
                Ok(prepared) => loads.push((workload, prepared)),
                Err(error) => absent.push((workload.name(), format!("{error:#}"))),
            }
        }
        let mut variants = Vec::new();
        for variant in Variant::ALL {
            if !arguments.lists("variants", variant.name()) && variant != Variant::None {
                continue;
            }
            // A start and an end that count for nothing: they show whether it can be run at all.
            match Tracer::start(variant).and_then(Tracer::end) {
                Ok(()) => variants.push(variant),
                Err(error) => absent.push((variant.name(), format!("{error:#}"))),
            }
        }
        std::fs::create_dir_all(python::kept())?;
        let file = arguments.text("file").map_or_else(
            || python::kept().join("overhead.jsonl"),
            std::path::PathBuf::from,
        );
        let raw = File::create(&file).with_context(|| file.display().to_string())?;
        println!("every run is written to {}", file.display());
        Ok(Self {
            loads,
            variants,
            absent,
            seconds: arguments.value("seconds", 2.0)?,
            runs: Runs::new(),
            raw,
        })
    }

    fn round(&mut self, round: usize, random: &mut Random) -> Result<()> {
        let mut order = self.variants.clone();
        random.shuffle(&mut order);
        for variant in order {
            let tracer = Tracer::start(variant)
                .with_context(|| format!("{} ran before and does not now", variant.name()))?;
            for (workload, prepared) in &self.loads {
                let (own, load, start) =
                    (tracer.cpu_seconds(), prepared.cpu_seconds(), Instant::now());
                let made = prepared.run(self.seconds)?;
                let own = tracer.cpu_seconds() - own;
                let load = prepared.cpu_seconds() - load;
                let run = Run {
                    rate: made.rate(),
                    p99_ns: made.p99_ns as f64,
                    cpu_ns: (own + load) * 1e9 / made.made as f64,
                    tracer_cpus: own / start.elapsed().as_secs_f64(),
                };
                writeln!(
                    self.raw,
                    "{{\"round\":{round},\"workload\":\"{}\",\"variant\":\"{}\",\"rate\":{},\"p50_ns\":{},\"p99_ns\":{},\"cpu_ns\":{},\"tracer_cpus\":{}}}",
                    workload.name(),
                    variant.name(),
                    run.rate,
                    made.p50_ns,
                    run.p99_ns,
                    run.cpu_ns,
                    run.tracer_cpus
                )?;
                self.runs
                    .entry((*workload, variant))
                    .or_default()
                    .insert(round, run);
            }
            tracer.end()?;
        }
        Ok(())
    }

    fn report(&self) {
        for (workload, _) in &self.loads {
            println!("{}: {}", workload.name(), workload.what());
            println!(
                "  {:<14} {:>6} {:>11} {:>9} | {} | {} | {} | {:>8}",
                "variant",
                "rounds",
                "median/s",
                "p99 µs",
                title("overhead"),
                title("CPU time"),
                title("p99"),
                "own CPU"
            );
            for variant in &self.variants {
                self.line(*workload, *variant);
            }
            println!();
        }
        for variant in &self.variants {
            println!("{:<14} {}", variant.name(), variant.what());
        }
        for (what, why) in &self.absent {
            println!("{what:<14} NOT RUN: {why}");
        }
        println!(
            "overhead: throughput without tracing over throughput with it, less 1. CPU time: of load and tracer together for \
             one thing made, likewise. p99: likewise, of the latency. Each: geometric mean over the rounds and the one-sided \
             upper 95 % bound (Student's t); `?`: unresolved, the bound is over 0.3 points above the mean."
        );
    }

    fn line(&self, workload: Workload, variant: Variant) {
        let Some(runs) = self.runs.get(&(workload, variant)) else {
            return;
        };
        let rates: Vec<f64> = runs.values().map(|run| run.rate).collect();
        let p99: Vec<f64> = runs.values().map(|run| run.p99_ns / 1e3).collect();
        let cpus: Vec<f64> = runs.values().map(|run| run.tracer_cpus).collect();
        let throughput = self.compare(workload, variant, |reference, run| {
            reference.rate / run.rate
        });
        let cpu = self.compare(workload, variant, |reference, run| {
            run.cpu_ns / reference.cpu_ns
        });
        let latency = self.compare(workload, variant, |reference, run| {
            run.p99_ns / reference.p99_ns
        });
        let p99 = median(&p99);
        let p99 = if p99 > 0.0 {
            format!("{p99:.1}")
        } else {
            "-".to_owned()
        };
        println!(
            "  {:<14} {:>6} {:>11.0} {p99:>9} | {} | {} | {} | {:>7.2}%",
            variant.name(),
            runs.len(),
            median(&rates),
            columns(throughput),
            columns(cpu),
            columns(latency),
            100.0 * median(&cpus)
        );
    }

    /// The overhead over the reference of the same rounds; `None` for the reference itself.
    fn compare(
        &self,
        workload: Workload,
        variant: Variant,
        quotient: impl Fn(&Run, &Run) -> f64,
    ) -> Option<Overhead> {
        if variant == Variant::None {
            return None;
        }
        let first = self.runs.get(&(workload, Variant::None))?;
        // The second reference is compared with the first; everything else with both.
        let second = self
            .runs
            .get(&(workload, Variant::Again))
            .filter(|_| variant != Variant::Again);
        let logs: Vec<f64> = self
            .runs
            .get(&(workload, variant))?
            .iter()
            .filter_map(|(round, run)| {
                let references: Vec<f64> = [Some(first), second]
                    .into_iter()
                    .flatten()
                    .filter_map(|runs| runs.get(round))
                    .map(|reference| quotient(reference, run).ln())
                    .collect();
                let count = references.len() as f64;
                (count > 0.0).then(|| references.iter().sum::<f64>() / count)
            })
            .collect();
        Overhead::of(&logs)
    }
}

fn title(what: &str) -> String {
    format!("{what:>8} {:>8}  ", "95 % ≤")
}

fn columns(overhead: Option<Overhead>) -> String {
    match overhead {
        None => format!("{:>8} {:>8}  ", "", ""),
        Some(found) => format!(
            "{:>7.2}% {:>7.2}% {}",
            found.mean,
            found.upper,
            if found.resolved() { " " } else { "?" }
        ),
    }
}

/// The CPUs that this process may use.
fn cpus() -> Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect())
}
