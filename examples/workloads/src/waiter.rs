//! Calls that wait by design, as those do that wait for an event or a fence: each takes the same
//! long time, and nobody has to wait for it.
//!
//! To whoever only sees when calls come and go, those that wait side by side look like a queue.

use crate::cpu::End;
use crate::fault::{Faults, Page};
use crate::{device, place};
use anyhow::{Context, Result, anyhow};
use clap::Args;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde_json::json;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

/// How often a handler looks whether it is time to end, milliseconds.
const LOOK_MS: u16 = 100;

#[derive(Args, Clone, Debug)]
pub(crate) struct WaiterArgs {
    /// The device, a terminal (/dev/pts/N)
    #[arg(long)]
    device: PathBuf,
    /// How long each call waits, milliseconds
    #[arg(long, default_value_t = 40)]
    wait_ms: u64,
    /// Threads that call, one call after the other
    #[arg(long, default_value_t = 1)]
    threads: u32,
}

/// Starts the threads, evenly spread over the length of a call.
pub(crate) fn run(args: &WaiterArgs, end: End) -> Result<()> {
    place::emit(&json!({ "event": "started", "pid": std::process::id() }))?;
    let wait = Duration::from_millis(args.wait_ms);
    let device = device::open(&args.device)?;
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..args.threads)
            .map(|n| {
                let device = &device;
                scope.spawn(move || {
                    end.sleep(wait * n / args.threads);
                    call(device, wait, end)
                })
            })
            .collect();
        callers.into_iter().try_for_each(|caller| {
            caller
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a thread failed")))
        })
    })
}

fn call(device: &File, wait: Duration, end: End) -> Result<()> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .context("socketpair")?;
    let page = Page::new(&theirs)?;
    let faults = Faults::receive(&ours)?;
    std::thread::scope(|scope| {
        let handler = scope.spawn(move || answer(faults, wait, end));
        while !end.reached() && !handler.is_finished() {
            device::tell_from(device, &page)?;
            page.forget()?;
        }
        handler
            .join()
            .unwrap_or_else(|_| Err(anyhow!("a thread failed")))
    })
}

/// Answers each fault after `wait`, until the end. A fault that comes later is no longer held back.
fn answer(mut faults: Faults, wait: Duration, end: End) -> Result<()> {
    loop {
        let mut fds = [PollFd::new(faults.file().as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, LOOK_MS).context("poll")?;
        while let Some(address) = faults.next()? {
            std::thread::sleep(wait);
            faults.answer(address)?;
        }
        if ready == 0 && end.reached() {
            return Ok(());
        }
    }
}
