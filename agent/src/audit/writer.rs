//! The thread that carries finished lines to the disk.
//!
//! Invariants: bytes are written at their known offset and kept until fdatasync said yes, so a
//! failed write or sync is simply done again; the bytes and their order are never changed.
//! Segment after segment: the next one is opened once the one before is synced. When the disk is
//! full the reserve becomes the next segment, cut at a record's edge. This thread never ends
//! because of an I/O error.

use super::disk::{Disk, DiskFile};
use super::log::{Chunk, Shared};
use super::segment::Segment;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Space set aside for a full disk.
pub(crate) const RESERVE_FILE: &str = "reserve";

/// Bytes that are kept for a second attempt at most (plus one chunk).
const UNSYNCED_BYTES: usize = 4 << 20;

/// Attempts at the end of the agent's life, before what is left is given up.
const CLOSING_ATTEMPTS: u32 = 3;

pub(crate) struct Writer {
    dir: PathBuf,
    disk: Box<dyn Disk>,
    shared: Arc<Shared>,
    file: Option<Open>,
    reserve: Reserve,
    /// The attempt to make the reserve failed: told once.
    reserve_told: bool,
    /// When to try again after a failure.
    retry_at: Option<Instant>,
    /// When to try to set the reserve aside again.
    reserve_at: Option<Instant>,
}

/// The segment that is being written.
struct Open {
    /// Name of the segment in the chunks; an emergency file goes on with the same one.
    segment: u64,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// Bytes that are on disk for sure.
    synced: u64,
    /// What comes after them, whole lines.
    lines: Vec<u8>,
    /// How much of `lines` was written, if not synced.
    written: usize,
    first: u64,
    last: u64,
    since: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reserve {
    /// There is none, by configuration or because it could not be made.
    None,
    Ready,
    /// It has become a segment.
    Used,
}

impl Writer {
    /// A writer that goes on at the end of `last` (segment, length).
    pub(crate) fn new(
        dir: &Path,
        disk: Box<dyn Disk>,
        last: Option<(Segment, u64)>,
        shared: Arc<Shared>,
    ) -> Self {
        let mut writer = Self {
            dir: dir.to_owned(),
            disk,
            shared,
            file: None,
            reserve: Reserve::None,
            reserve_told: false,
            retry_at: None,
            reserve_at: None,
        };
        if let Some((segment, len)) = last {
            // On failure the first write tries again and reports.
            writer.file = writer.disk.open(&segment.path).ok().map(|file| Open {
                segment: segment.first,
                path: segment.path,
                file,
                synced: len,
                lines: Vec::new(),
                written: 0,
                first: 0,
                last: 0,
                since: None,
            });
        }
        writer.make_reserve();
        writer
    }

    /// Runs until the log is closed.
    pub(crate) fn run(mut self) {
        /// Whoever waits must not wait for a thread that is gone.
        struct Gone(Arc<Shared>);
        impl Drop for Gone {
            fn drop(&mut self) {
                let mut state = self.0.lock();
                state.dead = true;
                state.health.ok = false;
                drop(state);
                self.0.done.notify_all();
            }
        }
        let gone = Gone(Arc::clone(&self.shared));
        let mut closing_attempts = 0;
        loop {
            let (want_sync, closing) = self.wait();
            let done = self.carry(want_sync || closing);
            if closing {
                closing_attempts += 1;
                let left = self.shared.lock().pending_bytes;
                if (done && left == 0) || closing_attempts >= CLOSING_ATTEMPTS {
                    break;
                }
            }
        }
        drop(gone);
    }

