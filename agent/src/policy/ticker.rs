//! The thread that makes running guests look up: it counts the engine's epoch on.
//!
//! Invariant: the epoch moves once a millisecond while a guest runs and (a tick later) not at
//! all while none does, so that an idle agent does not wake up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Length of an epoch.
pub const TICK: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
struct Shared {
    running: AtomicUsize,
    parked: AtomicBool,
    stop: AtomicBool,
}

/// Owner of the ticker thread; dropping it ends the thread.
#[derive(Debug)]
pub struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// While one of these lives, the epoch moves.
#[derive(Debug)]
pub struct Running<'a>(&'a Shared);

impl Ticker {
    /// Starts the thread for `engine`.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(engine: wasmtime::Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("policy-ticker".to_owned())
            .spawn(move || tick(&engine, &of_thread))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// To be held during a call into a guest.
    pub fn run(&self) -> Running<'_> {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        // The ticker sets `parked` before it looks at `running` for the last time: one of the
        // two sees the other.
        if self.shared.parked.load(Ordering::SeqCst) {
            self.unpark();
        }
        Running(&self.shared)
    }

    fn unpark(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.unpark();
        if let Some(thread) = self.thread.take() {
            // A panic of the ticker has nowhere to go from a destructor; it was printed.
            let _ = thread.join();
        }
    }
}

fn tick(engine: &wasmtime::Engine, shared: &Shared) {
    while !shared.stop.load(Ordering::SeqCst) {
        if shared.running.load(Ordering::SeqCst) == 0 {
            shared.parked.store(true, Ordering::SeqCst);
            while shared.running.load(Ordering::SeqCst) == 0 && !shared.stop.load(Ordering::SeqCst)
            {
                thread::park();
            }
            shared.parked.store(false, Ordering::SeqCst);
        }
        thread::sleep(TICK);
        engine.increment_epoch();
    }
}
