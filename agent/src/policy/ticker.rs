//! The thread that makes running guests look up: it counts the engine's epoch on.
//!
//! Invariants:
//! - The epoch moves while a thread that runs guests uses CPU time, once a [`TICK`] of it or, where the kernel's own
//!   tick is longer, once in that. Nothing is set or cancelled for a call, and nothing wakes up while none runs: the
//!   kernel looks at such a timer in a tick that it takes anyway.
//! - No guest runs on a thread whose CPU time is not watched.

use nix::errno::Errno;
use nix::sys::signal::{SigEvent, SigSet, SigevNotify, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::{Pid, gettid};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use std::cell::RefCell;
use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Length of an epoch in CPU time.
pub const TICK: Duration = Duration::from_millis(1);
/// Blocked in the ticker thread and sent to no other.
const SIGNAL: Signal = Signal::SIGVTALRM;

thread_local! {
    /// The timers of a thread that runs guests again and again, each with the ticker that it wakes.
    static STAYING: RefCell<Vec<(Weak<Shared>, Timer)>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct Shared {
    stop: OwnedFd,
}

/// Owner of the ticker thread; dropping it ends the thread.
#[derive(Debug)]
pub struct Ticker {
    shared: Arc<Shared>,
    tid: Pid,
    thread: Option<JoinHandle<()>>,
}

/// While one of these lives, the CPU time of the thread that made it is watched.
#[derive(Debug)]
#[must_use]
pub struct Running(#[allow(dead_code)] Option<Timer>); // dropping it stops the timer

impl Ticker {
    /// Starts the thread for `engine`.
    ///
    /// # Errors
    /// The system has no descriptor or thread left.
    pub fn start(engine: wasmtime::Engine) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            stop: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let (ready, is_ready) = channel();
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("policy-ticker".to_owned())
            .spawn(move || {
                let signals = SigSet::from(SIGNAL);
                let signals = signals.thread_block().and_then(|()| {
                    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
                });
                let told = ready.send(signals.as_ref().map(|_| gettid()).map_err(|error| *error));
                if let (Ok(mut signals), Ok(())) = (signals, told) {
                    tick(&engine, &of_thread, &mut signals);
                }
            })?;
        let tid = is_ready
            .recv()
            .map_err(|_| io::Error::other("the policy ticker did not start"))??;
        Ok(Self {
            shared,
            tid,
            thread: Some(thread),
        })
    }

    /// To be held during a call into a guest.
    ///
    /// # Errors
    /// The system has no timer left.
    pub fn run(&self) -> io::Result<Running> {
        if STAYING.with_borrow(|timers| timers.iter().any(|(of, _)| self.is(of))) {
            return Ok(Running(None));
        }
        Ok(Running(Some(self.timer()?)))
    }

    /// From now on [`Self::run`] costs this thread nothing. Ends with the thread.
    pub fn stay(&self) {
        // Without one, each call makes its own, or is not made.
        let Ok(timer) = self.timer() else { return };
        STAYING.with_borrow_mut(|timers| {
            timers.retain(|(of, _)| of.strong_count() > 0 && !self.is(of));
            timers.push((Arc::downgrade(&self.shared), timer));
        });
    }

    fn is(&self, other: &Weak<Shared>) -> bool {
        std::ptr::eq(other.as_ptr(), Arc::as_ptr(&self.shared))
    }

    /// A timer over this thread's CPU time.
    fn timer(&self) -> Result<Timer, Errno> {
        let event = SigEvent::new(SigevNotify::SigevThreadId {
            signal: SIGNAL,
            thread_id: self.tid.as_raw(),
            si_value: 0,
        });
        let mut timer = Timer::new(ClockId::CLOCK_THREAD_CPUTIME_ID, event)?;
        timer.set(
            Expiration::Interval(TICK.into()),
            TimerSetTimeFlags::empty(),
        )?;
        Ok(timer)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        // A full counter wakes as well.
        let _ = rustix::io::write(&self.shared.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic of the ticker has nowhere to go from a destructor; it was printed.
            let _ = thread.join();
        }
    }
}

fn tick(engine: &wasmtime::Engine, shared: &Shared, signals: &mut SignalFd) {
    loop {
        let mut fds = [
            PollFd::new(&*signals, PollFlags::IN),
            PollFd::new(&shared.stop, PollFlags::IN),
        ];
        if poll(&mut fds, None).is_err() {
            // Another signal, or no memory: a runaway call is cut off all the same.
            thread::sleep(TICK);
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        while let Ok(Some(_)) = signals.read_signal() {}
        engine.increment_epoch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    /// Epochs that pass while `body` runs on a thread of its own, as a store counts them.
    fn epochs(body: impl FnOnce(&Ticker) + Send) -> u32 {
        let mut config = wasmtime::Config::new();
        config.epoch_interruption(true);
        let engine = wasmtime::Engine::new(&config).expect("an engine");
        let ticker = Ticker::start(engine.clone()).expect("a thread");
        let over = std::sync::atomic::AtomicBool::new(false);
        let seen = Arc::new(AtomicU32::new(0));
        thread::scope(|scope| {
            let (ticker, over, counted) = (&ticker, &over, Arc::clone(&seen));
            scope.spawn(move || {
                body(ticker);
                over.store(true, Ordering::Release);
            });
            // A guest that counts the epochs in which it is called.
            let text = "(module (func (export \"f\")))";
            let wasm = wat::parse_str(text).expect("it is a module");
            let module = wasmtime::Module::new(&engine, wasm).expect("a module");
            let mut store = wasmtime::Store::new(&engine, ());
            store.epoch_deadline_callback(move |_| {
                counted.fetch_add(1, Ordering::Relaxed);
                Ok(wasmtime::UpdateDeadline::Continue(1))
            });
            store.set_epoch_deadline(1);
            let instance = wasmtime::Instance::new(&mut store, &module, &[]).expect("an instance");
            let f = instance.get_typed_func::<(), ()>(&mut store, "f");
            let f = f.expect("its function");
            while !over.load(Ordering::Acquire) {
                f.call(&mut store, ()).expect("it returns");
                thread::sleep(Duration::from_micros(100));
            }
        });
        seen.load(Ordering::Relaxed)
    }

    fn spin(length: Duration) {
        let until = Instant::now() + length;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    }

    const LONG: Duration = Duration::from_millis(300);

    #[test]
    fn the_epoch_moves_while_a_watched_thread_uses_cpu_time_and_only_then() {
        let once = epochs(|ticker| {
            let _running = ticker.run().expect("a timer");
            spin(LONG);
        });
        // 300 ms of wall time; the thread may have had little of it.
        assert!(once > 2, "{once}");
        let staying = epochs(|ticker| {
            ticker.stay();
            let _running = ticker.run().expect("a timer");
            spin(LONG);
        });
        assert!(staying > 2, "{staying}");
        let waits = epochs(|ticker| {
            let _running = ticker.run().expect("a timer");
            thread::sleep(LONG);
        });
        assert!(waits <= 1, "{waits}");
        let unwatched = epochs(|ticker| {
            drop(ticker.run());
            spin(LONG);
        });
        assert!(unwatched <= 1, "{unwatched}");
    }
}
