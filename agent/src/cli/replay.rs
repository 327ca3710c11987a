//! `palisade replay`: policies over a recording.

use super::style::escape;
use super::{Paths, exit};
use crate::replay;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

const AFTER_HELP: &str = "\
Examples:
  palisade run --config palisade.toml --record today.pal     make a recording
  palisade replay today.pal --config palisade.toml           what would these policies have decided?
  palisade replay today.pal --json > decisions.jsonl         one decision a line, the same bytes each time";

/// Options of `replay`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct ReplayArgs {
    /// The recording.
    file: PathBuf,
    /// As JSON lines.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ReplayArgs, paths: &Paths) -> Result<u8> {
    let config = paths.load_without_host()?;
    let outcome = replay::replay(&args.file, &config)?;
    for decision in &outcome.decisions {
        if args.json {
            println!("{}", serde_json::to_string(decision)?);
        } else {
            let seconds = decision.time_ns.saturating_sub(outcome.first_ns) as f64 / 1e9;
            println!("replayed {seconds:8.2} s  {}", escape(&decision.in_words()));
        }
    }
    if !args.json {
        println!(
            "replayed {} batches, {} records, {} decisions",
            outcome.batches,
            outcome.records,
            outcome.decisions.len()
        );
    }
    for note in &outcome.notes {
        eprintln!("palisade: {}", escape(note));
    }
    Ok(exit::OK)
}
