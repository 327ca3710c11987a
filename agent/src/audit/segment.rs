//! Segment files: their names, their order, and reading them line by line.
//!
//! Invariants: a segment is named by the sequence number of its first record; reading is
//! streaming, with bounded memory whatever the bytes are; a last line without a newline is
//! never taken for a record. Nothing here writes.

use super::AuditError;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Longest line that is written, in bytes; a longer entry is replaced by a note.
pub const MAX_LINE: usize = 256 * 1024;

/// Longest line that is read; anything longer cannot be ours.
const MAX_READ: usize = 2 * MAX_LINE;

/// One segment of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Sequence number of its first record, from its name.
    pub(crate) first: u64,
    /// Where it is.
    pub(crate) path: PathBuf,
}

impl Segment {
    /// The segment of `dir` that begins with record `first`.
    pub(crate) fn at(dir: &Path, first: u64) -> Self {
        Self {
            first,
            path: dir.join(format!("audit-{first:020}.jsonl")),
        }
    }

    /// Its file's name.
    pub(crate) fn name(&self) -> String {
        self.path
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned())
    }
}

/// The segments of `dir`, oldest first. While a log is written, a folder may be read so that a new segment is in
/// it and the one before is not: so it is read twice, and what came after the first time is left out.
pub(crate) fn list(dir: &Path) -> Result<Vec<Segment>, AuditError> {
    let newest = read_folder(dir)?.last().map(|segment| segment.first);
    let mut segments = read_folder(dir)?;
    segments.retain(|segment| Some(segment.first) <= newest);
    Ok(segments)
}

fn read_folder(dir: &Path) -> Result<Vec<Segment>, AuditError> {
    let entries = fs::read_dir(dir).map_err(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            AuditError::NoLog {
                dir: dir.to_owned(),
            }
        } else {
            AuditError::io("read", dir, e)
        }
    })?;
    let mut segments = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| AuditError::io("read", dir, e))?;
        let name = entry.file_name();
        let first = name
            .to_str()
            .and_then(|n| n.strip_prefix("audit-")?.strip_suffix(".jsonl"))
            .filter(|digits| digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok());
        if let Some(first) = first {
            segments.push(Segment {
                first,
                path: entry.path(),
            });
        }
    }
    segments.sort_by_key(|s| s.first);
    Ok(segments)
}

/// What one attempt to read a line gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// A whole line, without its newline.
    Whole(&'a [u8]),
    /// A line longer than any of ours; it was skipped up to its newline (or the end).
    TooLong,
    /// The file ends in this many bytes without a newline. Reading again later goes on from
    /// the start of that line.
    Unfinished(u64),
    /// The end, after a newline.
    End,
}

/// Reads a segment from an offset, and can go on after its end when the file has grown.
#[derive(Debug)]
pub(crate) struct Lines {
    file: BufReader<File>,
    line: Vec<u8>,
    /// Bytes read up to the end of the last whole line.
    pub(crate) offset: u64,
    /// Lines read so far.
    pub(crate) number: u64,
}

impl Lines {
    /// Begins at the start of the file.
    pub(crate) fn open(path: &Path) -> Result<Self, AuditError> {
        let file = File::open(path).map_err(|e| AuditError::io("open", path, e))?;
        Ok(Self {
            file: BufReader::with_capacity(256 * 1024, file),
            line: Vec::with_capacity(4096),
            offset: 0,
            number: 0,
        })
    }

    /// The next line.
    pub(crate) fn next(&mut self) -> std::io::Result<Line<'_>> {
        self.line.clear();
        let mut taken = 0u64;
        loop {
            let available = match self.file.fill_buf() {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if available.is_empty() {
                if taken == 0 {
                    return Ok(Line::End);
                }
                // Forget what was buffered: the writer may finish or take back this line.
                self.file.seek(SeekFrom::Start(self.offset))?;
                return Ok(Line::Unfinished(taken));
            }
            let newline = available.iter().position(|b| *b == b'\n');
            let part = newline.unwrap_or(available.len());
            if self.line.len() <= MAX_READ {
                self.line.extend_from_slice(&available[..part]);
            }
            let used = part + usize::from(newline.is_some());
            self.file.consume(used);
            taken += used as u64;
            if newline.is_some() {
                self.offset += taken;
                self.number += 1;
                return Ok(if self.line.len() > MAX_READ {
                    Line::TooLong
                } else {
                    Line::Whole(&self.line)
                });
            }
        }
    }
}
