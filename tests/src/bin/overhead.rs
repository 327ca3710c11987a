//! `./x bench overhead`: what tracing costs, by paired slices of loads that stay up while tracers come and go.
//!
//! What a block is, and why: `palisade_tests::bench::paired`. Here the slices are run.

use anyhow::{Context, Result, bail};
use palisade_tests::bench::arguments::Arguments;
use palisade_tests::bench::paired::{Entry, FORM, Slice, append, cycle, order};
use palisade_tests::bench::stats::{Random, median};
use palisade_tests::bench::table::tables;
use palisade_tests::bench::tracers::{Tracer, Variant};
use palisade_tests::bench::workloads::{Prepared, Workload};
use palisade_tests::bench::{python, report};
use palisade_tests::{TestCgroup, cannot_run_live};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "overhead [--minutes 30] [--seconds 1] [--seed 1] [--file RESULTS.jsonl] \
                     [--loads serving,yardstick,hackbench,switches,calls] [--variants none-again,burn,palisade,…], or \
                     overhead --from RESULTS.jsonl[,RESULTS.jsonl…]: only the tables of earlier runs";
/// The load waits while a tracer starts or ends: beside one that takes all CPUs a start takes many times as long. After
/// that the CPUs serve others first for a while, so each load works for this part of a slice's length before its slice:
/// that is not counted.
const SETTLE: f64 = 1.0;
/// The wait is as long before every slice that is not right behind another one, with the variant or without: this many times what the
/// variant's start took at first. Otherwise whatever a machine gains by a rest would be the variant's.
const PAUSE: f64 = 1.25;
/// Time between two lines that say how far it is.
const SAYS_EVERY: Duration = Duration::from_secs(30);

