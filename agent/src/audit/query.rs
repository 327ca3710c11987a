//! Reading a log for people: by filter, from the end, or as it grows.
//!
//! Invariants: lines that are no records are skipped (finding fault is `verify`'s work); kinds
//! and fields that this version does not know are kept and shown; memory is bounded by what is
//! asked for. Never writes, needs no running agent.

use super::chain::{Hash, Head};
use super::segment::{self, Line, Lines, Segment};
use super::{AuditError, Entry, clock};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// One record as it stands in the log.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Record {
    /// Format version.
    pub v: u32,
    /// Sequence number.
    pub seq: u64,
    /// Wall clock, RFC 3339 in UTC.
    pub time: String,
    /// `CLOCK_BOOTTIME` nanoseconds.
    pub boot_ns: u64,
    /// Hash of the line before.
    pub prev: String,
    /// What kind of record; perhaps one that this version does not know.
    pub kind: String,
    /// All other fields.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
    /// The line itself, without its newline.
    #[serde(skip)]
    pub line: String,
}

impl Record {
    /// Reads a line. `None` if it is no record.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut record: Self = serde_json::from_slice(line).ok()?;
        std::str::from_utf8(line).ok()?.clone_into(&mut record.line);
        Some(record)
    }

    /// As one of the known entries, if it is one.
    pub fn entry(&self) -> Option<Entry> {
        serde_json::from_str(&self.line).ok()
    }

    /// Wall clock, nanoseconds since 1970; 0 if it does not parse.
    pub fn time_ns(&self) -> u64 {
        clock::parse_rfc3339(&self.time).unwrap_or(0)
    }

    /// A field by its path, as `["policy", "name"]`.
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter()
            .try_fold(self.fields.get(*first)?, |value, key| value.get(key))
    }

    /// A text field by its path.
    pub fn text(&self, path: &[&str]) -> Option<&str> {
        self.at(path)?.as_str()
    }

    /// Name of the policy that it is about.
    pub fn policy(&self) -> Option<&str> {
        self.text(&["policy", "name"])
            .or_else(|| self.text(&["policy"]))
    }

    /// Short name of the action that it is about ("cpu_quota", …).
    pub fn action(&self) -> Option<&str> {
        match self
            .at(&["request", "action"])
            .or_else(|| self.at(&["action"]))
        {
            Some(Value::String(name)) => Some(name),
            Some(Value::Object(of)) => of.keys().next().map(String::as_str),
            _ => self.text(&["lease", "knob"]),
        }
    }

    /// The verdict of a decision, the result of an outcome, the change of a policy.
    pub fn outcome(&self) -> Option<&str> {
        self.text(&["verdict"])
            .or_else(|| self.text(&["outcome", "result"]))
            .or_else(|| self.text(&["what"]))
    }

    /// Path of the target's cgroup.
    pub fn cgroup(&self) -> Option<&str> {
        self.text(&["cgroup"])
            .or_else(|| self.text(&["who", "cgroup"]))
            .or_else(|| self.text(&["lease", "cgroup"]))
    }

    /// The target's process id, where it is a process.
    pub fn pid(&self) -> Option<u64> {
        self.at(&["request", "target", "process", "pid"])
            .or_else(|| self.at(&["target", "process", "pid"]))?
            .as_u64()
    }
}

/// Which records to show. All conditions must hold; an empty filter takes all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Not before this time, nanoseconds since 1970.
    pub since_ns: Option<u64>,
    /// Before this time, nanoseconds since 1970.
    pub until_ns: Option<u64>,
    /// About this policy.
    pub policy: Option<String>,
    /// About this process id, or a cgroup, executable or container whose name contains this.
    pub target: Option<String>,
    /// About this action ("cpu_quota"; "-" and "_" are the same).
    pub action: Option<String>,
    /// With this verdict, result or change ("granted", "failed", "ejected").
    pub outcome: Option<String>,
    /// Of one of these kinds; empty for all.
    pub kinds: Vec<String>,
    /// So many at most.
    pub limit: Option<usize>,
    /// Newest first, and the limit counted from the end.
    pub reverse: bool,
}

