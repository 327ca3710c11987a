//! `palisade run`.

use super::record::max_size;
use super::{Paths, exit};
use crate::recording::{DEFAULT_MAX_BYTES, Destination};
use crate::runtime::{self, RunOptions};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use tracing_subscriber::EnvFilter;

const AFTER_HELP: &str = "\
Examples:
  palisade run --config /etc/palisade/palisade.toml
  palisade run --config palisade.toml --check              only check the configuration and the policies
  palisade run --config palisade.toml --record day.arrows   keep the events for `palisade replay`
  palisade run --record day.arrows --max-size 20GiB         let that file become larger than 4GiB

It stops in order on SIGTERM and SIGINT: every lease is undone first. The log goes to standard error; PALISADE_LOG
sets its level (error, warn, info, debug; default info).";

/// Options of `run`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct RunArgs {
    /// Keep the run's events in this file.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// How large that file may become, like 512MiB; then the recording ends, and the agent goes on [default: 4GiB].
    #[arg(long, value_name = "SIZE", value_parser = max_size, requires = "record")]
    max_size: Option<u64>,
    /// Check the configuration and every policy, then end.
    #[arg(long)]
    check: bool,
}

pub(super) fn run(args: &RunArgs, paths: &Paths) -> Result<u8> {
    start_logging();
    let config = paths.load()?;
    if args.check {
        for policy in &config.policies {
            super::policy::check_source(&runtime::options::policy_source(policy))?;
        }
        println!(
            "{} is good: {} policies",
            config.source.unwrap_or_default().display(),
            config.policies.len()
        );
        return Ok(exit::OK);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(exit::coded(
            exit::KERNEL,
            "loading eBPF programs and writing cgroups needs root; run: sudo palisade run",
        ));
    }
    let max_bytes = args.max_size.unwrap_or(DEFAULT_MAX_BYTES);
    let record = args.record.clone();
    let record = record.map(|path| Destination { path, max_bytes });
    runtime::run(&config, &RunOptions { record })
}

pub(super) fn start_logging() {
    let filter = EnvFilter::try_from_env("PALISADE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // A second initialisation (tests) keeps the first.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal)
        .with_target(false)
        .try_init();
}
