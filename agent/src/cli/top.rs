//! `palisade top`: the metrics of every workload, live or once.
//!
//! Invariants: everything comes over the control socket, so that looking needs no privilege of its own
//! beyond the socket's; the terminal is given back however this ends; names from the host are escaped.

mod app;
mod columns;
mod detail;
mod draw;
mod rows;
mod screen;

use super::style::Style;
use super::{Paths, exit};
use crate::control::Request;
use crate::metrics::Snapshot;
use anyhow::{Context, Result};
use clap::Args;
use columns::Sort;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Seconds between two looks, if nothing else is asked for.
const INTERVAL: f64 = 1.0;
/// Seconds that `--once` gathers, if nothing else is asked for.
const GATHER: f64 = 5.0;
/// How much longer than asked `--once` waits for the first numbers.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often `--once` looks whether enough was gathered.
const CHECK: Duration = Duration::from_millis(250);

const AFTER_HELP: &str = "\
Examples:
  palisade top                                  live; q ends it, ? explains the keys
  palisade top --sort runq_p99                  the longest waits on a run queue first
  palisade top --once                           a table, after 5 s of gathering
  palisade top --once --json | jq '.workloads[] | {cgroup, p99: .values.first_byte_p99}'

Every number is explained in docs/metrics.md. The agent gathers them only while somebody looks, and for 15 s after.";

/// Options of `top`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct TopArgs {
    /// Seconds between two looks [default: 1]; with --once the seconds that are gathered [default: 5].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    interval: Option<f64>,
    /// Print the numbers once and end.
    #[arg(long)]
    once: bool,
    /// As JSON.
    #[arg(long, requires = "once")]
    json: bool,
    /// What to sort by: `name`, or the id of a metric that has a column.
    #[arg(long, value_name = "COLUMN", default_value = "cpu", value_parser = Sort::parse)]
    sort: Sort,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        // The agent stops gathering 15 s after the last question.
        Ok(seconds) if (0.1..=10.0).contains(&seconds) => Ok(seconds),
        _ => Err("0.1 to 10 seconds are possible".to_owned()),
    }
}

pub(super) fn run(args: &TopArgs, paths: &Paths) -> Result<u8> {
    if args.once {
        let gathered = gather(paths, args.interval.unwrap_or(GATHER))?;
        if args.json {
            println!("{gathered}");
        } else {
            print!(
                "{}",
                rows::table(&read(gathered)?, args.sort, Style::of_stdout())
            );
        }
        return Ok(exit::OK);
    }
    if !Style::of_stdout().terminal {
        anyhow::bail!("standard output is no terminal; for scripts: palisade top --once --json");
    }
    // The usual errors (no agent, no permission) come before the screen is taken.
    let first = ask(paths)?;
    let app = app::App::new(args.sort, args.interval.unwrap_or(INTERVAL), read(first)?);
    screen::run(app, paths)?;
    Ok(exit::OK)
}

fn ask(paths: &Paths) -> Result<Value> {
    paths.call(&Request::Metrics)
}

fn read(answer: Value) -> Result<Snapshot> {
    serde_json::from_value(answer).context("the agent's answer makes no sense")
}

/// Asks until the numbers are over so many seconds.
fn gather(paths: &Paths, seconds: f64) -> Result<Value> {
    let wanted = seconds.ceil() as u64;
    let until = Instant::now() + Duration::from_secs(wanted) + PATIENCE;
    loop {
        let answer = ask(paths)?;
        if answer["window_s"].as_u64() >= Some(wanted) {
            return Ok(answer);
        }
        if Instant::now() >= until {
            anyhow::bail!("the agent delivers no numbers; look with: palisade status");
        }
        std::thread::sleep(CHECK);
    }
}

#[cfg(test)]
mod tests;
