//! Where a workload runs and that it does not outlive its parent.
//!
//! Must not create, move or remove cgroups: it only enters those that it was given.

use crate::Place;
use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Set on the second start of the same command line, inside the cgroups.
const ENTERED: &str = "PALISADE_WORKLOAD_ENTERED";

/// Ties this process to its parent and makes SIGTERM end it.
pub(crate) fn prepare() -> Result<()> {
    let parent = Pid::parent();
    prctl::set_pdeathsig(Signal::SIGKILL).context("prctl(PR_SET_PDEATHSIG)")?;
    // Had the parent died just before the call above, nobody would ever end this process.
    if Pid::parent() != parent {
        bail!("the parent is gone");
    }
    // A signal mask is inherited through exec; a parent that blocks SIGTERM must not make us immortal.
    SigSet::all().thread_unblock().context("sigprocmask")?;
    Ok(())
}

/// Joins the cgroups, pins the process and starts the program anew there.
///
/// The second `exec` matters: an observer that watches these cgroups then sees the workload
/// being started in them, as it would with a container.
pub(crate) fn enter(place: &Place) -> Result<()> {
    if std::env::var_os(ENTERED).is_some() {
        return Ok(());
    }
    for dir in &place.join {
        let procs = dir.join("cgroup.procs");
        std::fs::OpenOptions::new()
            .write(true)
            .open(&procs)
            .and_then(|mut file| file.write_all(b"0"))
            .with_context(|| format!("joining {}", dir.display()))?;
    }
    if let Some(cpu) = place.cpu {
        let mut set = CpuSet::new();
        set.set(cpu)
            .with_context(|| format!("CPU {cpu} out of range"))?;
        sched_setaffinity(Pid::from_raw(0), &set)
            .with_context(|| format!("pinning to CPU {cpu}"))?;
    }
    if place.join.is_empty() {
        return Ok(());
    }
    let exe = std::env::current_exe().context("own executable")?;
    let error = Command::new(exe)
        .args(std::env::args_os().skip(1))
        .env(ENTERED, "1")
        .exec();
    Err(error).context("starting again inside the cgroup")
}

#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Becomes another program. It is asked to end (SIGTERM, not SIGKILL) when the caller dies, so
/// that it can put back what it changed.
pub(crate) fn exec(args: &ExecArgs) -> Result<()> {
    let (program, rest) = args.command.split_first().context("no program")?;
    prctl::set_pdeathsig(Signal::SIGTERM).context("prctl(PR_SET_PDEATHSIG)")?;
    let error = Command::new(program).args(rest).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

/// Prints one JSON line; the reader's end closing is the signal to stop.
pub(crate) fn emit(value: &serde_json::Value) -> Result<()> {
    let mut line = String::new();
    writeln!(line, "{value}")?;
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())
        .and_then(|()| out.flush())
        .context("standard output")
}
