//! The writer against disks that refuse: full, failing, failing to sync.
#![allow(clippy::unwrap_used)]

use super::disk::{Disk, DiskFile, RealDisk};
use super::log::{Audit, open_on};
use super::{AuditError, Entry, Filter, Options, Status, VerifyOptions, read, verify};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the disk refuses at the moment.
#[derive(Default)]
struct Faults {
    /// Bytes that may still be written outside of the reserve; beyond them, ENOSPC.
    room: AtomicU64,
    /// Bytes of the reserve.
    reserve: AtomicU64,
    /// No space limit.
    endless: AtomicBool,
    broken_writes: AtomicBool,
    broken_syncs: AtomicBool,
    /// Every write takes this much at most (0: all).
    short: AtomicU64,
    /// Holds every write until released.
    stuck: Mutex<()>,
    /// Writes that were begun.
    begun: AtomicU64,
}

struct FaultyDisk(Arc<Faults>, RealDisk);
struct FaultyFile {
    faults: Arc<Faults>,
    file: Box<dyn DiskFile>,
    reserved: bool,
}

impl Disk for FaultyDisk {
    fn open(&mut self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let reserved = self.0.reserve.load(Ordering::SeqCst) == u64::MAX;
        let file = self.1.open(path)?;
        if reserved {
            self.0.reserve.store(4096, Ordering::SeqCst);
        }
        Ok(Box::new(FaultyFile {
            faults: Arc::clone(&self.0),
            file,
            reserved,
        }))
    }

    fn reserve(&mut self, path: &Path, bytes: u64) -> io::Result<()> {
        if self.0.endless.load(Ordering::SeqCst) || self.0.room.load(Ordering::SeqCst) >= bytes {
            return self.1.reserve(path, bytes);
        }
        Err(io::ErrorKind::StorageFull.into())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.1.rename(from, to)?;
        // The next file that is opened is the reserve.
        self.0.reserve.store(u64::MAX, Ordering::SeqCst);
        Ok(())
    }
}

impl DiskFile for FaultyFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.faults.begun.fetch_add(1, Ordering::SeqCst);
        drop(self.faults.stuck.lock());
        if self.faults.broken_writes.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let short = match self.faults.short.load(Ordering::SeqCst) {
            0 => bytes.len(),
            short => bytes.len().min(short as usize),
        };
        let pool = if self.reserved {
            &self.faults.reserve
        } else {
            &self.faults.room
        };
        let endless = self.faults.endless.load(Ordering::SeqCst);
        let room = if endless {
            short
        } else {
            short.min(pool.load(Ordering::SeqCst) as usize)
        };
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let wrote = self.file.write_at(&bytes[..room], offset)?;
        if !endless {
            pool.fetch_sub(wrote as u64, Ordering::SeqCst);
        }
        Ok(wrote)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.faults.broken_syncs.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.file.sync()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
}

fn quick() -> Options {
    Options {
        commit_every: Duration::from_millis(5),
        retry_every: Duration::from_millis(10),
        reserve_bytes: 4096,
        ..Options::default()
    }
}

fn faulty(dir: &Path, options: Options) -> (Audit, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    faults.endless.store(true, Ordering::SeqCst);
    let disk = FaultyDisk(Arc::clone(&faults), RealDisk);
    let (audit, _) = open_on(dir, options, Box::new(disk)).unwrap();
    (audit, faults)
}

fn note(text: impl Into<String>) -> Entry {
    Entry::Note { text: text.into() }
}

/// Waits for something that happens on the writer's thread; long enough for a slow machine.
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn intact(dir: &Path, head: super::Head) {
    let report = verify(
        dir,
        &VerifyOptions {
            head: Some(head),
            ..Default::default()
        },
    )
    .unwrap();
    assert_eq!(report.status, Status::Intact, "{:#?}", report.faults);
}

fn notes(dir: &Path) -> String {
    let filter = Filter {
        kinds: vec!["note".into()],
        ..Filter::default()
    };
    read(dir, &filter)
        .unwrap()
        .iter()
        .map(|r| r.line.clone() + "\n")
        .collect()
}