impl Filter {
    /// Whether it takes `record`.
    pub fn takes(&self, record: &Record) -> bool {
        let same = |want: &Option<String>, have: Option<&str>| {
            want.as_ref()
                .is_none_or(|want| have.is_some_and(|have| alike(want, have)))
        };
        (self.kinds.is_empty() || self.kinds.iter().any(|k| alike(k, &record.kind)))
            && same(&self.policy, record.policy())
            && same(&self.action, record.action())
            && same(&self.outcome, record.outcome())
            && self
                .target
                .as_ref()
                .is_none_or(|want| names_target(want, record))
            && self.in_time(record)
    }

    fn in_time(&self, record: &Record) -> bool {
        if self.since_ns.is_none() && self.until_ns.is_none() {
            return true;
        }
        let time = record.time_ns();
        self.since_ns.is_none_or(|since| time >= since)
            && self.until_ns.is_none_or(|until| time < until)
    }
}

fn alike(a: &str, b: &str) -> bool {
    let plain = |c: u8| {
        if c == b'-' {
            b'_'
        } else {
            c.to_ascii_lowercase()
        }
    };
    a.len() == b.len() && a.bytes().zip(b.bytes()).all(|(a, b)| plain(a) == plain(b))
}

fn names_target(want: &str, record: &Record) -> bool {
    if want.parse().is_ok_and(|pid: u64| record.pid() == Some(pid)) {
        return true;
    }
    let texts = [
        record.cgroup(),
        record.text(&["who", "exe"]),
        record.text(&["who", "comm"]),
        record.text(&["who", "container"]),
    ];
    texts.into_iter().flatten().any(|text| text.contains(want))
}

/// The records that `filter` takes, in the order that it asks for.
///
/// # Errors
/// If the log cannot be read, or there is none.
pub fn read(dir: &Path, filter: &Filter) -> Result<Vec<Record>, AuditError> {
    let mut found = VecDeque::new();
    let limit = filter.limit.unwrap_or(usize::MAX);
    let mut segments = some_segments(dir)?;
    if let (true, Some(limit)) = (filter.reverse, filter.limit) {
        // From the end, segment by segment, until there are enough.
        while let Some(segment) = segments.pop() {
            let mut of_segment = VecDeque::new();
            each(&segment, &mut |record| {
                if filter.takes(&record) {
                    of_segment.push_back(record);
                    if of_segment.len() + found.len() > limit {
                        of_segment.pop_front();
                    }
                }
                true
            })?;
            of_segment.append(&mut found);
            found = of_segment;
            if found.len() >= limit {
                break;
            }
        }
    } else {
        for segment in &segments {
            each(segment, &mut |record| {
                if filter.takes(&record) {
                    found.push_back(record);
                }
                found.len() < limit
            })?;
            if found.len() >= limit {
                break;
            }
        }
    }
    let mut found = Vec::from(found);
    if filter.reverse {
        found.reverse();
    }
    Ok(found)
}

/// The record with number `seq`.
///
/// # Errors
/// [`AuditError::NoRecord`] if there is none; else as [`read`].
pub fn find(dir: &Path, seq: u64) -> Result<Record, AuditError> {
    let segments = some_segments(dir)?;
    let mut found = None;
    let mut last = 0;
    // A record is in the last segment that begins at or before it.
    if let Some(segment) = segments.iter().rev().find(|s| s.first <= seq) {
        each(segment, &mut |record| {
            last = record.seq;
            if record.seq == seq {
                found = Some(record);
            }
            found.is_none()
        })?;
    }
    let first = segments.first().map_or(0, |s| s.first);
    found.ok_or(AuditError::NoRecord { seq, first, last })
}

