//! The watched device of the demo: one pseudo-terminal that service and culprit share.
//!
//! `TIOCGWINSZ` stands in for a GPU driver call: it copies its answer out under a lock of that
//! terminal, so whoever is slow to take the answer makes everybody else wait, as with the
//! global lock of a GPU driver.

use crate::cpu::End;
use anyhow::{Context, Result};
use clap::Args;
use nix::libc::winsize;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

nix::ioctl_read_bad!(tiocgwinsz, nix::libc::TIOCGWINSZ, winsize);
nix::ioctl_write_ptr_bad!(tiocswinsz, nix::libc::TIOCSWINSZ, winsize);

#[derive(Args, Debug)]
pub(crate) struct PollerArgs {
    /// The device, a terminal (/dev/pts/N)
    #[arg(long)]
    device: PathBuf,
    /// Time between two questions, milliseconds
    #[arg(long, default_value_t = 500)]
    every_ms: u64,
}

/// Asks the device a short question now and then.
pub(crate) fn run_poller(args: &PollerArgs, end: End) -> Result<()> {
    let device = open(&args.device)?;
    while !end.reached() {
        ask(&device)?;
        end.sleep(Duration::from_millis(args.every_ms));
    }
    Ok(())
}

/// Opens the device; it does not become the controlling terminal.
pub(crate) fn open(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NOCTTY)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// One short call.
pub(crate) fn ask(device: &File) -> Result<()> {
    let mut answer = winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: ioctl has no safe wrapper for this request; `answer` is a live, writable winsize
    // and the descriptor is open for the whole call.
    unsafe { tiocgwinsz(device.as_raw_fd(), &raw mut answer) }.context("ioctl(TIOCGWINSZ)")?;
    Ok(())
}

/// One call whose answer goes to memory that is not there yet: it ends when the fault is answered.
pub(crate) fn ask_into(device: &File, page: &crate::fault::Page) -> Result<()> {
    // SAFETY: the request writes one winsize (8 bytes) to the address; the page is mapped,
    // writable and larger than that, and nothing else reads or writes it meanwhile.
    unsafe { tiocgwinsz(device.as_raw_fd(), page.address().cast()) }
        .context("ioctl(TIOCGWINSZ) into the slow page")?;
    Ok(())
}

/// One call whose argument comes from memory that is not there yet: it takes as long, but holds no
/// lock of the terminal meanwhile.
pub(crate) fn tell_from(device: &File, page: &crate::fault::Page) -> Result<()> {
    // SAFETY: the request reads one winsize (8 bytes) from the address; the page is mapped, readable
    // and larger than that, any bytes make a winsize, and nothing else reads or writes it meanwhile.
    unsafe { tiocswinsz(device.as_raw_fd(), page.address().cast()) }
        .context("ioctl(TIOCSWINSZ) from the slow page")?;
    Ok(())
}
