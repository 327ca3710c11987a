//! The walk along the chain: each line is judged by the ones before and after it.
//!
//! Invariants: fail closed: the verdict is `Broken` until the walk ended without a fault. Only the
//! record before and one open doubt are remembered, so memory does not grow with the log.

use super::{CHECKPOINT_RECORDS, Fault, Report, Status, VerifyOptions};
use crate::audit::AuditError;
use crate::audit::chain::{Hash, Head, Meta, VERSION};
use crate::audit::key::{Checking, PUBLIC_FILE};
use crate::audit::segment::{Line, Lines, Segment};

/// Faults that are listed; more are counted.
const LISTED: usize = 20;

/// A reader's place in the log, and what it found so far.
pub(super) struct Walk {
    key: Option<Checking>,
    anchor: Option<Head>,
    anchor_seen: bool,
    allow_pruned: bool,
    pub(super) report: Report,
    /// The record before; `None` before the first one, and after a line that is none.
    before: Option<Before>,
    expected: u64,
    /// A link that did not hold, until the next line shows which of its ends was changed.
    doubt: Option<Doubt>,
    since_checkpoint: u64,
    unsealed_told: bool,
}

struct Before {
    hash: Hash,
    file: String,
    line: u64,
}

struct Doubt {
    fault: Fault,
    seq: u64,
    kind: DoubtKind,
}

enum DoubtKind {
    /// Hashes do not fit, numbers do: the line before was changed, or this one.
    Edited { this: Fault },
    /// Numbers were left out: removed, or come later.
    Gap,
}

impl Walk {
    pub(super) fn new(options: &VerifyOptions, key: Option<Checking>) -> Self {
        Self {
            key,
            anchor: options.head.filter(|h| h.seq > 0),
            anchor_seen: false,
            allow_pruned: options.allow_pruned,
            report: Report {
                status: Status::Broken,
                faults: Vec::new(),
                fault_count: 0,
                first_seq: 0,
                head: Head {
                    seq: 0,
                    hash: Hash::genesis(),
                },
                records: 0,
                segments: 0,
                bytes: 0,
                checkpoints: 0,
                sealed_seq: 0,
                unfinished_bytes: 0,
            },
            before: None,
            expected: 1,
            doubt: None,
            since_checkpoint: 0,
            unsealed_told: false,
        }
    }

    fn push_fault(&mut self, fault: Fault) {
        // Both links of an edited record tell of it.
        if self.report.faults.last() == Some(&fault) {
            return;
        }
        self.report.fault_count += 1;
        if self.report.faults.len() < LISTED {
            self.report.faults.push(fault);
        }
    }

    pub(super) fn fault(&mut self, segment: &Segment, line: u64, what: String) {
        let fault = Fault {
            file: segment.name(),
            line,
            seq: self.expected,
            what,
        };
        self.push_fault(fault);
    }

    pub(super) fn begin(&mut self, segment: &Segment) {
        let begun = self.report.records > 0 || self.report.fault_count > 0;
        if begun && segment.first > self.expected {
            self.settle(None);
            let (from, to) = (self.expected, segment.first - 1);
            self.fault(
                segment,
                0,
                format!("records {from} to {to} are missing before this segment"),
            );
            self.expected = segment.first;
            self.before = None;
        } else if begun && segment.first < self.expected {
            self.fault(
                segment,
                0,
                "its name does not follow from the segment before".into(),
            );
        }
    }