struct Bench {
    cpus: Vec<usize>,
    seconds: f64,
    /// With what there is to wait before a slice.
    variants: BTreeMap<Variant, Duration>,
    random: Random,
    entries: Vec<Entry>,
    /// Blocks whose variant could not be started or ended, and why the last one could not.
    failed: BTreeMap<Variant, (usize, String)>,
    raw: File,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::of_process(
        &[
            "minutes", "seconds", "seed", "loads", "variants", "file", "from",
        ],
        USAGE,
    )?;
    if let Some(files) = arguments.text("from") {
        print!("{}", tables(&read(files)?)?);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(why) = cannot_run_live() {
        println!("SKIPPED overhead: {why}");
        return Ok(ExitCode::SUCCESS);
    }
    if report::bpf_stats() != Some(false) {
        bail!("bpf_stats is on, which costs time itself: sysctl kernel.bpf_stats_enabled=0");
    }
    println!("{}", report::machine());
    warn_of_others();
    let mut absent = Vec::new();
    let mut bench = Bench::prepare(&arguments, &mut absent)?;
    let minutes: f64 = arguments.value("minutes", 30.0)?;
    let groups: Vec<Vec<Workload>> = Workload::GROUPS
        .iter()
        .map(|group| {
            let given = |load: &&Workload| arguments.lists("loads", load.name());
            group.iter().filter(given).copied().collect()
        })
        .collect();
    let shares: f64 = groups.iter().flatten().map(|load| load.share()).sum();
    for group in groups {
        let share: f64 = group.iter().map(|load| load.share()).sum();
        let budget = Duration::try_from_secs_f64(minutes * 60.0 * share / shares)?;
        let mut loads = Vec::new();
        for load in group {
            match Prepared::new(load, &bench.cpus) {
                Ok(prepared) => loads.push(prepared),
                Err(error) => absent.push((load.name(), format!("{error:#}"))),
            }
        }
        bench.measure(&mut loads, budget)?;
    }
    print!("\n{}", tables(&bench.entries)?);
    for (variant, (blocks, why)) in bench.failed {
        println!("{:<14} {blocks} BLOCKS FAILED: {why}", variant.name());
    }
    for (what, why) in absent {
        println!("{what:<14} NOT RUN: {why}");
    }
    warn_of_others();
    Ok(ExitCode::SUCCESS)
}

fn warn_of_others() {
    let others = report::tracing();
    if !others.is_empty() {
        println!(
            "WARNING: others trace this machine, the figures are of no use: {}",
            others.join(", ")
        );
    }
}

/// The slices of earlier runs.
fn read(files: &str) -> Result<Vec<Entry>> {
    /// What tells another form of the benchmark.
    #[derive(serde::Deserialize)]
    struct Form {
        form: Option<u32>,
    }
    let mut all = Vec::new();
    for file in files.split(',') {
        let lines = BufReader::new(File::open(file).with_context(|| file.to_owned())?).lines();
        let mut run = Vec::new();
        for (at, line) in (1..).zip(lines) {
            let place = || format!("{file}, line {at}");
            let line = line.with_context(place)?;
            let Form { form } = serde_json::from_str(&line).with_context(place)?;
            if form != Some(FORM) {
                bail!(
                    "{}: of another form of the benchmark, measure anew",
                    place()
                );
            }
            run.push(serde_json::from_str(&line).with_context(place)?);
        }
        append(&mut all, run);
    }
    Ok(all)
}

impl Bench {
    /// Finds out what can run here.
    fn prepare(arguments: &Arguments, absent: &mut Vec<(&'static str, String)>) -> Result<Self> {
        let cpus = cpus()?;
        println!(
            "CPUs {cpus:?}: all of a load is pinned, the same on each; tracers are not pinned"
        );
        let mut variants = BTreeMap::new();
        let trial = TestCgroup::new("trial")?;
        for variant in Variant::ALL {
            if !arguments.lists("variants", variant.name()) {
                continue;
            }
            // A start and an end that count for nothing: they show whether it can be run at all.
            let begun = Instant::now();
            let started = Tracer::start(variant, &cpus, &trial);
            let pause = begun.elapsed().mul_f64(PAUSE);
            match started.and_then(Tracer::end) {
                Ok(()) => drop(variants.insert(variant, pause)),
                Err(error) => absent.push((variant.name(), format!("{error:#}"))),
            }
        }
        // The control rests like what it is the control for.
        if let Some(pause) = variants.get(&Variant::Palisade).copied() {
            variants
                .entry(Variant::Again)
                .and_modify(|own| *own = pause);
        }
        std::fs::create_dir_all(python::kept())?;
        let file = arguments
            .text("file")
            .map_or_else(|| python::kept().join("overhead.jsonl"), PathBuf::from);
        let raw = File::create(&file).with_context(|| file.display().to_string())?;
        println!("every slice is written to {}", file.display());
        Ok(Self {
            cpus,
            seconds: arguments.value("seconds", 1.0)?,
            variants,
            random: Random::new(arguments.value("seed", 1)?),
            entries: Vec::new(),
            failed: BTreeMap::new(),
            raw,
        })
    }

    /// Runs blocks of loads until their time is up. In a block's slices they work one after the other.
    fn measure(&mut self, loads: &mut [Prepared], budget: Duration) -> Result<()> {
        let weights: Vec<(Variant, usize)> = self
            .variants
            .keys()
            .map(|variant| {
                let weights = loads.iter().map(|load| load.workload().weight(*variant));
                (*variant, weights.max().unwrap_or(0))
            })
            .filter(|(_, weight)| *weight > 0)
            .collect();
        if weights.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = loads.iter().map(|load| load.workload().name()).collect();
        let names = names.join(", ");
        let (first, start, mut said) = (self.entries.len(), Instant::now(), Instant::now());
        let (mut block, mut longest) = (0, BTreeMap::<Variant, Duration>::new());
        for round in 0.. {
            for variant in cycle(&weights, &mut self.random) {
                // A block that might not end in time is not begun.
                let longest = longest.entry(variant).or_default();
                if start.elapsed() + *longest > budget {
                    println!("{names}: {}", progress(&self.entries[first..], start));
                    return Ok(());
                }
                let begun = Instant::now();
                self.block(loads, variant, (round, block))?;
                *longest = begun.elapsed().max(*longest);
                block += 1;
                if said.elapsed() > SAYS_EVERY {
                    println!("{names}: {}", progress(&self.entries[first..], start));
                    said = Instant::now();
                }
            }
        }
        Ok(())
    }

    fn block(
        &mut self,
        loads: &mut [Prepared],
        variant: Variant,
        (cycle, block): (usize, usize),
    ) -> Result<()> {
        let beside = loads.first().context("no load")?.cgroup();
        let pause = self.variants.get(&variant).copied().unwrap_or_default();
        let burns_itself = variant == Variant::Burn && loads.iter().all(Prepared::burns_itself);
        let started = if burns_itself {
            Variant::Again
        } else {
            variant
        };
        let mut tracer = None;
        // Every block begins with the same: settling, whatever ran before it.
        let mut settled = false;
        for traced in order(&mut self.random) {
            let begun = Instant::now();
            if traced != tracer.is_some() {
                let ended = tracer.take().map_or(Ok(()), Tracer::end);
                let start = || Tracer::start(started, &self.cpus, &beside);
                match ended.and_then(|()| traced.then(start).transpose()) {
                    Ok(running) => tracer = running,
                    Err(error) => {
                        self.fail(variant, &error);
                        return Ok(());
                    }
                }
                for load in loads.iter_mut().filter(|_| burns_itself) {
                    load.burn(traced)?;
                }
                settled = false;
            }
            if !settled {
                std::thread::sleep(pause.saturating_sub(begun.elapsed()));
            }
            for load in &mut *loads {
                let workload = load.workload();
                let seconds = self.seconds * workload.length();
                if !settled {
                    load.run(SETTLE * seconds)?;
                }
                let entry = Entry {
                    form: FORM,
                    workload,
                    cycle,
                    block,
                    variant,
                    pause: pause.as_secs_f64(),
                    traced,
                    slice: self.slice(load, seconds, tracer.as_ref())?,
                };
                writeln!(self.raw, "{}", serde_json::to_string(&entry)?)?;
                self.entries.push(entry);
            }
            settled = true;
        }
        if let Err(error) = tracer.map_or(Ok(()), Tracer::end) {
            self.fail(variant, &error);
        }
        for load in loads.iter_mut().filter(|_| burns_itself) {
            load.burn(false)?;
        }
        Ok(())
    }

    /// A block that is not finished does not count.
    fn fail(&mut self, variant: Variant, error: &anyhow::Error) {
        let (blocks, why) = self.failed.entry(variant).or_default();
        *blocks += 1;
        *why = format!("{error:#}");
    }

    fn slice(&self, load: &mut Prepared, seconds: f64, tracer: Option<&Tracer>) -> Result<Slice> {
        let used = |load: &Prepared| {
            (
                load.cpu_seconds(),
                tracer.map_or(0.0, Tracer::cpu_seconds),
                report::cpu_ticks(),
            )
        };
        let (before, start) = (used(load), Instant::now());
        let made = load.run(seconds)?;
        let (after, wall) = (used(load), start.elapsed().as_secs_f64());
        let (own, tracers) = (after.0 - before.0, after.1 - before.1);
        let ticks = after.2 - before.2;
        let all = wall * self.cpus.len() as f64;
        Ok(Slice {
            rate: made.rate(),
            p50_ns: made.p50_ns as f64,
            p99_ns: made.p99_ns as f64,
            cpu_ns: (own + tracers) * 1e9 / made.made as f64,
            tracer_cpus: tracers / wall,
            cpus: self.cpus.len() as f64,
            yardsticks: made.yardsticks,
            steal: ticks.steal() / all,
            others: ((ticks.busy() - own - tracers) / all).max(0.0),
        })
    }
}

/// How far it is, and whether the machine is quiet enough for it.
fn progress(entries: &[Entry], start: Instant) -> String {
    let part = |of: fn(&Slice) -> f64| {
        let parts: Vec<f64> = entries.iter().map(|entry| of(&entry.slice)).collect();
        100.0 * median(&parts)
    };
    format!(
        "{} slices in {:.1} min; in the median slice {:.1} % of the CPU time stolen, {:.1} % used by others",
        entries.len(),
        start.elapsed().as_secs_f64() / 60.0,
        part(|slice| slice.steal),
        part(|slice| slice.others)
    )
}

/// The CPUs that this process may use.
fn cpus() -> Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect())
}
