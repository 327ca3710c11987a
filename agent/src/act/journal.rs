//! The lease journal: what is in force, on a file that survives `kill -9`.
//!
//! Invariants:
//! - The record of a containment is in the file before its value is in the cgroup.
//! - A record is one line and one `write(2)` on an append-only descriptor. It is there whole, or cut
//!   short if its writer was killed in it (the kernel looks for a fatal signal at every page): then
//!   nothing came of it, because the write to the cgroup comes after it.
//! - Every line stands alone: version, boot id, run, checksum and the whole entry. A damaged line
//!   costs that line; later ones and other leases are still read.
//! - Lines of an earlier boot do not count: cgroup values do not outlive a reboot.
//!
//! Format: `CRC32-as-8-hex-digits JSON\n`, the checksum over the JSON's bytes.
//! The file must not be fsynced (it lives on tmpfs) and must not grow without a bound: it is
//! rewritten with the living entries at open and whenever it passes [`COMPACT_AT`].
//!
//! Files in the folder: `leases.journal`, `journal.lock`, `keeper.log`.

use super::cgroup::Version;
use crate::boot_clock::now_ns;
use palisade_core::{Lease, LeaseId};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Version of the line format. A reader skips and counts lines of other versions.
const FORMAT: u32 = 1;
/// Size at which the file is rewritten, bytes.
const COMPACT_AT: u64 = 256 << 10;
/// A renewal that moves the deadline by less than this is not written, nanoseconds. The keeper
/// waits longer than that past a deadline before it steps in.
const RENEW_STEP_NS: u64 = 1_000_000_000;
/// Longest wait for another process that works on the journal.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A system call failed.
    #[error("{call} {path}: {source}", path = path.display())]
    Io {
        /// Which.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A keeper or another command works on it and does not end.
    #[error("{path} is locked by another process", path = .0.display())]
    Busy(PathBuf),
}

/// One containment: everything that an undo needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The lease, as the core knows it.
    pub lease: Lease,
    /// The directory that was written to (for a freeze it may be in another hierarchy than the
    /// lease's cgroup).
    pub dir: PathBuf,
    /// Its inode.
    pub inode: u64,
    /// Its files.
    pub version: Version,
    /// The value to put back.
    pub original: String,
    /// The value that is or is about to be in force.
    pub set: String,
    /// Our earlier value under the same lease, which is still there if the last write did not
    /// happen.
    pub before: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
enum State {
    /// Before the write to the cgroup.
    Intent { entry: Entry },
    /// After it, with what was read back as `set`.
    Held { entry: Entry },
    /// The deadline moved.
    Renewed { entry: Entry },
    /// Put back, or found that there is nothing to put back.
    Undone { lease: LeaseId, how: String },
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    v: u32,
    boot: String,
    run: String,
    at_ns: u64,
    #[serde(flatten)]
    state: State,
}

/// What an earlier run of this boot left behind.
#[derive(Debug, Default)]
pub struct Recovered {
    /// In force without an owner, in the order of acquisition. Undo them newest first.
    pub orphans: Vec<Entry>,
    /// Lines that could not be read: damaged or of another version.
    pub damaged: u64,
    /// A line was cut short by its writer's death.
    pub torn: bool,
}

/// The content of a journal file.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Living entries with the run that wrote them, in the order of acquisition.
    pub entries: Vec<(String, Entry)>,
    /// As in [`Recovered`].
    pub damaged: u64,
    /// As in [`Recovered`].
    pub torn: bool,
}

/// The open journal of one run.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    boot: String,
    run: String,
    file: File,
    size: u64,
    entries: Vec<Entry>,
}

