//! The handle that records are appended through, and the state it shares with the writer.
//!
//! Invariants: numbering, chaining, checkpoints and the division into segments happen here,
//! under one short lock, in the order of the calls; the writer thread only carries finished
//! bytes to the disk. No lock is held during I/O. A record that finds no room gets no number.

use super::chain::{self, Hash, Head};
use super::disk::Disk;
use super::key::Signing;
use super::recover::{self, Recovery};
use super::segment::MAX_LINE;
use super::writer::Writer;
use super::{AuditError, Entry, Options, clock};
use crate::boot_clock;
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Bytes of one segment on their way to the disk.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// First record of the segment that they belong to.
    pub(crate) segment: u64,
    /// First record in them.
    pub(crate) first: u64,
    /// Last record in them.
    pub(crate) last: u64,
    /// Whole lines.
    pub(crate) bytes: Vec<u8>,
}

/// Bytes after which a new chunk is begun, so that the writer holds little at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Stands for the segment before the first one, which is always full.
const NO_SEGMENT: u64 = u64::MAX;

/// How the log is.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Health {
    /// Everything appended so far is on disk or on its way there.
    pub ok: bool,
    /// Records that found no room, since the start.
    pub dropped: u64,
    /// Failed writes and syncs, since the start.
    pub errors: u64,
    /// The reserve is in use: the disk is full.
    pub emergency: bool,
    /// The latest error, if it still stands.
    pub fault: Option<String>,
    /// Bytes that wait for the disk.
    pub waiting_bytes: u64,
    /// Last record on disk.
    pub synced_seq: u64,
}

#[derive(Debug)]
pub(crate) struct State {
    head: Head,
    log: String,
    segment: u64,
    segment_bytes: u64,
    pub(crate) pending: VecDeque<Chunk>,
    pub(crate) pending_bytes: usize,
    since_checkpoint: u32,
    pub(crate) last_checkpoint: Instant,
    dropped_untold: u64,
    pub(crate) want_sync: bool,
    pub(crate) closing: bool,
    /// The writer thread is gone.
    pub(crate) dead: bool,
    /// Failed commits so far; those who wait for one to succeed watch it.
    pub(crate) failures: u64,
    pub(crate) health: Health,
}

#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Something to write, to sync, or the end.
    pub(crate) work: Condvar,
    /// Something was synced, or failed.
    pub(crate) done: Condvar,
    pub(crate) options: Options,
    signing: Signing,
}

/// Handle of an open log. Cheap to clone; the last one to go closes the log.
#[derive(Clone, Debug)]
pub struct Audit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Locks the directory until the log is closed.
    lock: Mutex<Option<File>>,
}

/// [`super::open`] on a given disk.
pub(crate) fn open_on(
    dir: &Path,
    options: Options,
    disk: Box<dyn Disk>,
) -> Result<(Audit, Recovery), AuditError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| AuditError::io("create", dir, e))?;
    let lock = lock(dir)?;
    let end = recover::find_end(dir)?;
    let signing = Signing::open(dir, end.segment.is_some())?;
    let log = match end.log {
        Some(log) => log,
        None => random_name()?,
    };
    let recovery = Recovery {
        head: end.head,
        torn: end.torn.clone(),
        damaged: end.damaged.clone(),
    };
    let (segment, segment_bytes) = end
        .segment
        .as_ref()
        .map_or((NO_SEGMENT, options.segment_bytes), |(segment, len)| {
            (segment.first, *len)
        });
    let options = Options {
        checkpoint_records: options
            .checkpoint_records
            .clamp(1, super::verify::CHECKPOINT_RECORDS),
        ..options
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            head: end.head,
            log,
            segment,
            segment_bytes,
            pending: VecDeque::new(),
            pending_bytes: 0,
            since_checkpoint: 0,
            last_checkpoint: Instant::now(),
            dropped_untold: 0,
            want_sync: false,
            closing: false,
            dead: false,
            failures: 0,
            health: Health {
                ok: true,
                synced_seq: end.head.seq,
                ..Health::default()
            },
        }),
        work: Condvar::new(),
        done: Condvar::new(),
        options,
        signing,
    });
    let writer = Writer::new(dir, disk, end.segment, Arc::clone(&shared));
    let thread = std::thread::Builder::new()
        .name("audit".into())
        .spawn(move || writer.run())
        .map_err(|e| AuditError::io("start the writer thread for", dir, e))?;
    let audit = Audit(Arc::new(Inner {
        shared,
        thread: Mutex::new(Some(thread)),
        lock: Mutex::new(Some(lock)),
    }));
    if let Some(torn) = end.torn {
        audit.append(Entry::Note {
            text: format!(
                "an earlier agent left {} bytes of an unfinished record; moved to {}",
                torn.bytes,
                torn.moved_to.display()
            ),
        });
    }
    if let Some(damaged) = end.damaged {
        tracing::error!(%damaged, "the audit log was damaged before this start");
        audit.append(Entry::Note {
            text: format!("found damaged at start: {damaged}"),
        });
    }
    Ok((audit, recovery))
}