#[test]
fn full_disk_goes_on_in_the_reserve_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, faults) = faulty(dir.path(), quick());
    audit.append_durable(note("before")).unwrap();
    // Room for a part of the next line only: the torn part must not stay.
    faults.room.store(57, Ordering::SeqCst);
    faults.endless.store(false, Ordering::SeqCst);
    audit.append_durable(note("as the disk fills")).unwrap();
    assert!(!audit.healthy(), "a full disk is no healthy log");
    assert!(audit.health().emergency);
    audit.append_durable(note("in the reserve")).unwrap();
    // The reserve fills, too: now nothing is durable any more.
    let error = (0..100).find_map(|_| audit.append_durable(note("x".repeat(200))).err());
    assert!(
        matches!(error, Some(AuditError::NotDurable(ref why)) if why.contains("audit-")),
        "{error:?}"
    );
    let during = verify(dir.path(), &VerifyOptions::default()).unwrap();
    assert_eq!(during.fault_count, 0, "{:#?}", during.faults);
    // Room again: all that waited is written, in order, and the reserve is set aside anew.
    faults.endless.store(true, Ordering::SeqCst);
    eventually("healthy again", || audit.healthy());
    assert!(!audit.health().emergency);
    audit.append_durable(note("after")).unwrap();
    let head = audit.close().unwrap();
    intact(dir.path(), head);
    let notes = notes(dir.path());
    for part in [
        "goes on in its reserve",
        "as the disk fills",
        "has room again",
        "after",
    ] {
        assert!(notes.contains(part), "{part} is not in\n{notes}");
    }
    assert!(dir.path().join(super::writer::RESERVE_FILE).exists());
}

#[test]
fn full_disk_at_rotation_uses_the_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, faults) = faulty(
        dir.path(),
        Options {
            segment_bytes: 2000,
            ..quick()
        },
    );
    audit.append_durable(note("one")).unwrap();
    faults.endless.store(false, Ordering::SeqCst);
    faults.room.store(1400, Ordering::SeqCst);
    for i in 0..8 {
        let _ = audit.append_durable(note(format!("filling {i}")));
    }
    assert!(audit.health().emergency);
    faults.endless.store(true, Ordering::SeqCst);
    eventually("healthy again", || audit.healthy());
    intact(dir.path(), audit.close().unwrap());
}

#[test]
fn failed_write_is_told_to_who_waits_and_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, faults) = faulty(dir.path(), quick());
    audit.append_durable(note("before")).unwrap();
    faults.broken_writes.store(true, Ordering::SeqCst);
    let error = audit.append_durable(note("during"));
    assert!(matches!(error, Err(AuditError::NotDurable(_))), "{error:?}");
    assert!(!audit.healthy());
    assert!(audit.health().errors > 0);
    assert!(audit.health().fault.is_some());
    faults.broken_writes.store(false, Ordering::SeqCst);
    eventually("healthy again", || audit.healthy());
    let head = audit.close().unwrap();
    intact(dir.path(), head);
    assert!(
        notes(dir.path()).contains("during"),
        "it was taken, so it is written in the end"
    );
    assert!(notes(dir.path()).contains("is written again, after"));
}

#[test]
fn failed_sync_writes_the_same_bytes_again() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, faults) = faulty(dir.path(), quick());
    faults.broken_syncs.store(true, Ordering::SeqCst);
    assert!(matches!(
        audit.append_durable(note("unsynced")),
        Err(AuditError::NotDurable(_))
    ));
    assert_eq!(audit.health().synced_seq, 0);
    faults.short.store(100, Ordering::SeqCst);
    faults.broken_syncs.store(false, Ordering::SeqCst);
    eventually("healthy again", || audit.healthy());
    intact(dir.path(), audit.close().unwrap());
}

#[test]
fn appending_never_waits_for_a_stuck_disk_and_drops_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, faults) = faulty(
        dir.path(),
        Options {
            queue_bytes: 20_000,
            ..quick()
        },
    );
    audit.append_durable(note("first")).unwrap();
    let stuck = faults.stuck.lock().unwrap();
    // Until the writer is held with what it took from the queue, the queue could still empty.
    let begun = faults.begun.load(Ordering::SeqCst);
    audit.append(note("the writer is held with this"));
    eventually("the writer is held", || {
        faults.begun.load(Ordering::SeqCst) > begun
    });
    let taken = (0..500)
        .filter(|i| audit.append(note(format!("{i:0100}"))).is_some())
        .count();
    let dropped = audit.health().dropped;
    assert!(taken > 0 && dropped > 0);
    assert_eq!(taken as u64 + dropped, 500);
    assert!(!audit.healthy());
    // As long as the others: a shorter one could still fit, and would wait for the disk.
    assert!(matches!(
        audit.append_durable(note(format!("{:0100}", 500))),
        Err(AuditError::NotTaken(_))
    ));
    drop(stuck);
    eventually("healthy again", || audit.healthy());
    intact(dir.path(), audit.close().unwrap());
    let told = format!("{} records before this one were dropped", dropped + 1);
    assert!(notes(dir.path()).contains(&told), "{}", notes(dir.path()));
}

#[test]
fn closing_on_a_dead_disk_ends_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, faults) = faulty(dir.path(), quick());
    audit.append_durable(note("kept")).unwrap();
    faults.broken_writes.store(true, Ordering::SeqCst);
    audit.append(note("lost"));
    assert!(matches!(audit.close(), Err(AuditError::NotDurable(_))));
    assert_eq!(audit.append(note("too late")), None);
    let report = verify(dir.path(), &VerifyOptions::default()).unwrap();
    assert_eq!(report.fault_count, 0, "{:#?}", report.faults);
}
