//! The bounded queue before each policy, and the publisher that fills them.
//!
//! Invariants:
//! - Publishing never waits for a policy: what does not fit is counted as lost, for that policy.
//! - Batches and swaps leave a queue in the order in which they came.
//! - The records lost before a batch are told with that batch.

use super::instance::wanted;
use super::limits::Limits;
use super::worker::Swap;
use crate::batch::Batch;
use palisade_abi::{Lost, PATH_SLOTS, RECORD_BYTES, Record, kind};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

/// What a policy's thread works on.
pub(super) enum Message {
    /// Look at these events.
    Batch {
        batch: Batch,
        /// Records lost before it.
        lost: u64,
    },
    /// Let another instance take over.
    Swap(Box<Swap>),
    /// End.
    Stop,
}

/// A policy's queue.
pub(super) struct Queue {
    /// Name of the policy.
    name: String,
    state: Mutex<State>,
    filled: Condvar,
    batches_max: usize,
    bytes_max: usize,
    /// Bits of the kinds that the policy wants; changes with a reload.
    mask: AtomicU64,
}

struct State {
    messages: VecDeque<Message>,
    batches: usize,
    bytes: usize,
    /// Records lost since the last batch was taken in.
    lost: u64,
    lost_total: u64,
    /// Nobody works on batches: the policy was ejected, or its thread is gone.
    closed: bool,
}

/// Numbers about a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Depth {
    pub batches: usize,
    pub bytes: usize,
    pub lost: u64,
}

impl Queue {
    pub fn new(name: &str, limits: &Limits, mask: u64) -> Self {
        Self {
            name: name.to_owned(),
            state: Mutex::new(State {
                messages: VecDeque::new(),
                batches: 0,
                bytes: 0,
                lost: 0,
                lost_total: 0,
                closed: false,
            }),
            filled: Condvar::new(),
            batches_max: limits.queue_batches.max(1),
            bytes_max: limits.queue_bytes,
            mask: AtomicU64::new(mask),
        }
    }

    /// Changes the kinds that the policy wants. Versions that wait for their swap keep theirs.
    pub fn set_mask(&self, mask: u64) {
        let state = self.lock();
        let waiting = state.messages.iter().filter_map(|message| match message {
            Message::Swap(swap) => Some(swap.new.mask()),
            Message::Batch { .. } | Message::Stop => None,
        });
        let mask = waiting.fold(mask, |all, mask| all | mask);
        self.mask.store(mask, Ordering::Relaxed);
    }

    /// The kinds that the policy wants.
    pub fn mask(&self) -> u64 {
        self.mask.load(Ordering::Relaxed)
    }

    /// Takes a batch in, or counts it as lost and answers how many records that are. `kinds` are the bits of the
    /// kinds in it.
    pub fn offer(&self, batch: &Batch, kinds: u64) -> Option<u64> {
        let mask = self.mask();
        if !concerns(batch, kinds, mask) {
            return None;
        }
        let bytes = batch.records.len() * RECORD_BYTES;
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        let full = state.batches >= self.batches_max
            || (state.batches > 0 && state.bytes + bytes > self.bytes_max);
        if full {
            let lost = count(&batch.records, mask);
            state.lost = state.lost.saturating_add(lost);
            state.lost_total = state.lost_total.saturating_add(lost);
            return Some(lost);
        }
        let lost = std::mem::take(&mut state.lost);
        state.batches += 1;
        state.bytes += bytes;
        state.messages.push_back(Message::Batch {
            batch: batch.clone(),
            lost,
        });
        drop(state);
        self.filled.notify_one();
        None
    }

    /// Takes a swap in; there is always room. From here on the queue takes batches in for both.
    pub fn swap(&self, swap: Swap) {
        let mut state = self.lock();
        self.mask.fetch_or(swap.new.mask(), Ordering::Relaxed);
        state.messages.push_back(Message::Swap(Box::new(swap)));
        drop(state);
        self.filled.notify_one();
    }

