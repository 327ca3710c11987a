//! Loading a model file the way that inference servers do: a shared, populated mapping, or reads.

use crate::cpu::End;
use crate::place;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use serde_json::json;
use std::ffi::c_void;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// Length of a read, and alignment of its buffer, which `O_DIRECT` wants.
const READ_BYTES: usize = 4 << 20;
const ALIGNMENT: usize = 4096;

/// How the content comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum How {
    /// By a shared, populated mapping
    Map,
    /// By `read`
    Read,
    /// By `read` past the page cache (`O_DIRECT`)
    Direct,
}

impl How {
    fn word(self) -> &'static str {
        match self {
            How::Map => "map",
            How::Read => "read",
            How::Direct => "direct",
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct ReloadArgs {
    /// The model file; it may be sparse
    #[arg(long)]
    model: PathBuf,
    /// How its content comes in
    #[arg(long, value_enum, default_value = "map")]
    how: How,
    /// Pause between two loads, milliseconds
    #[arg(long, default_value_t = 0)]
    gap_ms: u64,
    /// Drop the file from the page cache before each load, as a host short of memory would
    #[arg(long)]
    cold: bool,
    /// Loads before it rests, with the last one in memory (default: without end)
    #[arg(long)]
    loads: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct LoadersArgs {
    /// The model file; it may be sparse
    #[arg(long)]
    model: PathBuf,
    /// How its content comes in
    #[arg(long, value_enum, default_value = "map")]
    how: How,
    /// How many processes load it and keep it at the same time
    #[arg(long, default_value_t = 4)]
    workers: u32,
    /// Time between two workers' starts, milliseconds
    #[arg(long, default_value_t = 0)]
    stagger_ms: u64,
}

/// Loads the file over and over, opening it anew each time.
pub(crate) fn run_reload(args: &ReloadArgs, end: End) -> Result<()> {
    place::emit(&json!({ "event": "started", "pid": std::process::id() }))?;
    let mut loads = 0;
    while !end.reached() {
        let start = Instant::now();
        let loaded = load(&args.model, args.how, args.cold)?;
        loads += 1;
        place::emit(&json!({
            "event": "load",
            "loads": loads,
            "bytes": loaded.bytes,
            "took_us": start.elapsed().as_micros() as u64,
        }))?;
        if args.loads == Some(loads) {
            while !end.reached() {
                end.sleep(Duration::from_secs(1));
            }
        }
        drop(loaded);
        end.sleep(Duration::from_millis(args.gap_ms));
    }
    Ok(())
}

/// Starts the workers and ends with them; they run where this process runs.
pub(crate) fn run_loaders(args: &LoadersArgs, end: End) -> Result<()> {
    let exe = std::env::current_exe().context("own executable")?;
    let mut workers = Vec::new();
    for number in 0..args.workers {
        if number > 0 {
            end.sleep(Duration::from_millis(args.stagger_ms));
        }
        let mut command = Command::new(&exe);
        command
            .args(["reload-loop", "--loads", "1", "--how", args.how.word()])
            .arg("--model")
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

/// What a load brought in.
struct Loaded {
    bytes: u64,
    _mapping: Option<Mapping>,
}

fn load(path: &Path, how: How, cold: bool) -> Result<Loaded> {
    let direct = if how == How::Direct {
        nix::libc::O_DIRECT
    } else {
        0
    };
    let mut file = File::options()
        .read(true)
        .custom_flags(direct)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    if cold {
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .context("posix_fadvise")?;
    }
    if how == How::Map {
        let mapping = Mapping::new(&file, path)?;
        return Ok(Loaded {
            bytes: mapping.size.get() as u64,
            _mapping: Some(mapping),
        });
    }
    let mut room = vec![0; READ_BYTES + ALIGNMENT];
    let start = room.as_ptr().align_offset(ALIGNMENT);
    let piece = &mut room[start..start + READ_BYTES];
    let mut bytes = 0;
    loop {
        match file
            .read(piece)
            .with_context(|| format!("reading {}", path.display()))?
        {
            0 => break,
            length => bytes += length as u64,
        }
    }
    Ok(Loaded {
        bytes,
        _mapping: None,
    })
}

/// A file, mapped and present in memory.
struct Mapping {
    address: NonNull<c_void>,
    size: NonZeroUsize,
}

impl Mapping {
    fn new(file: &File, path: &Path) -> Result<Self> {
        let size = NonZeroUsize::new(file.metadata()?.len() as usize)
            .context("the model file is empty")?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: mapping a file has no safe wrapper because others may change or cut it; the
        // memory is never read from here, the kernel alone touches it. The address is the kernel's choice.
        let address = unsafe { mmap(None, size, ProtFlags::PROT_READ, flags, file, 0) }
            .with_context(|| format!("mapping {}", path.display()))?;
        Ok(Mapping { address, size })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: unmapping needs `unsafe`; the range is the mapping made in `new`, and no
        // reference into it was ever made. A failure leaves it mapped until exit.
        let _ = unsafe { munmap(self.address, self.size.get()) };
    }
}
