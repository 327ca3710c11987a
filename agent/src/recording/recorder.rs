//! A recording that is written beside the work: on a thread of its own, behind a bounded queue.
//!
//! Invariants: whoever hands something over never waits for the disk; what the queue has no room for
//! is counted, and the recording says where it is missing; a file that cannot be written is given up, and
//! whoever asks is told why. What comes after a file is full is not lost: it is not to be in it.

use super::entry::{Entry, Identity};
use super::writer::{WriteError, Writer};
use crate::batch::Batch;
use palisade_abi::Record;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Batches and notes that may wait for the disk.
const QUEUE: usize = 512;
/// Bytes that they have together.
const QUEUE_BYTES: usize = 16 << 20;
/// How often the file is brought to the disk itself: what came later a crash of the host may take.
const SYNC_EVERY: Duration = Duration::from_secs(5);

/// How far a recording is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Progress {
    /// Batches in the file.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Records that it lacks, because the disk was too slow.
    pub lost: u64,
    /// Bytes in the file.
    pub bytes: u64,
    /// Entries other than batches that it lacks: without room, or too large.
    pub notes_lost: u64,
    /// It was given up; [`Recorder::failure`] says why.
    pub failed: bool,
    /// It has ended in order, because the file had reached its largest size.
    pub full: bool,
}

enum Message {
    Batch {
        identities: Vec<Identity>,
        batch: Batch,
        /// Records lost before it.
        lost: u64,
    },
    Notes {
        entries: Vec<Entry>,
        /// Notes lost before them.
        lost: u64,
    },
    /// What was lost before it is known to the thread.
    End,
}

impl Message {
    /// About how much memory it holds.
    fn bytes(&self) -> usize {
        match self {
            Message::Batch {
                identities, batch, ..
            } => {
                let known: usize = identities.iter().map(Identity::bytes).sum();
                known + batch.records.len() * size_of::<Record>()
            }
            Message::Notes { entries, .. } => entries.iter().map(Entry::bytes).sum(),
            Message::End => 0,
        }
    }
}

/// Hands entries to the thread that writes. Clones share it.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// With the bytes of each.
    queue: SyncSender<(Message, usize)>,
    counts: Arc<Counts>,
    /// Until the file may be made.
    begin: Mutex<Option<SyncSender<()>>>,
    thread: Mutex<Option<JoinHandle<Result<(), WriteError>>>>,
}

#[derive(Debug, Default)]
struct Counts {
    batches: AtomicU64,
    records: AtomicU64,
    lost: AtomicU64,
    bytes: AtomicU64,
    notes_lost: AtomicU64,
    failed: AtomicBool,
    failure: Mutex<Option<String>>,
    full: AtomicBool,
    /// Records in the file by kind; only at the end.
    kinds: Mutex<BTreeMap<u16, u64>>,
    /// Records lost since the last batch that was taken in.
    unsaid: AtomicU64,
    /// The same of notes.
    unsaid_notes: AtomicU64,
    /// Bytes in the queue.
    waiting: AtomicUsize,
}

impl Recorder {
    /// Starts the thread `recorder`.
    pub fn start(writer: Writer) -> io::Result<Self> {
        let recorder = Self::waiting(move || Ok(writer))?;
        recorder.begin();
        Ok(recorder)
    }

    /// Starts it before there is a file: what it is told waits in the queue until [`Self::begin`]. One that never begins
    /// makes no file.
    pub fn waiting(
        open: impl FnOnce() -> Result<Writer, WriteError> + Send + 'static,
    ) -> io::Result<Self> {
        let (begin, begun) = sync_channel(1);
        let (queue, messages) = sync_channel(QUEUE);
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        let thread = std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || {
                if begun.recv().is_err() {
                    return Ok(());
                }
                let result = open().and_then(|writer| write(writer, &messages, &shared));
                if let Err(error) = &result {
                    shared.fail(error);
                }
                result
            })?;
        Ok(Self(Arc::new(Inner {
            queue,
            counts,
            begin: Mutex::new(Some(begin)),
            thread: Mutex::new(Some(thread)),
        })))
    }

    /// Makes the file.
    pub fn begin(&self) {
        let begin = self.0.begin.lock();
        if let Some(begin) = begin.unwrap_or_else(PoisonError::into_inner).take() {
            // There is room for the one message that it ever gets.
            let _ = begin.try_send(());
        }
    }

    /// Adds a batch and, before it, what is newly known about who is in it. `false`: there was no room,
    /// or the recording was given up or is full; nothing of it was taken.
    pub fn batch(&self, identities: Vec<Identity>, batch: &Batch) -> bool {
        if self.is_full() {
            return false;
        }
        let counts = &self.0.counts;
        let lost = counts.unsaid.swap(0, Relaxed);
        let message = Message::Batch {
            identities,
            batch: batch.clone(),
            lost,
        };
        let taken = self.offer(message);
        // It may have become full meanwhile: then there is no queue any more.
        if !taken && !self.is_full() {
            let records = batch.records.len() as u64;
            counts.unsaid.fetch_add(lost + records, Relaxed);
            counts.lost.fetch_add(records, Relaxed);
        }
        taken
    }

    /// Adds what else there is to keep, together and in this order. `false`: there was no room, or the recording
    /// was given up or is full; nothing of it was taken.
    pub fn notes(&self, entries: Vec<Entry>) -> bool {
        if entries.is_empty() {
            return true;
        }
        if self.is_full() {
            return false;
        }
        let count = entries.len() as u64;
        let counts = &self.0.counts;
        let lost = counts.unsaid_notes.swap(0, Relaxed);
        let taken = self.offer(Message::Notes { entries, lost });
        if !taken && !self.is_full() {
            counts.unsaid_notes.fetch_add(lost + count, Relaxed);
            counts.notes_lost.fetch_add(count, Relaxed);
        }
        taken
    }

    /// Puts it into the queue if there is room.
    fn offer(&self, message: Message) -> bool {
        let bytes = message.bytes();
        let waiting = &self.0.counts.waiting;
        let room = waiting.fetch_add(bytes, Relaxed).saturating_add(bytes) <= QUEUE_BYTES;
        let taken = room && self.0.queue.try_send((message, bytes)).is_ok();
        if !taken {
            waiting.fetch_sub(bytes, Relaxed);
        }
        taken
    }

    /// Why it was given up, if it was.
    pub fn failure(&self) -> Option<String> {
        let counts = &self.0.counts;
        if !counts.failed.load(Relaxed) {
            return None;
        }
        let failure = counts.failure.lock();
        failure.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the file has reached its largest size: the recording has ended, and nothing more is to be handed over.
    pub fn is_full(&self) -> bool {
        self.0.counts.full.load(Relaxed)
    }

    /// Records in the file by kind, once it has ended.
    pub fn kinds(&self) -> BTreeMap<u16, u64> {
        let kinds = self.0.counts.kinds.lock();
        kinds.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let counts = &self.0.counts;
        Progress {
            batches: counts.batches.load(Relaxed),
            records: counts.records.load(Relaxed),
            lost: counts.lost.load(Relaxed),
            bytes: counts.bytes.load(Relaxed),
            notes_lost: counts.notes_lost.load(Relaxed),
            failed: counts.failed.load(Relaxed),
            full: counts.full.load(Relaxed),
        }
    }

    /// Writes what is waiting and ends the recording in order. Later entries are ignored.
    pub fn finish(&self) -> Result<Progress, WriteError> {
        let begin = self.0.begin.lock();
        drop(begin.unwrap_or_else(PoisonError::into_inner).take());
        // It fails only if the thread gave up; its result says why.
        let _ = self.0.queue.send((Message::End, 0));
        let thread = self.0.thread.lock();
        if let Some(thread) = thread.unwrap_or_else(PoisonError::into_inner).take() {
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("its thread panicked").into()))?;
        }
        Ok(self.progress())
    }
}

