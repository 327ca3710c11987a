//! `palisade leases list | release`.

use super::{Paths, exit, status};
use crate::act;
use crate::boot_clock;
use crate::control::{self, Request};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use palisade_core::LeaseId;

const AFTER_HELP: &str = "\
Examples:
  palisade leases list
  palisade leases release            give everything back, with or without a running agent
  palisade leases release 42         only that one; needs the running agent";

/// Options of `leases`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct LeasesArgs {
    #[command(subcommand)]
    command: LeasesCommand,
}

#[derive(Debug, Subcommand)]
enum LeasesCommand {
    /// What is held: by the running agent, or by one that died.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put back what a lease changed.
    Release {
        /// Which; all if absent.
        lease: Option<u64>,
    },
}

pub(super) fn run(args: &LeasesArgs, paths: &Paths) -> Result<u8> {
    match &args.command {
        LeasesCommand::List { json } => {
            let leases = held(paths)?;
            if *json {
                println!("{leases}");
            } else {
                status::print_leases(&leases, boot_clock::now_ns());
            }
            Ok(exit::OK)
        }
        LeasesCommand::Release { lease } => release(*lease, paths),
    }
}

/// From the running agent, else from the journal that the last one left.
fn held(paths: &Paths) -> Result<serde_json::Value> {
    let asked = paths.call(&Request::Leases);
    match &asked {
        Err(error) if exit::of(error) == exit::AGENT => {}
        _ => return asked,
    }
    let dir = paths.resolve()?.leases_dir();
    let leases = act::journal::peek(&dir)
        .with_context(|| format!("cannot read the lease journal in {}", dir.display()))?;
    if !leases.is_empty() {
        eprintln!("palisade: no agent is running; to put everything back: palisade leases release");
    }
    Ok(serde_json::to_value(leases)?)
}

fn release(lease: Option<u64>, paths: &Paths) -> Result<u8> {
    let folders = paths.resolve()?;
    // With the lock in hand no agent can start in between.
    let lock = match control::lock(&folders.run_dir) {
        Ok(lock) if lease.is_none() => lock,
        _ => {
            let said = paths.call(&Request::LeaseRelease {
                id: lease.map(LeaseId),
            })?;
            println!("{}", said.as_str().unwrap_or_default());
            return Ok(exit::OK);
        }
    };
    let dir = folders.leases_dir();
    let (released, recovered) = act::release_all(&dir)
        .with_context(|| format!("cannot read the lease journal in {}", dir.display()))?;
    drop(lock);
    if recovered.damaged > 0 {
        eprintln!(
            "palisade: {} damaged line(s) in the journal were passed over",
            recovered.damaged
        );
    }
    let mut code = exit::OK;
    for one in &released {
        let outcome = serde_json::to_string(&one.outcome)?;
        println!(
            "lease {} on {}: {outcome}",
            one.lease.id.0, one.lease.cgroup
        );
        if !act::restore::is_final(&one.outcome) {
            code = exit::FAILED;
        }
    }
    println!(
        "{} lease(s) dealt with; no agent is running",
        released.len()
    );
    Ok(code)
}
