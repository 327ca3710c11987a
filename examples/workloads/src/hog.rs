//! A culprit: burns CPU, and in between holds the device's lock.
//!
//! Two processes. The inner one, which is to be throttled, burns and calls; its call's answer
//! goes to a page that arrives late, so it waits with the lock held. The outer one delivers the
//! page after the wanted time; it stays outside of the inner one's cgroup, because a throttled
//! handler would prolong the very hold that the throttle is to relieve.
//!
//! Because the hog burns CPU between its holds, a ceiling on its CPU time makes holds rarer.

use crate::cpu::{End, burn};
use crate::fault::{Faults, Page};
use crate::{Place, device, place};
use anyhow::{Context, Result};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde_json::json;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

#[derive(Args, Clone, Debug)]
pub(crate) struct HogArgs {
    /// The device, a terminal (/dev/pts/N)
    #[arg(long)]
    device: PathBuf,
    /// CPU time burnt between two calls, milliseconds
    #[arg(long, default_value_t = 60)]
    burn_ms: u64,
    /// How long each call holds the device, milliseconds
    #[arg(long, default_value_t = 40)]
    hold_ms: u64,
}

#[derive(Args, Debug)]
pub(crate) struct InnerArgs {
    /// The device, a terminal (/dev/pts/N)
    #[arg(long)]
    device: PathBuf,
    /// CPU time burnt between two calls, milliseconds
    #[arg(long)]
    burn_ms: u64,
    /// Socket to the fault handler
    #[arg(long)]
    handler: RawFd,
}

/// The outer half: starts the inner one where it belongs and answers its faults.
pub(crate) fn run(args: &HogArgs, place: &Place) -> Result<()> {
    let mut wanted = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        wanted.add(signal);
    }
    wanted.thread_block().context("sigprocmask")?;
    let signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC).context("signalfd")?;

    // The inner half inherits its end, so neither is close-on-exec; ours closes with us.
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::empty(),
    )
    .context("socketpair")?;
    let mut inner = Inner(spawn(args, place, &theirs)?);
    drop(theirs);
    let mut faults = Faults::receive(&ours)?;
    place::emit(
        &json!({ "event": "started", "pid": inner.0.id(), "handler": std::process::id() }),
    )?;

    let hold = Duration::from_millis(args.hold_ms);
    loop {
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(faults.file().as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::NONE).context("poll")?;
        if fds[0].any().unwrap_or(false) || inner.ended()? {
            return Ok(());
        }
        while let Some(address) = faults.next()? {
            std::thread::sleep(hold);
            // The inner half may have been killed meanwhile: then there is nobody to answer.
            if let Err(error) = faults.answer(address)
                && !inner.ended()?
            {
                return Err(error);
            }
        }
    }
}

/// The inner half: what a policy is to find and the agent to throttle.
pub(crate) fn run_inner(args: &InnerArgs, end: End) -> Result<()> {
    // SAFETY: the number of an inherited descriptor says nothing of its owner; it was put on our
    // command line by the outer half for us alone, and nothing else here uses it.
    let handler = unsafe { OwnedFd::from_raw_fd(args.handler) };
    let device = device::open(&args.device)?;
    let page = Page::new(&handler)?;
    while !end.reached() {
        burn(Duration::from_millis(args.burn_ms), end);
        device::ask_into(&device, &page)?;
        page.forget()?;
    }
    Ok(())
}

fn spawn(args: &HogArgs, place: &Place, handler: &OwnedFd) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("own executable")?);
    command.arg("device-hog-inner");
    for dir in &place.join {
        command.arg("--join").arg(dir);
    }
    if let Some(cpu) = place.cpu {
        command.arg("--cpu").arg(cpu.to_string());
    }
    if let Some(ms) = place.for_ms {
        command.arg("--for-ms").arg(ms.to_string());
    }
    command.arg("--device").arg(&args.device);
    command.arg("--burn-ms").arg(args.burn_ms.to_string());
    command
        .arg("--handler")
        .arg(handler.as_raw_fd().to_string());
    command.spawn().context("starting the inner half")
}

/// The inner half as a child that does not outlive this value.
struct Inner(Child);

impl Inner {
    fn ended(&mut self) -> Result<bool> {
        Ok(self
            .0
            .try_wait()
            .context("waiting for the inner half")?
            .is_some())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Both fail only if it has ended and been waited for already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