    /// Waits for something to do; adds the idle checkpoint. Returns whether somebody waits for
    /// the disk, and whether this is the end.
    fn wait(&mut self) -> (bool, bool) {
        let shared = Arc::clone(&self.shared);
        let options = &shared.options;
        let mut state = shared.lock();
        loop {
            let now = Instant::now();
            if state.last_checkpoint + options.checkpoint_every <= now && !state.closing {
                state.checkpoint(&shared);
            }
            let sync_at = self
                .file
                .as_ref()
                .and_then(|f| f.since)
                .map(|since| since + options.commit_every);
            if state.want_sync || state.closing || self.reserve_at.is_some_and(|at| at <= now) {
                break;
            }
            let idle_until = state.last_checkpoint + options.checkpoint_every;
            let until = match self.retry_at {
                Some(retry) if retry > now => retry,
                Some(_) => break,
                None if !state.pending.is_empty() => break,
                None => sync_at.unwrap_or(idle_until),
            };
            if until <= now {
                break;
            }
            let until = until
                .min(idle_until)
                .min(self.reserve_at.unwrap_or(idle_until));
            let pause = until
                .saturating_duration_since(now)
                .max(Duration::from_millis(1));
            state = shared
                .work
                .wait_timeout(state, pause)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        (std::mem::take(&mut state.want_sync), state.closing)
    }

    /// Writes what waits; syncs if asked to or due. Whether all went well.
    fn carry(&mut self, sync: bool) -> bool {
        self.retry_at = None;
        match self.try_carry(sync) {
            Ok(()) => {
                self.well();
                true
            }
            Err((what, error)) => {
                self.failed(&what, &error);
                false
            }
        }
    }

    fn try_carry(&mut self, sync: bool) -> Result<(), (String, io::Error)> {
        self.push_out()?;
        loop {
            let chunk = {
                let mut state = self.shared.lock();
                let chunk = state.pending.pop_front();
                if let Some(chunk) = &chunk {
                    state.pending_bytes -= chunk.bytes.len();
                }
                chunk
            };
            let Some(chunk) = chunk else { break };
            if let Err(error) = self.take(&chunk) {
                // It stays first in line.
                let mut state = self.shared.lock();
                state.pending_bytes += chunk.bytes.len();
                state.pending.push_front(chunk);
                return Err(error);
            }
            self.push_out()?;
            self.sync_if_due()?;
        }
        if sync {
            self.sync()
        } else {
            self.sync_if_due()
        }
    }

    fn sync_if_due(&mut self) -> Result<(), (String, io::Error)> {
        let every = self.shared.options.commit_every;
        let since = self.file.as_ref().and_then(|f| f.since);
        if since.is_some_and(|s| s.elapsed() >= every) {
            self.sync()
        } else {
            Ok(())
        }
    }

    /// Puts a chunk behind the current lines, in its segment.
    fn take(&mut self, chunk: &Chunk) -> Result<(), (String, io::Error)> {
        if self
            .file
            .as_ref()
            .is_some_and(|f| f.lines.len() >= UNSYNCED_BYTES)
        {
            self.sync()?;
        }
        let fits = self
            .file
            .as_ref()
            .is_some_and(|f| f.segment == chunk.segment);
        if !fits {
            self.sync()?;
            self.open_for(chunk)?;
        }
        let Some(open) = &mut self.file else {
            return Ok(());
        };
        if open.lines.is_empty() {
            open.first = chunk.first;
        }
        open.lines.extend_from_slice(&chunk.bytes);
        open.last = chunk.last;
        Ok(())
    }

    fn open_for(&mut self, chunk: &Chunk) -> Result<(), (String, io::Error)> {
        let path = Segment::at(&self.dir, chunk.first).path;
        let file = match self.disk.open(&path) {
            Err(error) if full(&error) && self.reserve == Reserve::Ready => self
                .use_reserve(&path)
                .map_err(|e| told("open", &path, e))?,
            other => other.map_err(|e| told("open", &path, e))?,
        };
        self.file = Some(Open {
            segment: chunk.segment,
            path,
            file,
            synced: 0,
            lines: Vec::new(),
            written: 0,
            first: 0,
            last: 0,
            since: None,
        });
        Ok(())
    }

    /// Writes the current lines, without a sync.
    fn push_out(&mut self) -> Result<(), (String, io::Error)> {
        while let Some(open) = &mut self.file {
            if open.written == open.lines.len() {
                break;
            }
            let offset = open.synced + open.written as u64;
            let wrote = match open.file.write_at(&open.lines[open.written..], offset) {
                Ok(0) => Err(io::Error::from(io::ErrorKind::WriteZero)),
                other => other,
            };
            match wrote {
                Ok(bytes) => {
                    open.since.get_or_insert_with(Instant::now);
                    open.written += bytes;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if full(&error) && self.reserve == Reserve::Ready => {
                    self.move_to_reserve()?;
                }
                Err(error) => return Err(told("write", &open.path, error)),
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), (String, io::Error)> {
        let Some(open) = &mut self.file else {
            return Ok(());
        };
        if open.lines.is_empty() {
            return Ok(());
        }
        if let Err(error) = open.file.sync() {
            // The kernel may have thrown the dirty pages away: write them all again.
            open.written = 0;
            return Err(told("sync", &open.path, error));
        }
        open.synced += open.lines.len() as u64;
        open.lines.clear();
        open.written = 0;
        open.since = None;
        let last = open.last;
        let mut state = self.shared.lock();
        state.health.synced_seq = last;
        drop(state);
        self.shared.done.notify_all();
        Ok(())
    }

    /// The disk is full: what does not fit any more goes to the reserve, from a record's start.
    fn move_to_reserve(&mut self) -> Result<(), (String, io::Error)> {
        let Some(mut open) = self.file.take() else {
            return Ok(());
        };
        let whole = open.lines[..open.written]
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |n| n + 1);
        let kept = open.lines[..whole].split_inclusive(|b| *b == b'\n').count() as u64;
        let rest = open.lines.split_off(whole);
        let (first, last) = (open.first + kept, open.last);
        let moved = (|| {
            open.file
                .truncate(open.synced + whole as u64)
                .map_err(|e| told("cut", &open.path, e))?;
            open.file.sync().map_err(|e| told("sync", &open.path, e))?;
            let path = Segment::at(&self.dir, first).path;
            // An empty segment may already have this name: it is replaced.
            let file = self
                .use_reserve(&path)
                .map_err(|e| told("use the reserve as", &path, e))?;
            Ok((path, file))
        })();
        match moved {
            Ok((path, file)) => {
                if kept > 0 {
                    self.shared.lock().health.synced_seq = first - 1;
                }
                self.file = Some(Open {
                    segment: open.segment,
                    path,
                    file,
                    synced: 0,
                    lines: rest,
                    written: 0,
                    first,
                    last,
                    since: None,
                });
                Ok(())
            }
            Err(error) => {
                open.lines.extend_from_slice(&rest);
                open.written = 0;
                self.file = Some(open);
                Err(error)
            }
        }
    }

    fn use_reserve(&mut self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.disk.rename(&self.dir.join(RESERVE_FILE), path)?;
        self.reserve = Reserve::Used;
        let file = self.disk.open(path)?;
        let mut state = self.shared.lock();
        state.health.emergency = true;
        state.health.ok = false;
        state.health.errors += 1;
        state.health.fault = Some("the disk is full; the reserve is in use".into());
        let text = "the disk is full: the log goes on in its reserve".to_owned();
        state.note(&self.shared, text);
        drop(state);
        tracing::error!(path = %path.display(), "the disk is full: the audit log uses its reserve");
        Ok(file)
    }

    fn make_reserve(&mut self) {
        let bytes = self.shared.options.reserve_bytes;
        if bytes == 0 || self.reserve == Reserve::Ready {
            return;
        }
        match self.disk.reserve(&self.dir.join(RESERVE_FILE), bytes) {
            Ok(()) => self.reserve = Reserve::Ready,
            Err(error) => {
                if !self.reserve_told {
                    tracing::error!(%error, "no space can be set aside for the audit log");
                }
                self.reserve_told = true;
            }
        }
    }

    /// Everything that waited was written.
    fn well(&mut self) {
        let used = self.reserve == Reserve::Used;
        if used && self.reserve_at.take().is_none_or(|at| at <= Instant::now()) {
            self.make_reserve();
        }
        let room_again = used && self.reserve == Reserve::Ready;
        if self.reserve == Reserve::Used {
            self.reserve_at = Some(Instant::now() + self.shared.options.retry_every);
        }
        let mut state = self.shared.lock();
        state.tell_dropped(&self.shared);
        if room_again {
            state.health.emergency = false;
            self.reserve_told = false;
            state.note(&self.shared, "the disk has room again".into());
        }
        if !state.health.emergency && !state.health.ok {
            state.health.ok = true;
            if state.health.fault.take().is_some() {
                let errors = state.health.errors;
                let text =
                    format!("the log is written again, after {errors} errors since its start");
                state.note(&self.shared, text);
            }
            tracing::warn!("the audit log is written again");
        }
    }

    fn failed(&mut self, what: &str, error: &io::Error) {
        self.retry_at = Some(Instant::now() + self.shared.options.retry_every);
        let text = format!("cannot {what}: {error}");
        let mut state = self.shared.lock();
        let news = state.health.fault.as_ref() != Some(&text);
        state.failures += 1;
        state.health.ok = false;
        state.health.errors += 1;
        state.health.fault = Some(text.clone());
        drop(state);
        self.shared.done.notify_all();
        if news {
            tracing::error!(fault = %text, "the audit log cannot be written");
        }
    }
}

fn full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn told(verb: &str, path: &Path, error: io::Error) -> (String, io::Error) {
    (format!("{verb} {}", path.display()), error)
}