    /// Drops the waiting batches and makes the thread end.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.close();
        state.messages.push_back(Message::Stop);
        drop(state);
        self.filled.notify_one();
    }

    /// Drops the waiting batches and takes in no more, until [`Self::open`].
    pub fn close(&self) {
        self.lock().close();
    }

    /// Takes in batches again.
    pub fn open(&self) {
        self.lock().closed = false;
    }

    /// The next message; waits for one.
    pub fn take(&self) -> Message {
        let mut state = self.lock();
        loop {
            if let Some(message) = state.messages.pop_front() {
                if let Message::Batch { batch, .. } = &message {
                    state.batches -= 1;
                    state.bytes -= batch.records.len() * RECORD_BYTES;
                }
                return message;
            }
            state = self
                .filled
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How full it is.
    pub fn depth(&self) -> Depth {
        let state = self.lock();
        Depth {
            batches: state.batches,
            bytes: state.bytes,
            lost: state.lost_total,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn close(&mut self) {
        self.closed = true;
        self.messages
            .retain(|message| !matches!(message, Message::Batch { .. }));
        self.batches = 0;
        self.bytes = 0;
        self.lost = 0;
    }
}

/// The queues of all policies.
pub(super) type Queues = Arc<RwLock<Vec<Arc<Queue>>>>;

/// Gives batches to all policies. Cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    pub(super) queues: Queues,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

impl Publisher {
    /// Gives `batch` to every policy that wants something of it, and at a window's end to all.
    /// Never waits for a policy: `full` is told whose queue had no room, and how many records it misses.
    pub fn publish(&self, batch: &Batch, mut full: impl FnMut(&str, u64)) {
        let kinds = kinds(&batch.records);
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        for queue in queues.iter() {
            if let Some(lost) = queue.offer(batch, kinds) {
                full(&queue.name, lost);
            }
        }
    }
}

/// Whether a batch with those kinds goes to a policy that wants `mask`.
pub(super) fn concerns(batch: &Batch, kinds: u64, mask: u64) -> bool {
    kinds & mask != 0 || batch.window_end
}

/// The records of a batch without the slots that only hold a name.
fn real(records: &[Record]) -> impl Iterator<Item = &Record> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let record = records.get(at)?;
            if record.header.kind != kind::FILE_NAME {
                at += 1;
                return Some(record);
            }
            at += PATH_SLOTS;
        }
    })
}

pub(super) fn kinds(records: &[Record]) -> u64 {
    real(records).fold(0, |kinds, record| match record.header.kind {
        kind @ 0..64 => kinds | 1 << kind,
        _ => kinds,
    })
}

/// How many records a policy misses that wants `mask` and is not given `records`: a record of a
/// loss stands for all that it counts.
pub(super) fn count(records: &[Record], mask: u64) -> u64 {
    real(records)
        .filter(|record| wanted(mask, record.header.kind))
        .map(|record| record.get::<Lost>().map_or(1, |lost| lost.count))
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use palisade_abi::{Exec, GpuCall, Header};

    fn batch(seq: u64, records: Vec<Record>) -> Batch {
        Batch {
            seq,
            now_ns: seq,
            records: records.into(),
            window_end: false,
        }
    }

    fn exec() -> Record {
        Record::new(Header::default(), Exec::default())
    }

    #[test]
    fn a_full_queue_counts_what_the_policy_wanted_and_tells_with_the_next_batch() {
        let limits = Limits {
            queue_batches: 1,
            ..Limits::default()
        };
        let queue = Queue::new("p", &limits, palisade_abi::Kind::Exec.bit());
        let gpu = Record::new(Header::default(), GpuCall::default());
        let publisher = Publisher {
            queues: Arc::new(RwLock::new(vec![Arc::new(queue)])),
        };
        let queue = Arc::clone(&publisher.queues.read().unwrap()[0]);
        let mut told = Vec::new();
        let mut publish = |batch: &Batch| {
            publisher.publish(batch, |name, lost| told.push((name.to_owned(), lost)));
        };
        publish(&batch(1, vec![exec()]));
        publish(&batch(2, vec![exec(), gpu, exec()]));
        assert_eq!(
            queue.depth(),
            Depth {
                batches: 1,
                bytes: 64,
                lost: 2
            }
        );
        assert!(matches!(queue.take(), Message::Batch { lost: 0, .. }));
        publish(&batch(3, vec![gpu]));
        assert_eq!(queue.depth().batches, 0, "nothing in it for this policy");
        publish(&batch(4, vec![exec()]));
        assert_eq!(told, [("p".to_owned(), 2)]);
        assert!(matches!(queue.take(), Message::Batch { lost: 2, .. }));
    }

    #[test]
    fn name_slots_are_not_taken_for_records() {
        let mut name = exec();
        name.header.kind = kind::FILE_NAME;
        let mut records = vec![name];
        records.extend([exec(); PATH_SLOTS - 1]);
        assert_eq!(kinds(&records), 0);
        assert_eq!(count(&records, u64::MAX), 0);
        records.push(exec());
        assert_eq!(count(&records, u64::MAX), 1);
    }

    #[test]
    fn a_dropped_record_of_a_loss_counts_for_what_it_tells() {
        let lost = |count| {
            let body = Lost {
                count,
                ..Lost::default()
            };
            Record::new(Header::default(), body)
        };
        assert_eq!(count(&[exec(), lost(5000)], u64::MAX), 5001);
        let absurd = [lost(u64::MAX), exec()];
        assert_eq!(count(&absurd, u64::MAX), u64::MAX);
    }
}
