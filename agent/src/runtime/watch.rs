//! Small things that the threads share: who has ended, whether the kill switch is on, how much waits.
//!
//! Invariant: none of them blocks.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// Outputs of policies that may wait for the core thread; what exceeds it is dropped and counted.
const MAX_WAITING: usize = 64;

/// Rings when a thread ends, in order or by a panic.
#[derive(Clone, Debug, Default)]
pub(super) struct Alarm(Arc<(Notify, Mutex<Option<&'static str>>)>);

impl Alarm {
    /// Lives in a thread; rings when it is dropped.
    pub(super) fn guard(&self, thread: &'static str) -> Guard {
        Guard(self.clone(), thread)
    }

    /// Waits for the first thread that ends, and names it.
    pub(super) async fn rung(&self) -> &'static str {
        loop {
            if let Some(thread) = *self.0.1.lock().unwrap_or_else(PoisonError::into_inner) {
                return thread;
            }
            self.0.0.notified().await;
        }
    }
}

/// See [`Alarm::guard`].
#[derive(Debug)]
pub(super) struct Guard(Alarm, &'static str);

impl Drop for Guard {
    fn drop(&mut self) {
        let (notify, first) = &*self.0.0;
        first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(self.1);
        // Kept for a waiter that comes later.
        notify.notify_one();
    }
}

/// The kill switch's memory: a file in the state folder, so that a restart does not arm the agent.
#[derive(Clone, Debug)]
pub(crate) struct Marker(PathBuf);

impl Marker {
    /// In that folder, which exists.
    pub(super) fn in_folder(state_dir: &Path) -> Self {
        Self(state_dir.join("disarmed"))
    }

    /// Whether the kill switch was left on.
    pub(super) fn is_set(&self) -> bool {
        self.0.exists()
    }

    /// Remembers the kill switch, on disk.
    pub(super) fn set(&self, on: bool) -> io::Result<()> {
        if on {
            File::create(&self.0)?.sync_all()?;
        } else if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        self.0
            .parent()
            .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }
}

/// Bounds what policies can have waiting for the core thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Intake(Arc<(AtomicUsize, AtomicU64)>);

impl Intake {
    /// Asks for room for one output. `false`: it is to be dropped, and was counted.
    pub(super) fn offer(&self) -> bool {
        let (waiting, dropped) = &*self.0;
        if waiting.fetch_add(1, Ordering::AcqRel) < MAX_WAITING {
            return true;
        }
        waiting.fetch_sub(1, Ordering::AcqRel);
        dropped.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// The core thread has taken one.
    pub(super) fn taken(&self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }

    /// Outputs dropped since this was asked last.
    pub(super) fn dropped(&self) -> u64 {
        self.0.1.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kill_switch_is_remembered_until_it_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let marker = Marker::in_folder(dir.path());
        assert!(!marker.is_set());
        marker.set(true).unwrap();
        assert!(Marker::in_folder(dir.path()).is_set());
        marker.set(false).unwrap();
        marker.set(false).unwrap();
        assert!(!marker.is_set());
    }

    #[test]
    fn what_exceeds_the_bound_is_dropped_and_counted_once() {
        let intake = Intake::default();
        assert!((0..MAX_WAITING).all(|_| intake.offer()));
        assert!(!intake.offer());
        intake.taken();
        assert!(intake.offer());
        assert_eq!((intake.dropped(), intake.dropped()), (1, 0));
    }

    #[test]
    fn a_thread_that_panics_rings_the_alarm() {
        let alarm = Alarm::default();
        let guard = alarm.guard("core");
        let _ = std::thread::spawn(move || {
            let _guard = guard;
            panic!("a fault");
        })
        .join();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        assert_eq!(runtime.block_on(alarm.rung()), "core");
    }
}
