//! The whole story of one incident: everything in the log that belongs to one record.
//!
//! Invariants: effects and decisions are numbered per run of the agent, leases per boot; numbers
//! are joined only within where they are unique. Read-only, one pass for the links and one for
//! the records.

use super::AuditError;
use super::query::{self, Record};
use std::collections::BTreeSet;
use std::path::Path;

/// The records of one incident, oldest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Story {
    /// The record that was asked for.
    pub about: u64,
    /// All that belong to it, itself included.
    pub records: Vec<Record>,
}

/// What ties records together, in a few bytes each.
#[derive(Clone, Copy, Debug)]
struct Links {
    seq: u64,
    run: u32,
    decision: Option<u64>,
    effect: Option<u64>,
    lease: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tie {
    Decision(u32, u64),
    Effect(u32, u64),
    Lease(u64),
}

impl Links {
    fn of(record: &Record, run: u32) -> Option<Self> {
        let number = |path: &[&str]| record.at(path).and_then(serde_json::Value::as_u64);
        let decision = match record.kind.as_str() {
            "decision" => number(&["id"]),
            "intent" => number(&["decision"]),
            "outcome" | "renew" | "undo_intent" | "undo_outcome" => None,
            _ => return None,
        };
        Some(Self {
            seq: record.seq,
            run,
            decision,
            effect: number(&["effect"]),
            lease: number(&["lease", "id"]).or_else(|| number(&["lease"])),
        })
    }

    fn ties(self) -> impl Iterator<Item = Tie> {
        let run = self.run;
        [
            self.decision.map(|n| Tie::Decision(run, n)),
            self.effect.map(|n| Tie::Effect(run, n)),
            self.lease.map(Tie::Lease),
        ]
        .into_iter()
        .flatten()
    }
}

/// Finds everything that belongs to record `seq`: the decision, the intent, the outcome, the
/// renewals and the undo, whichever of them was named.
///
/// # Errors
/// [`AuditError::NoRecord`] if there is no such record; else as [`query::read`].
pub fn story(dir: &Path, seq: u64) -> Result<Story, AuditError> {
    let about = query::find(dir, seq)?;
    let mut all = Vec::new();
    let mut run = 0;
    query::walk(dir, &mut |record| {
        run += u32::from(record.kind == "start");
        all.extend(Links::of(&record, run));
        true
    })?;
    let mut wanted = BTreeSet::from([seq]);
    let mut known: BTreeSet<Tie> = BTreeSet::new();
    if let Some(own) = all.iter().find(|l| l.seq == seq) {
        known.extend(own.ties());
    }
    // Decision ↔ intent ↔ outcome ↔ lease: a chain of at most a few steps, also across leases
    // that one decision after another tightened.
    loop {
        let before = (wanted.len(), known.len());
        for links in &all {
            if links.ties().any(|tie| known.contains(&tie)) {
                wanted.insert(links.seq);
                known.extend(links.ties());
            }
        }
        if before == (wanted.len(), known.len()) {
            break;
        }
    }
    if wanted.len() == 1 {
        return Ok(Story {
            about: seq,
            records: vec![about],
        });
    }
    let last = wanted.last().copied().unwrap_or(seq);
    let mut records = Vec::with_capacity(wanted.len());
    query::walk(dir, &mut |record| {
        let more = record.seq < last;
        if wanted.contains(&record.seq) {
            records.push(record);
        }
        more
    })?;
    Ok(Story {
        about: seq,
        records,
    })
}
