//! Loading a model file the way that inference servers do: a shared, populated mapping.

use crate::cpu::End;
use crate::place;
use anyhow::{Context, Result, bail};
use clap::Args;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use serde_json::json;
use std::ffi::c_void;
use std::fs::File;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

#[derive(Args, Debug)]
pub(crate) struct ReloadArgs {
    /// The model file; it may be sparse
    #[arg(long)]
    model: PathBuf,
    /// Pause between two loads, milliseconds
    #[arg(long, default_value_t = 0)]
    gap_ms: u64,
    /// Drop the file from the page cache before each load, as a host short of memory would
    #[arg(long)]
    cold: bool,
    /// Loads before the file stays mapped (default: without end)
    #[arg(long)]
    loads: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct LoadersArgs {
    /// The model file; it may be sparse
    #[arg(long)]
    model: PathBuf,
    /// How many processes load it at the same time
    #[arg(long, default_value_t = 4)]
    workers: u32,
}

/// Maps the file over and over, opening it anew each time.
pub(crate) fn run_reload(args: &ReloadArgs, end: End) -> Result<()> {
    place::emit(&json!({ "event": "started", "pid": std::process::id() }))?;
    let mut loads = 0;
    while !end.reached() {
        let start = Instant::now();
        let mapping = Mapping::load(&args.model, args.cold)?;
        loads += 1;
        place::emit(&json!({
            "event": "load",
            "loads": loads,
            "bytes": mapping.size.get(),
            "took_us": start.elapsed().as_micros() as u64,
        }))?;
        if args.loads == Some(loads) {
            while !end.reached() {
                end.sleep(Duration::from_secs(1));
            }
        }
        drop(mapping);
        end.sleep(Duration::from_millis(args.gap_ms));
    }
    Ok(())
}

/// Starts the workers and ends with them; they run where this process runs.
pub(crate) fn run_loaders(args: &LoadersArgs, end: End) -> Result<()> {
    let exe = std::env::current_exe().context("own executable")?;
    let mut workers = Vec::new();
    for _ in 0..args.workers {
        let mut command = Command::new(&exe);
        command
            .args(["reload-loop", "--loads", "1", "--model"])
            .arg(&args.model);
        workers.push(command.spawn().context("starting a worker")?);
    }
    let mut failed = false;
    while !end.reached() && !workers.is_empty() {
        let mut running = Vec::new();
        for mut worker in workers {
            match worker.try_wait().context("waiting for a worker")? {
                Some(status) => failed |= !status.success(),
                None => running.push(worker),
            }
        }
        workers = running;
        end.sleep(Duration::from_millis(50));
    }
    for mut worker in workers {
        // Fails only if the worker has just ended by itself.
        let _ = worker.kill();
        worker.wait().context("waiting for a worker")?;
    }
    if failed {
        bail!("a worker failed");
    }
    Ok(())
}

/// A file, mapped and present in memory.
struct Mapping {
    address: NonNull<c_void>,
    size: NonZeroUsize,
}

impl Mapping {
    fn load(path: &Path, cold: bool) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        if cold {
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .context("posix_fadvise")?;
        }
        let size = NonZeroUsize::new(file.metadata()?.len() as usize)
            .context("the model file is empty")?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: mapping a file has no safe wrapper because others may change or cut it; the
        // memory is never read from here, the kernel alone touches it. The address is the kernel's choice.
        let address = unsafe { mmap(None, size, ProtFlags::PROT_READ, flags, &file, 0) }
            .with_context(|| format!("mapping {}", path.display()))?;
        Ok(Mapping { address, size })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: unmapping needs `unsafe`; the range is the mapping made in `load`, and no
        // reference into it was ever made. A failure leaves it mapped until exit.
        let _ = unsafe { munmap(self.address, self.size.get()) };
    }
}