    /// Reads whole lines until there are no more; returns the bytes of an unfinished one.
    pub(super) fn read(
        &mut self,
        segment: &Segment,
        lines: &mut Lines,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64, AuditError> {
        loop {
            let (offset, number) = (lines.offset, lines.number + 1);
            match lines
                .next()
                .map_err(|e| AuditError::io("read", &segment.path, e))?
            {
                Line::Whole(line) => self.line(segment, number, line),
                Line::TooLong => self.line(segment, number, b""),
                Line::Unfinished(bytes) => return Ok(bytes),
                Line::End => return Ok(0),
            }
            if number.is_multiple_of(4096) {
                progress(self.report.bytes + offset);
            }
        }
    }

    fn line(&mut self, segment: &Segment, number: u64, line: &[u8]) {
        let Some(meta) = Meta::parse(line) else {
            self.settle(None);
            self.fault(
                segment,
                number,
                "this line is no record (edited or overwritten)".into(),
            );
            self.expected += 1;
            self.before = None;
            return;
        };
        let hash = Hash::of(line);
        let mut seq = meta.seq;
        let here = || Fault {
            file: segment.name(),
            line: number,
            seq: meta.seq,
            what: String::new(),
        };
        if meta.v > VERSION {
            let what = format!(
                "it has format version {}, which this program does not know",
                meta.v
            );
            self.push_fault(Fault { what, ..here() });
        }
        let links = match &self.before {
            Some(before) => before.hash.is(&meta.prev),
            // Nothing to compare with: a log's start, or right after a fault.
            None if self.report.records == 0 && seq == 1 => Hash::genesis().is(&meta.prev),
            None => true,
        };
        self.settle(Some((seq, links)));
        if number == 1 && seq != segment.first {
            let what = format!(
                "the file's name says that record {} begins it",
                segment.first
            );
            self.push_fault(Fault { what, ..here() });
        }
        if self.report.records == 0 {
            self.first(segment, seq, links, here());
        } else if links && seq != self.expected && self.before.is_some() {
            let what = format!("edited: its number should be {}", self.expected);
            self.push_fault(Fault { what, ..here() });
            seq = self.expected;
        } else if seq < self.expected {
            let what = "this record is a duplicate or out of order".to_owned();
            self.push_fault(Fault { what, ..here() });
        } else if seq > self.expected {
            let fault = Fault {
                seq: self.expected,
                ..here()
            };
            self.doubt = Some(Doubt {
                fault,
                seq,
                kind: DoubtKind::Gap,
            });
        } else if !links {
            let fault = self.before.as_ref().map_or_else(here, |before| Fault {
                file: before.file.clone(),
                line: before.line,
                seq: seq - 1,
                what: String::new(),
            });
            self.doubt = Some(Doubt {
                fault,
                seq,
                kind: DoubtKind::Edited { this: here() },
            });
        }
        self.checkpoint(&meta, line, here());
        if let Some(anchor) = self.anchor.filter(|a| a.seq == seq && !self.anchor_seen) {
            self.anchor_seen = true;
            if anchor.hash != hash {
                let what =
                    "its hash is not that of the head: it was changed, or this is another log";
                self.push_fault(Fault {
                    what: what.into(),
                    ..here()
                });
            }
        }
        self.report.records += 1;
        self.report.head = Head { seq, hash };
        self.expected = seq + 1;
        self.before = Some(Before {
            hash,
            file: segment.name(),
            line: number,
        });
    }

    fn first(&mut self, segment: &Segment, seq: u64, links: bool, here: Fault) {
        self.report.first_seq = seq;
        if seq == 1 && !links {
            let what = "the first record does not begin a log (edited)".to_owned();
            self.push_fault(Fault { what, ..here });
        } else if seq > 1
            && seq == segment.first
            && self.report.fault_count == 0
            && !self.allow_pruned
        {
            let what = format!(
                "the log begins at record {seq}: records 1 to {} are missing (if old segments were \
                 moved away on purpose: --allow-pruned)",
                seq - 1
            );
            self.push_fault(Fault { what, ..here });
        }
    }

    fn checkpoint(&mut self, meta: &Meta<'_>, line: &[u8], here: Fault) {
        self.since_checkpoint += 1;
        if meta.kind != "checkpoint" {
            if self.since_checkpoint > 2 * CHECKPOINT_RECORDS as u64 && !self.unsealed_told {
                self.unsealed_told = true;
                let what = format!(
                    "no checkpoint among {} records; there is one at least every {CHECKPOINT_RECORDS}",
                    self.since_checkpoint
                );
                self.push_fault(Fault { what, ..here });
            }
            return;
        }
        self.since_checkpoint = 0;
        match &self.key {
            Some(key) if key.covers(line) => {
                self.report.checkpoints += 1;
                self.report.sealed_seq = meta.seq;
            }
            Some(_) => {
                let what = "the checkpoint's signature is wrong (edited, or made with another key)";
                self.push_fault(Fault {
                    what: what.into(),
                    ..here
                });
            }
            None if !self.unsealed_told => {
                self.unsealed_told = true;
                let what = format!(
                    "there is no {PUBLIC_FILE} to check this checkpoint with (give --public-key)"
                );
                self.push_fault(Fault { what, ..here });
            }
            None => {}
        }
    }

    /// Decides an open doubt with the number of the next record, and whether it links.
    fn settle(&mut self, next: Option<(u64, bool)>) {
        let Some(doubt) = self.doubt.take() else {
            return;
        };
        let fault = match doubt.kind {
            // This line is what the next one says it is, so the line before was changed.
            DoubtKind::Edited { this } => match next {
                Some((_, false)) => Fault {
                    what: "this record was edited".into(),
                    ..this
                },
                _ => Fault {
                    what: "this record was edited".into(),
                    ..doubt.fault
                },
            },
            DoubtKind::Gap => {
                let (from, to) = (doubt.fault.seq, doubt.seq - 1);
                let late = next.is_some_and(|(seq, _)| seq <= to);
                let what = if late {
                    format!(
                        "out of order: record {} stands where {from} should",
                        doubt.seq
                    )
                } else if from == to {
                    format!("record {from} was removed before this line")
                } else {
                    format!("records {from} to {to} were removed before this line")
                };
                Fault {
                    what,
                    ..doubt.fault
                }
            }
        };
        self.push_fault(fault);
    }

    pub(super) fn finish(mut self, options: &VerifyOptions) -> Report {
        self.settle(None);
        let last = self.report.head.seq;
        let whole = |what: String, seq| Fault {
            file: String::new(),
            line: 0,
            seq,
            what,
        };
        if let Some(anchor) = self.anchor.filter(|_| !self.anchor_seen) {
            let what = if anchor.seq > last {
                format!(
                    "cut short of the head: it ends at record {last}, the head is record {}",
                    anchor.seq
                )
            } else {
                format!("record {} of the head is not in it", anchor.seq)
            };
            self.push_fault(whole(what, anchor.seq));
        }
        if self.report.records == 0 && self.report.fault_count == 0 {
            self.push_fault(whole("there is no record in it".into(), 1));
        }
        let anchored = options.head.map_or(0, |h| h.seq);
        self.report.status = if self.report.fault_count > 0 {
            Status::Broken
        } else if options.head.is_some() && anchored == last {
            Status::Intact
        } else {
            Status::Unanchored {
                after_seq: anchored.max(self.report.sealed_seq),
            }
        };
        self.report
    }
}
