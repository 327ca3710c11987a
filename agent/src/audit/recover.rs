//! Finding the end of a log that somebody stopped writing, perhaps in the middle of a line.
//!
//! Invariants: only what is no whole record at the very end is moved, to a `.torn` file beside
//! it, never deleted; a fault with a record behind it is no torn tail: it stays where it is for
//! `verify` to find, and the log goes on after it.

use super::AuditError;
use super::chain::{Hash, Head, Meta};
use super::segment::{self, Line, Lines, Segment};
use serde::Deserialize;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What opening a log found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// End of the log as found; seq 0 for a new one.
    pub head: Head,
    /// A tail that was moved aside.
    pub torn: Option<Torn>,
    /// A fault that is no torn tail, in words; run `palisade audit verify`.
    pub damaged: Option<String>,
}

/// A tail that was moved aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The segment that it was cut from.
    pub segment: PathBuf,
    /// Where it is now.
    pub moved_to: PathBuf,
    /// How long it is.
    pub bytes: u64,
}

/// Where the writer goes on.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) head: Head,
    /// The last segment and its length; `None` for a new log.
    pub(crate) segment: Option<(Segment, u64)>,
    /// The log's name, if its last segment says it.
    pub(crate) log: Option<String>,
    pub(crate) torn: Option<Torn>,
    pub(crate) damaged: Option<String>,
}

/// Reads the last segment (and those before it, if it has no record) and mends its tail.
pub(crate) fn find_end(dir: &Path) -> Result<End, AuditError> {
    let mut end = End {
        head: Head {
            seq: 0,
            hash: Hash::genesis(),
        },
        segment: None,
        log: None,
        torn: None,
        damaged: None,
    };
    let mut segments = segment::list(dir)?;
    while let Some(segment) = segments.pop() {
        let scan = scan(&segment)?;
        if scan.good_end < scan.len {
            let torn = move_aside(&segment, scan.good_end, scan.len)?;
            end.torn.get_or_insert(torn);
        }
        end.damaged = end.damaged.or(scan.damaged);
        end.log = end.log.or(scan.log);
        if let Some(head) = scan.head {
            end.head = head;
            end.segment = Some((segment, scan.good_end));
            break;
        }
        // Made, but nothing of it was written before the crash.
        fs::remove_file(&segment.path).map_err(|e| AuditError::io("remove", &segment.path, e))?;
    }
    // An emergency segment does not say the log's name; one before it does.
    while end.log.is_none()
        && let Some(segment) = segments.pop()
    {
        end.log = name_in(&segment)?;
    }
    Ok(end)
}

#[derive(Deserialize)]
struct Named {
    log: String,
}

fn name_in(segment: &Segment) -> Result<Option<String>, AuditError> {
    let mut lines = Lines::open(&segment.path)?;
    match lines
        .next()
        .map_err(|e| AuditError::io("read", &segment.path, e))?
    {
        Line::Whole(line) => Ok(serde_json::from_slice(line).ok().map(|n: Named| n.log)),
        _ => Ok(None),
    }
}

#[derive(Default)]
struct Scan {
    head: Option<Head>,
    log: Option<String>,
    /// End of the last line that is a record.
    good_end: u64,
    len: u64,
    damaged: Option<String>,
}

fn scan(segment: &Segment) -> Result<Scan, AuditError> {
    let mut lines = Lines::open(&segment.path)?;
    let mut scan = Scan::default();
    let mut bad: Option<u64> = None;
    loop {
        let line = lines
            .next()
            .map_err(|e| AuditError::io("read", &segment.path, e))?;
        let line = match line {
            Line::Whole(line) => line,
            Line::TooLong => &[],
            Line::Unfinished(bytes) => {
                scan.len = lines.offset + bytes;
                break;
            }
            Line::End => {
                scan.len = lines.offset;
                break;
            }
        };
        let Some(meta) = Meta::parse(line) else {
            bad.get_or_insert(lines.number);
            continue;
        };
        let (seq, hash) = (meta.seq, Hash::of(line));
        let follows = match &scan.head {
            Some(head) => seq == head.seq + 1 && head.hash.is(&meta.prev),
            None => seq == segment.first,
        };
        if scan.head.is_none() && meta.kind == "segment" {
            scan.log = serde_json::from_slice(line).ok().map(|n: Named| n.log);
        }
        if bad.is_some() || !follows {
            let at = bad.take().unwrap_or(lines.number);
            scan.damaged.get_or_insert_with(|| {
                format!(
                    "{} line {at} does not follow from the line before",
                    segment.name()
                )
            });
        }
        scan.head = Some(Head { seq, hash });
        scan.good_end = lines.offset;
    }
    Ok(scan)
}

fn move_aside(segment: &Segment, from: u64, len: u64) -> Result<Torn, AuditError> {
    let mut source = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&segment.path)
        .map_err(|e| AuditError::io("open", &segment.path, e))?;
    let mut moved_to = segment.path.with_extension(format!("{from}.torn"));
    let mut copy = 1;
    let mut target = loop {
        match OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&moved_to)
        {
            Ok(file) => break file,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                copy += 1;
                moved_to = segment.path.with_extension(format!("{from}-{copy}.torn"));
            }
            Err(e) => return Err(AuditError::io("create", &moved_to, e)),
        }
    };
    let moved = source
        .seek(SeekFrom::Start(from))
        .and_then(|_| std::io::copy(&mut Read::by_ref(&mut source).take(len - from), &mut target))
        .and_then(|_| target.sync_all())
        .and_then(|()| sync_dir(&moved_to));
    moved.map_err(|e| AuditError::io("write", &moved_to, e))?;
    source
        .set_len(from)
        .and_then(|()| source.sync_all())
        .map_err(|e| AuditError::io("cut", &segment.path, e))?;
    Ok(Torn {
        segment: segment.path.clone(),
        moved_to,
        bytes: len - from,
    })
}

fn sync_dir(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
