//! Ctrl-C and SIGTERM: told between two steps, so that whatever was started is ended in order.

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

static ASKED: AtomicBool = AtomicBool::new(false);
/// What shells say of a program that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// From now on the first of these signals only makes [`asked`] true; the second one ends the process at once. To be
/// called before there are other threads, which inherit it; programs that are started do not.
pub fn catch() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let _ = signals.wait();
            ASKED.store(true, Ordering::Relaxed);
            eprintln!(
                "ending after this block; once more to end at once, which leaves tracers behind"
            );
            let _ = signals.wait();
            std::process::exit(INTERRUPTED);
        })?;
    Ok(())
}

/// Whether to come to an end.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}