impl Journal {
    /// Opens the journal in `dir` (made with mode 0700 if missing), takes over what earlier runs
    /// of this boot left in force, and rewrites the file.
    pub fn open(dir: &Path) -> Result<(Self, Recovered), JournalError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| wrong("create", dir, e))?;
        let boot = boot_id()?;
        let _lock = lock(dir)?;
        let loaded = load(dir, &boot)?;
        let entries: Vec<Entry> = loaded.entries.into_iter().map(|(_, e)| e).collect();
        let run = format!("{}-{}", std::process::id(), now_ns());
        let (file, size) = rewrite(dir, &boot, &run, &entries)?;
        let journal = Self {
            dir: dir.to_owned(),
            boot,
            run,
            file,
            size,
            entries: entries.clone(),
        };
        let recovered = Recovered {
            orphans: entries,
            damaged: loaded.damaged,
            torn: loaded.torn,
        };
        Ok((journal, recovered))
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Name of this run; the keeper acts on the entries of its own run only.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// The living entry of a lease.
    pub fn entry(&self, lease: LeaseId) -> Option<&Entry> {
        self.entries.iter().find(|e| e.lease.id == lease)
    }

    /// All living entries, in the order of acquisition.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// To be called before the write to the cgroup; if it fails, do not write. An entry of the
    /// same lease is replaced and keeps its place in the order.
    pub fn intent(&mut self, entry: Entry) -> Result<(), JournalError> {
        self.append(State::Intent {
            entry: entry.clone(),
        })?;
        self.put(entry);
        Ok(())
    }

    /// After the write: `observed` is what was read back.
    pub fn held(&mut self, lease: LeaseId, observed: &str) -> Result<(), JournalError> {
        let Some(mut entry) = self.entry(lease).cloned() else {
            return Ok(());
        };
        observed.clone_into(&mut entry.set);
        entry.before = None;
        self.append(State::Held {
            entry: entry.clone(),
        })?;
        self.put(entry);
        Ok(())
    }

    /// The deadline moved. Small steps are kept in memory only.
    pub fn renew(&mut self, lease: LeaseId, until_ns: u64) -> Result<(), JournalError> {
        let Some(mut entry) = self.entry(lease).cloned() else {
            return Ok(());
        };
        if until_ns.abs_diff(entry.lease.until_ns) < RENEW_STEP_NS {
            return Ok(());
        }
        entry.lease.until_ns = until_ns;
        self.append(State::Renewed {
            entry: entry.clone(),
        })?;
        self.put(entry);
        Ok(())
    }

    /// The lease needs no undo any more.
    pub fn undone(&mut self, lease: LeaseId, how: &str) -> Result<(), JournalError> {
        self.append(State::Undone {
            lease,
            how: how.to_owned(),
        })?;
        self.entries.retain(|e| e.lease.id != lease);
        Ok(())
    }

    fn put(&mut self, entry: Entry) {
        put(&mut self.entries, entry, |e| e.lease.id);
    }

    fn append(&mut self, state: State) -> Result<(), JournalError> {
        if self.size > COMPACT_AT {
            let _lock = lock(&self.dir)?;
            let (file, size) = rewrite(&self.dir, &self.boot, &self.run, &self.entries)?;
            self.file = file;
            // Many living entries must not mean a rewrite at every line.
            self.size = size.min(COMPACT_AT / 2);
        }
        let line = encode(&self.boot, &self.run, state)?;
        self.size += line.len() as u64;
        write_once(&mut self.file, &line).map_err(|e| wrong("write", &path(&self.dir), e))
    }
}

/// Marks a lease as undone in a journal that another process owns (the keeper's way). The lock
/// must be held.
pub(super) fn mark_undone(
    dir: &Path,
    run: &str,
    lease: LeaseId,
    how: &str,
) -> Result<(), JournalError> {
    let path = path(dir);
    let mut file = OpenOptions::new()
        .append(true)
        .open(&path)
        .map_err(|e| wrong("open", &path, e))?;
    let state = State::Undone {
        lease,
        how: how.to_owned(),
    };
    // A line that its writer could not finish must not swallow this one.
    let mut line = b"\n".to_vec();
    line.extend(encode(&boot_id()?, run, state)?);
    write_once(&mut file, &line).map_err(|e| wrong("write", &path, e))
}

/// What the journal in `dir` says is in force, without changing anything.
pub fn peek(dir: &Path) -> Result<Vec<Lease>, JournalError> {
    let loaded = load(dir, &boot_id()?)?;
    Ok(loaded
        .entries
        .into_iter()
        .map(|(_, entry)| entry.lease)
        .collect())
}

/// Reads a journal file; a missing one is empty. Never fails for what is in it.
pub(super) fn load(dir: &Path, boot: &str) -> Result<Loaded, JournalError> {
    let path = path(dir);
    match fs::read(&path) {
        Ok(bytes) => Ok(parse(&bytes, boot)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Loaded::default()),
        Err(e) => Err(wrong("read", &path, e)),
    }
}