impl Audit {
    /// Appends a record and returns its number. Takes microseconds and never waits for the
    /// disk. `None` if there was no room: counted in [`Health::dropped`], and the log will say so.
    pub fn append(&self, entry: Entry) -> Option<u64> {
        let body = body(&entry);
        let shared = &self.0.shared;
        let mut state = shared.lock();
        let seq = state.append(shared, &body);
        drop(state);
        shared.work.notify_one();
        seq
    }

    /// Appends a record and returns once it is on disk (after fdatasync).
    ///
    /// # Errors
    /// [`AuditError::NotTaken`]: it is not in the log. [`AuditError::NotDurable`]: it may or may
    /// not reach the disk; what it announces must not be done.
    pub fn append_durable(&self, entry: Entry) -> Result<u64, AuditError> {
        let body = body(&entry);
        let shared = &self.0.shared;
        let mut state = shared.lock();
        let failures = state.failures;
        let seq = state.append(shared, &body).ok_or_else(|| {
            AuditError::NotTaken(if state.closing || state.dead {
                "it is closed".into()
            } else {
                "too much waits for the disk".into()
            })
        })?;
        state.want_sync = true;
        shared.work.notify_one();
        loop {
            if state.health.synced_seq >= seq {
                return Ok(seq);
            }
            if state.failures != failures || state.dead {
                let fault = state.health.fault.clone();
                return Err(AuditError::NotDurable(
                    fault.unwrap_or_else(|| "its writer is gone".into()),
                ));
            }
            state = shared
                .done
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The end of the log, with records that may still be on their way to the disk.
    pub fn head(&self) -> Head {
        self.0.shared.lock().head
    }

    /// Whether records reach the disk. False from the first failed write or dropped record until
    /// everything that waits has been written again.
    pub fn healthy(&self) -> bool {
        self.0.shared.lock().health.ok
    }

    /// How the log is, in numbers.
    pub fn health(&self) -> Health {
        let state = self.0.shared.lock();
        Health {
            waiting_bytes: state.pending_bytes as u64,
            ..state.health.clone()
        }
    }

    /// The public key of the checkpoints, lower-case hex.
    pub fn public_key(&self) -> &str {
        self.0.shared.signing.public_hex()
    }

    /// Ends the log with a checkpoint, waits for the disk and returns the head, which is worth
    /// keeping elsewhere. Later appends are dropped.
    ///
    /// # Errors
    /// [`AuditError::NotDurable`] if not everything could be written.
    pub fn close(&self) -> Result<Head, AuditError> {
        self.0.close()
    }
}

impl Inner {
    fn close(&self) -> Result<Head, AuditError> {
        let mut state = self.shared.lock();
        if !state.closing {
            state.tell_dropped(&self.shared);
            state.checkpoint(&self.shared);
            state.closing = true;
        }
        drop(state);
        self.shared.work.notify_one();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let panicked = thread.is_some_and(|t| t.join().is_err());
        drop(
            self.lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let state = self.shared.lock();
        if state.health.synced_seq >= state.head.seq {
            return Ok(state.head);
        }
        Err(AuditError::NotDurable(if panicked {
            "its writer panicked".into()
        } else {
            state
                .health
                .fault
                .clone()
                .unwrap_or_else(|| "its writer is gone".into())
        }))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "the audit log was not closed in order");
        }
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between statements: a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn append(&mut self, shared: &Shared, body: &[u8]) -> Option<u64> {
        if self.closing || self.dead {
            self.health.dropped += 1;
            return None;
        }
        if self.pending_bytes + body.len() > shared.options.queue_bytes {
            self.health.dropped += 1;
            self.dropped_untold += 1;
            if self.dropped_untold == 1 {
                tracing::error!("the audit log's queue is full: records are dropped");
            }
            self.health.ok = false;
            return None;
        }
        self.tell_dropped(shared);
        let seq = self.push(shared, body);
        if self.since_checkpoint + 1 >= shared.options.checkpoint_records {
            self.checkpoint(shared);
        }
        Some(seq)
    }

    /// Says how many records were dropped, now that there is room.
    pub(crate) fn tell_dropped(&mut self, shared: &Shared) {
        let dropped = std::mem::take(&mut self.dropped_untold);
        if dropped > 0 {
            let text = format!("{dropped} records before this one were dropped: no room");
            self.push(shared, &body(&Entry::Note { text }));
        }
    }

    /// Adds a note, room or not: for the writer's own few.
    pub(crate) fn note(&mut self, shared: &Shared, text: String) {
        self.push(shared, &body(&Entry::Note { text }));
    }

    /// Adds a signed checkpoint.
    pub(crate) fn checkpoint(&mut self, shared: &Shared) {
        self.last_checkpoint = Instant::now();
        // Sealed without its closing brace, which comes with the signature.
        let head = format!(
            "{{\"kind\":\"checkpoint\",\"key\":\"{}\"",
            shared.signing.public_hex()
        );
        self.push_line(shared, head.as_bytes(), true);
        self.since_checkpoint = 0;
    }

    fn push(&mut self, shared: &Shared, body: &[u8]) -> u64 {
        self.push_line(shared, body, false)
    }

    fn push_line(&mut self, shared: &Shared, body: &[u8], seal: bool) -> u64 {
        // Room for the leading fields and a signature.
        if self.segment_bytes + body.len() as u64 + 512 > shared.options.segment_bytes
            && self.segment != self.head.seq
        {
            self.segment = self.head.seq + 1;
            self.segment_bytes = 0;
            let header = Entry::Segment {
                log: self.log.clone(),
                before: self.head.seq,
                key: shared.signing.public_hex().to_owned(),
            };
            self.render(shared, &self::body(&header), false);
        }
        self.render(shared, body, seal)
    }

    fn render(&mut self, shared: &Shared, body: &[u8], seal: bool) -> u64 {
        let seq = self.head.seq + 1;
        let mut line = Vec::with_capacity(body.len() + 256);
        let time = clock::rfc3339(clock::wall_ns());
        chain::begin_line(&mut line, seq, &time, boot_clock::now_ns(), &self.head.hash);
        // `body` is a JSON object: its opening brace gives way to the leading fields.
        line.extend_from_slice(body.get(1..).unwrap_or_default());
        if seal {
            shared.signing.seal(&mut line);
        }
        self.head = Head {
            seq,
            hash: Hash::of(&line),
        };
        line.push(b'\n');
        self.since_checkpoint += 1;
        self.segment_bytes += line.len() as u64;
        self.pending_bytes += line.len();
        match self.pending.back_mut() {
            Some(chunk) if chunk.segment == self.segment && chunk.bytes.len() < CHUNK_BYTES => {
                chunk.last = seq;
                chunk.bytes.extend_from_slice(&line);
            }
            _ => self.pending.push_back(Chunk {
                segment: self.segment,
                first: seq,
                last: seq,
                bytes: line,
            }),
        }
        seq
    }
}

/// An entry as JSON, bounded in size.
fn body(entry: &Entry) -> Vec<u8> {
    let (kind, why) = match serde_json::to_vec(entry) {
        Ok(json) if json.len() + 512 <= MAX_LINE => return json,
        Ok(json) => (json, "is too large"),
        Err(_) => (Vec::new(), "cannot be written as JSON"),
    };
    let kind = String::from_utf8_lossy(kind.get(..200).unwrap_or(&kind)).into_owned();
    let note = serde_json::json!({
        "kind": "note",
        "text": format!("a record {why} and was left out; it began {kind}"),
    });
    note.to_string().into_bytes()
}

fn lock(dir: &Path) -> Result<File, AuditError> {
    let path = dir.join("writer.lock");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| AuditError::io("open", &path, e))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(AuditError::Locked {
            dir: dir.to_owned(),
        }),
        Err(error) => Err(AuditError::io("lock", &path, error.into())),
    }
}

fn random_name() -> Result<String, AuditError> {
    let path = Path::new("/proc/sys/kernel/random/uuid");
    std::fs::read_to_string(path)
        .map(|uuid| uuid.trim().to_owned())
        .map_err(|e| AuditError::io("read", path, e))
}
