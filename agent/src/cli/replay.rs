//! `palisade replay`: policies over a recording, or what is in it.

use super::style::{Colour, Style, Table, escape};
use super::{Paths, exit};
use crate::config::units;
use crate::replay::{self, Speed, Summary};
use anyhow::{Context, Result};
use clap::Args;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

const AFTER_HELP: &str = "\
Examples:
  palisade record --for 60s --output day.arrows           make a recording (or: palisade run --record)
  palisade replay day.arrows --summary                    what is in it
  palisade replay day.arrows --config palisade.toml       what would these policies have decided?
  palisade replay day.arrows --speed 10x                  watch it, ten times as fast as it was
  palisade replay day.arrows --json > decisions.jsonl     one decision a line, the same bytes each time";

/// Options of `replay`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct ReplayArgs {
    /// The recording.
    file: PathBuf,
    /// As JSON lines; with --summary as one JSON object.
    #[arg(long)]
    json: bool,
    /// How fast: max, 1x (real time), 10x, 0.5x.
    #[arg(long, default_value = "max", value_name = "SPEED")]
    speed: Speed,
    /// Only say what is in it: no policy runs, no configuration is read.
    #[arg(long, conflicts_with = "speed")]
    summary: bool,
}

pub(super) fn run(args: &ReplayArgs, paths: &Paths) -> Result<u8> {
    if args.summary {
        let summary = replay::summary(&args.file)?;
        if args.json {
            println!("{}", serde_json::to_string(&summary)?);
        } else {
            print(&summary);
        }
        return Ok(exit::OK);
    }
    let config = paths.load_without_host()?;
    let mut out = std::io::stdout().lock();
    let outcome = replay::replay(&args.file, &config, args.speed, &mut |line| {
        if args.json {
            serde_json::to_writer(&mut out, line)?;
            writeln!(out)?;
        } else {
            let seconds = line.since_ns as f64 / 1e9;
            writeln!(
                out,
                "replayed {seconds:8.2} s  {}",
                escape(&line.in_words())
            )?;
        }
        out.flush().context("writing the decisions")
    })?;
    if !args.json {
        writeln!(
            out,
            "replayed {} batches, {} records, {} decisions",
            outcome.batches, outcome.records, outcome.decisions
        )?;
    }
    for note in &outcome.notes {
        eprintln!("palisade: {}", escape(note));
    }
    if outcome.differs.is_empty() {
        let as_far = if outcome.partial {
            ", as far as the recording goes"
        } else {
            ""
        };
        eprintln!("palisade: the decisions are those of the recorded run{as_far}");
    }
    for why in &outcome.differs {
        eprintln!(
            "palisade: the decisions may not be those of the recorded run: {}",
            escape(why)
        );
    }
    Ok(exit::OK)
}

fn print(summary: &Summary) {
    let style = Style::of_stdout();
    let origin = &summary.origin;
    let span = Duration::from_nanos(summary.last_ns.saturating_sub(summary.first_ns));
    println!(
        "recorded  {} by palisade {} on Linux {}",
        match origin.started_unix_ns {
            0 => "at an unknown time".to_owned(),
            wall_ns => crate::audit::clock::rfc3339(wall_ns),
        },
        escape(&origin.agent),
        escape(&origin.kernel)
    );
    println!(
        "spans     {:.1} s in {} batches",
        span.as_secs_f64(),
        summary.batches
    );
    println!(
        "size      {} bytes in {} chunks, {:.1} a record",
        summary.bytes,
        summary.chunks,
        summary.bytes as f64 / summary.records.max(1) as f64
    );
    println!(
        "knows     {} processes, {} workloads, {} files",
        summary.processes, summary.workloads, summary.files
    );
    println!(
        "lost      {} in the kernel, {} to policies, {} and {} notes to the recording",
        summary.lost_in_kernel,
        summary.lost_to_policies,
        summary.lost_to_recording,
        summary.notes_lost
    );
    println!(
        "core      {} times asked by policies, {} ticks, {} other inputs; {} facts about targets, {} answers to policies",
        summary.orders, summary.ticks, summary.inputs, summary.facts, summary.answers
    );
    let end = match (&summary.torn, summary.full, summary.ended) {
        (Some(torn), ..) => style.paint(Colour::Yellow, torn),
        (None, Some(max_bytes), _) => {
            let size = units::show_size(max_bytes);
            let text = format!("at its largest size, {size}: what came after is not in it");
            style.paint(Colour::Yellow, &text)
        }
        (None, None, true) => "closed in order".to_owned(),
        (None, None, false) => style.paint(
            Colour::Yellow,
            "not closed in order: its end may be missing",
        ),
    };
    println!("end       {end}\n");
    let mut table = Table::new(&["KIND", "RECORDS"]);
    for (kind, count) in &summary.kinds {
        table.row([(kind.clone(), None), (count.to_string(), None)]);
    }
    table.row([
        ("all".to_owned(), None),
        (summary.records.to_string(), None),
    ]);
    print!("{}", table.render(style));
    if origin.window_ns > 0 {
        let window = units::show_duration(Duration::from_nanos(origin.window_ns));
        println!("\nSamples are of {window} each.");
    }
}