impl Counts {
    /// What is in the file now.
    fn take_in(&self, writer: &Writer) {
        let written = writer.written();
        self.batches.store(written.batches, Relaxed);
        self.records.store(written.records, Relaxed);
        self.bytes.store(writer.bytes(), Relaxed);
    }

    fn fail(&self, error: &WriteError) {
        tracing::error!("the recording ends here: {error}");
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        *failure = Some(error.to_string());
        self.failed.store(true, Relaxed);
    }
}

/// The thread: writes until it is told to end, all senders are gone, or the file is full; and in the end what was lost since
/// the last batch and the last notes.
fn write(
    mut writer: Writer,
    messages: &Receiver<(Message, usize)>,
    counts: &Counts,
) -> Result<(), WriteError> {
    let (mut time_ns, mut seq) = (0, 0);
    let (mut synced, mut synced_bytes) = (Instant::now(), 0);
    for (message, bytes) in messages {
        counts.waiting.fetch_sub(bytes, Relaxed);
        match message {
            Message::Batch {
                identities,
                batch,
                lost,
            } => {
                (time_ns, seq) = (batch.now_ns, batch.seq);
                say_lost(&mut writer, time_ns, seq, lost)?;
                for identity in identities {
                    writer.write(&Entry::Identity(identity))?;
                }
                writer.write(&Entry::Batch(batch))?;
            }
            Message::Notes { entries, mut lost } => {
                for entry in entries {
                    match writer.write(&entry) {
                        Err(error) if error.is_of_the_entry() => {
                            lost += 1;
                            counts.notes_lost.fetch_add(1, Relaxed);
                        }
                        result => result?,
                    }
                }
                say_gap(&mut writer, lost)?;
            }
            Message::End => break,
        }
        counts.take_in(&writer);
        if writer.is_full() {
            break;
        }
        if synced.elapsed() >= SYNC_EVERY && writer.bytes() != synced_bytes {
            writer.sync()?;
            (synced, synced_bytes) = (Instant::now(), writer.bytes());
        }
    }
    say_gap(&mut writer, counts.unsaid_notes.swap(0, Relaxed))?;
    let lost = counts.unsaid.swap(0, Relaxed);
    say_lost(&mut writer, time_ns, seq.saturating_add(1), lost)?;
    writer.flush()?;
    counts.take_in(&writer);
    let mut kinds = counts.kinds.lock().unwrap_or_else(PoisonError::into_inner);
    kinds.clone_from(&writer.written().kinds);
    drop(kinds);
    // Before the queue goes: what it refuses from then on is not lost.
    counts.full.store(writer.is_full(), Relaxed);
    writer.end()?;
    writer.sync()?;
    counts.take_in(&writer);
    Ok(())
}

/// Says that records are missing before the batch of that number.
fn say_lost(writer: &mut Writer, time_ns: u64, seq: u64, records: u64) -> Result<(), WriteError> {
    if records == 0 {
        return Ok(());
    }
    writer.write(&Entry::Lost {
        time_ns,
        policy: None,
        seq,
        records,
    })
}

/// Says that notes are missing.
fn say_gap(writer: &mut Writer, notes: u64) -> Result<(), WriteError> {
    if notes == 0 {
        return Ok(());
    }
    writer.write(&Entry::Gap { notes })
}
