//! `./x bench footprint`: what the agent itself takes: start, memory, CPU when idle; and, with `--soak`, whether its
//! memory stays flat under process churn.

use anyhow::{Context, Result};
use palisade::control;
use palisade_tests::bench::arguments::Arguments;
use palisade_tests::bench::loads::Load;
use palisade_tests::bench::memory::{Held, possible_cpus, resident};
use palisade_tests::bench::report;
use palisade_tests::bench::stats::{median, slope};
use palisade_tests::bench::tracers::configuration;
use palisade_tests::{Agent, PATIENCE, TestCgroup, cannot_run_live};
use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "footprint [--idle-seconds 30] [--starts 5] [--soak MINUTES] [--churn 200]";
/// Processes that each map that grows holds, and CPUs, of the host that is computed.
const LARGE: (u64, u64) = (128, 4096);
/// Between two looks at the memory in a soak.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
const MIB: f64 = 1024.0 * 1024.0;

fn main() -> Result<ExitCode> {
    let arguments = Arguments::of_process(&["idle-seconds", "starts", "soak", "churn"], USAGE)?;
    if let Some(why) = cannot_run_live() {
        println!("SKIPPED footprint: {why}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", report::machine());
    if arguments.text("soak").is_some() {
        let minutes: f64 = arguments.value("soak", 10.0)?;
        soak(
            Duration::try_from_secs_f64(minutes * 60.0)?,
            arguments.value("churn", 200)?,
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let idle = Duration::from_secs(arguments.value("idle-seconds", 30)?);
    let starts: u32 = arguments.value("starts", 5)?;
    for (what, all_signals) in [("default policies", false), ("all signals", true)] {
        println!("\n{what}");
        start(starts, all_signals)?;
        memory_and_idle(idle, all_signals)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Time from the agent's start to the first record that it tells of.
fn start(times: u32, all_signals: bool) -> Result<()> {
    let mut found = Vec::new();
    for _ in 0..times {
        let cgroup = TestCgroup::new("first-event")?;
        // Something to see at every moment.
        let mut calls = Load::start(&cgroup, &["calls", "1000", "20"])?;
        calls.go()?;
        let begun = Instant::now();
        let agent = Agent::start(&configuration(all_signals))?;
        loop {
            let status: serde_json::Value =
                serde_json::from_str(&agent.call(&["status", "--json"])?)?;
            let records = &status["sensors"]["stats"]["records"];
            if records.as_u64().context("the status tells no records")? > 0 {
                break;
            }
            anyhow::ensure!(begun.elapsed() < PATIENCE, "no record in {PATIENCE:?}");
        }
        found.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    println!(
        "  start to first event told: median {:.0} ms, longest {:.0} ms of {times} (includes the end of a 100 ms window, \
         and asking for the status); aim: 1000 ms",
        median(&found),
        found.iter().copied().fold(0.0, f64::max)
    );
    Ok(())
}

fn memory_and_idle(idle: Duration, all_signals: bool) -> Result<()> {
    let agent = Agent::start(&configuration(all_signals))?;
    let pid = agent.ward.pid();
    // Windows have ended and every buffer has been used once.
    std::thread::sleep(Duration::from_secs(2));
    let used = busy(pid, idle, || Ok(()))?;
    let resident = memory(pid)?;
    let children: u64 = children(pid)
        .into_iter()
        .filter_map(|pid| memory(pid).ok())
        .sum();
    let held = Held::by(pid);
    println!(
        "  RSS {:.1} MiB, keeper {:.1} MiB; eBPF maps {:.1} MiB ({} maps), programs {:.1} MiB ({}); in all {:.1} MiB, aim: 64 MiB",
        resident as f64 / MIB,
        children as f64 / MIB,
        held.reported() as f64 / MIB,
        held.maps.len(),
        held.program_bytes() as f64 / MIB,
        held.programs.len(),
        (resident + children + held.reported() + held.program_bytes()) as f64 / MIB
    );
    let here = possible_cpus();
    let (cpus, processes) = LARGE;
    println!(
        "  maps computed: here {:.1} MiB with nothing in the growing ones; with {cpus} CPUs and {processes} processes in \
         each: {:.1} MiB; with every entry of every map in use there: {:.1} MiB",
        held.computed(here, 0) as f64 / MIB,
        held.computed(cpus, processes) as f64 / MIB,
        held.computed(cpus, u64::MAX) as f64 / MIB
    );
    let mut largest: Vec<_> = held.maps.values().collect();
    largest.sort_by_key(|map| std::cmp::Reverse(map.bytes(cpus, processes)));
    for map in largest.iter().take(6) {
        println!(
            "    type {:>2}, key {:>3}, value {:>4}{}, {:>8} entries{}: {:.2} MiB here, {:.1} MiB there",
            map.kind,
            map.key,
            map.value,
            if map.per_cpu() { " a CPU" } else { "      " },
            map.entries,
            if map.on_demand() { " on demand" } else { "" },
            map.reported as f64 / MIB,
            map.bytes(cpus, processes) as f64 / MIB
        );
    }
    println!(
        "  idle CPU over {} s: {:.2} % of one CPU (the host's other work is watched too), aim: 0.5 %",
        idle.as_secs(),
        used * 100.0
    );
    let socket = agent.dir.path().join("run/control.sock");
    let used = busy(pid, idle, || {
        control::call(&socket, &control::Request::Metrics)?;
        Ok(())
    })?;
    println!(
        "  asked for the metrics once a second, as `palisade top` does: {:.2} % of one CPU, RSS {:.1} MiB, eBPF maps {:.1} MiB",
        used * 100.0,
        memory(pid)? as f64 / MIB,
        Held::by(pid).reported() as f64 / MIB
    );
    Ok(())
}

/// Share of a CPU that a process uses while `each` is done once a second.
fn busy(pid: u32, length: Duration, mut each: impl FnMut() -> Result<()>) -> Result<f64> {
    let (begun, before) = (Instant::now(), cpu_time(pid)?);
    while begun.elapsed() < length {
        each()?;
        std::thread::sleep(Duration::from_secs(1).min(length));
    }
    let used = cpu_time(pid)?.saturating_sub(before);
    Ok(used.as_secs_f64() / begun.elapsed().as_secs_f64())
}

/// Memory of the agent while processes come and go.
fn soak(length: Duration, churn: u64) -> Result<()> {
    let cgroup = TestCgroup::new("soak")?;
    let seconds = length.as_secs_f64().to_string();
    let mut load = Load::start(&cgroup, &["churn", &churn.to_string(), &seconds])?;
    let agent = Agent::start(&configuration(true))?;
    let pid = agent.ward.pid();
    load.go()?;
    println!(
        "soak: {churn} processes a second for {:.1} min, all signals on\n{:>8} {:>10} {:>10}",
        length.as_secs_f64() / 60.0,
        "minute",
        "RSS MiB",
        "maps MiB"
    );
    let begun = Instant::now();
    let (mut resident, mut maps, mut told) = (Vec::new(), Vec::new(), 0.0);
    while begun.elapsed() < length {
        let minute = begun.elapsed().as_secs_f64() / 60.0;
        resident.push((minute, memory(pid)? as f64 / MIB));
        maps.push((minute, Held::by(pid).reported() as f64 / MIB));
        if minute >= told {
            let (rss, map) = (resident[resident.len() - 1].1, maps[maps.len() - 1].1);
            println!("{minute:>8.1} {rss:>10.2} {map:>10.2}");
            told += (length.as_secs_f64() / 600.0).max(0.1);
        }
        std::thread::sleep(SAMPLE_EVERY.min(length / 10));
    }
    let made = load.made()?;
    load.finish()?;
    // Tables fill up at first: ended processes are remembered for half a minute.
    let second_half = |points: &[(f64, f64)]| slope(&points[points.len() / 2..]);
    println!(
        "{} processes; slope over the second half: RSS {:+.3} MiB a minute, maps {:+.3} MiB a minute",
        made.made,
        second_half(&resident),
        second_half(&maps)
    );
    Ok(())
}

/// Resident memory, bytes.
fn memory(pid: u32) -> Result<u64> {
    resident(pid).context("the agent is gone")
}

/// CPU time so far, of all its threads.
fn cpu_time(pid: u32) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(')').context("stat")?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

fn children(pid: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}