fn parse(bytes: &[u8], boot: &str) -> Loaded {
    let mut loaded = Loaded::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (raw, next) = match rest.iter().position(|b| *b == b'\n') {
            Some(at) => (&rest[..at], &rest[at + 1..]),
            None => (rest, &rest[rest.len()..]),
        };
        rest = next;
        if raw.is_empty() {
            continue;
        }
        match decode(raw) {
            Some(line) if line.boot == boot => match line.state {
                State::Intent { entry } | State::Held { entry } | State::Renewed { entry } => {
                    put(&mut loaded.entries, (line.run, entry), |(_, e)| e.lease.id);
                }
                State::Undone { lease, .. } => {
                    loaded.entries.retain(|(_, e)| e.lease.id != lease);
                }
            },
            Some(_) => {}
            None if is_cut_short(raw) => loaded.torn = true,
            None => loaded.damaged += 1,
        }
    }
    loaded
}

fn put<T>(list: &mut Vec<T>, new: T, id: impl Fn(&T) -> LeaseId) {
    match list.iter_mut().find(|old| id(old) == id(&new)) {
        Some(old) => *old = new,
        None => list.push(new),
    }
}

fn encode(boot: &str, run: &str, state: State) -> Result<Vec<u8>, JournalError> {
    let line = Line {
        v: FORMAT,
        boot: boot.to_owned(),
        run: run.to_owned(),
        at_ns: now_ns(),
        state,
    };
    // Fails for a path that is not UTF-8; cgroup paths come out of UTF-8 text.
    let json = serde_json::to_vec(&line).map_err(|e| JournalError::Io {
        call: "encode a line for",
        path: PathBuf::from("leases.journal"),
        source: e.into(),
    })?;
    let mut out = format!("{:08x} ", crc32fast::hash(&json)).into_bytes();
    out.extend(json);
    out.push(b'\n');
    Ok(out)
}

fn decode(raw: &[u8]) -> Option<Line> {
    let (sum, json) = raw.split_at_checked(9)?;
    let sum = std::str::from_utf8(sum).ok()?.strip_suffix(' ')?;
    if u32::from_str_radix(sum, 16).ok()? != crc32fast::hash(json) {
        return None;
    }
    let line: Line = serde_json::from_slice(json).ok()?;
    (line.v == FORMAT).then_some(line)
}

/// Whether a line ends before its record does. Who writes behind such a line begins with a new one.
fn is_cut_short(raw: &[u8]) -> bool {
    match raw.get(9..) {
        Some(json) => {
            serde_json::from_slice::<serde::de::IgnoredAny>(json).is_err_and(|error| error.is_eof())
        }
        None => true,
    }
}

fn rewrite(
    dir: &Path,
    boot: &str,
    run: &str,
    entries: &[Entry],
) -> Result<(File, u64), JournalError> {
    let temporary = dir.join("leases.journal.new");
    let mut bytes = Vec::new();
    for entry in entries {
        let entry = entry.clone();
        // As an intent: whether the last write happened is for the undo to find out.
        bytes.extend(encode(boot, run, State::Intent { entry })?);
    }
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(wrong("remove", &temporary, e));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(|e| wrong("create", &temporary, e))?;
    file.write_all(&bytes)
        .map_err(|e| wrong("write", &temporary, e))?;
    fs::rename(&temporary, path(dir)).map_err(|e| wrong("rename", &temporary, e))?;
    Ok((file, bytes.len() as u64))
}

fn write_once(file: &mut File, line: &[u8]) -> io::Result<()> {
    let written = file.write(line)?;
    if written == line.len() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::WriteZero,
        format!(
            "{written} of {} bytes (is the file system full?)",
            line.len()
        ),
    ))
}

/// Serialises whoever rewrites the journal or acts on another process's journal. Freed on drop.
pub(super) fn lock(dir: &Path) -> Result<File, JournalError> {
    let path = dir.join("journal.lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| wrong("open", &path, e))?;
    let start = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if start.elapsed() < LOCK_WAIT => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(JournalError::Busy(path)),
            Err(e) => return Err(wrong("lock", &path, e.into())),
        }
    }
}

pub(super) fn boot_id() -> Result<String, JournalError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|e| wrong("read", path, e))
}

/// The journal file in a folder.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("leases.journal")
}

fn wrong(call: &'static str, path: &Path, source: io::Error) -> JournalError {
    JournalError::Io {
        call,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