/// The end of the log as its files say (nothing is verified).
///
/// # Errors
/// As [`read`].
pub fn head(dir: &Path) -> Result<Head, AuditError> {
    for segment in some_segments(dir)?.iter().rev() {
        let mut last = None;
        each(segment, &mut |record| {
            last = Some(record);
            true
        })?;
        if let Some(record) = last {
            return Ok(Head {
                seq: record.seq,
                hash: Hash::of(record.line.as_bytes()),
            });
        }
    }
    Err(AuditError::NoLog {
        dir: dir.to_owned(),
    })
}

/// Calls `visit` with every record from segment `from` on, until it returns false.
pub(crate) fn walk(dir: &Path, visit: &mut dyn FnMut(Record) -> bool) -> Result<(), AuditError> {
    for segment in some_segments(dir)? {
        if !each(&segment, visit)? {
            break;
        }
    }
    Ok(())
}

fn some_segments(dir: &Path) -> Result<Vec<Segment>, AuditError> {
    let segments = segment::list(dir)?;
    if segments.is_empty() {
        return Err(AuditError::NoLog {
            dir: dir.to_owned(),
        });
    }
    Ok(segments)
}

/// Whether `visit` wants more.
fn each(segment: &Segment, visit: &mut dyn FnMut(Record) -> bool) -> Result<bool, AuditError> {
    let mut lines = Lines::open(&segment.path)?;
    loop {
        match lines
            .next()
            .map_err(|e| AuditError::io("read", &segment.path, e))?
        {
            Line::Whole(line) => {
                if Record::parse(line).is_some_and(|record| !visit(record)) {
                    return Ok(false);
                }
            }
            Line::TooLong => {}
            Line::Unfinished(_) | Line::End => return Ok(true),
        }
    }
}

/// Reads a log as it grows.
#[derive(Debug)]
pub struct Follow {
    dir: PathBuf,
    current: Option<(Segment, Lines)>,
    after: u64,
}

impl Follow {
    /// Begins behind record `after` (0: at the start of the log).
    pub fn after(dir: &Path, after: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            current: None,
            after,
        }
    }

    /// The records that have come since the last call; at most a few thousand at once. Empty if
    /// there are none yet.
    ///
    /// # Errors
    /// If the log cannot be read. That it does not exist yet is no error.
    pub fn poll(&mut self) -> Result<Vec<Record>, AuditError> {
        const AT_ONCE: usize = 4096;
        let mut found = Vec::new();
        loop {
            let Some((segment, lines)) = &mut self.current else {
                match self.first_segment() {
                    Ok(Some(segment)) => {
                        let lines = Lines::open(&segment.path)?;
                        self.current = Some((segment, lines));
                        continue;
                    }
                    Ok(None) | Err(AuditError::NoLog { .. }) => return Ok(found),
                    Err(error) => return Err(error),
                }
            };
            // A newer segment must be seen before the end of this one is, to be sure of it.
            let first = segment.first;
            let newer = segment::list(&self.dir)?
                .into_iter()
                .find(|s| s.first > first);
            loop {
                match lines
                    .next()
                    .map_err(|e| AuditError::io("read", &segment.path, e))?
                {
                    Line::Whole(line) => {
                        if let Some(record) = Record::parse(line)
                            && record.seq > self.after
                        {
                            self.after = record.seq;
                            found.push(record);
                            if found.len() >= AT_ONCE {
                                return Ok(found);
                            }
                        }
                    }
                    Line::TooLong => {}
                    Line::Unfinished(_) | Line::End => break,
                }
            }
            let Some(newer) = newer else { return Ok(found) };
            let lines = Lines::open(&newer.path)?;
            self.current = Some((newer, lines));
        }
    }

    fn first_segment(&self) -> Result<Option<Segment>, AuditError> {
        let mut segments = segment::list(&self.dir)?;
        let at = segments
            .iter()
            .rposition(|s| s.first <= self.after.saturating_add(1))
            .unwrap_or(0);
        Ok((at < segments.len()).then(|| segments.swap_remove(at)))
    }
}
