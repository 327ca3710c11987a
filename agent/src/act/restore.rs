//! Putting values back. Shared by the executor, the keeper and `leases release`.
//!
//! Invariant: a value is overwritten only if it is ours (what the journal says we set, or were
//! about to set, or the half of a cut-short write); anything else is somebody's decision and is
//! reported, not touched.

use super::cgroup::{CgroupDir, CgroupError, KnobHandle, Setting};
use super::journal::{Entry, Journal, JournalError, Recovered};
use palisade_core::{ActOutcome, Lease};
use std::path::Path;
use std::time::Duration;

/// Longest wait for a thaw to be complete.
const THAW_WAIT: Duration = Duration::from_millis(500);

/// One lease that [`release_all`] dealt with.
#[derive(Debug, serde::Serialize)]
pub struct Released {
    /// Which.
    pub lease: Lease,
    /// What became of it.
    pub outcome: ActOutcome,
}

/// Undoes everything that the journal in `dir` says is in force, newest first. For use when no
/// agent runs (the caller holds the agent lock). The second value tells of damaged lines.
pub fn release_all(dir: &Path) -> Result<(Vec<Released>, Recovered), JournalError> {
    let (mut journal, recovered) = Journal::open(dir)?;
    let mut released = Vec::new();
    for entry in recovered.orphans.iter().rev() {
        let outcome = restore(entry, None);
        if is_final(&outcome) {
            journal.undone(entry.lease.id, "released by hand")?;
        }
        released.push(Released {
            lease: entry.lease.clone(),
            outcome,
        });
    }
    Ok((released, recovered))
}

/// Whether the lease needs no further undo after this outcome.
pub fn is_final(outcome: &ActOutcome) -> bool {
    matches!(
        outcome,
        ActOutcome::Done { .. } | ActOutcome::Gone | ActOutcome::ForeignChange { .. }
    )
}

/// Undoes one entry, through `pinned` if the caller still holds the directory.
pub fn restore(entry: &Entry, pinned: Option<&KnobHandle>) -> ActOutcome {
    let opened;
    let handle = match pinned {
        Some(handle) => handle,
        None => match open(entry) {
            Ok(handle) => {
                opened = handle;
                &opened
            }
            Err(error) => return outcome_of(error),
        },
    };
    match put_back(entry, handle) {
        Ok(outcome) => outcome,
        Err(error) => outcome_of(error),
    }
}

/// The knob of an entry, its directory compared.
pub fn open(entry: &Entry) -> Result<KnobHandle, CgroupError> {
    Ok(KnobHandle {
        dir: CgroupDir::pin(&entry.dir, entry.inode)?,
        version: entry.version,
        knob: entry.lease.knob,
    })
}

/// Whether `current` is a value that the entry accounts for as ours.
pub fn is_ours(entry: &Entry, current: &Setting) -> bool {
    let knob = entry.lease.knob;
    let (Some(original), Some(set)) = (
        Setting::parse(knob, &entry.original),
        Setting::parse(knob, &entry.set),
    ) else {
        return false;
    };
    let before = entry
        .before
        .as_deref()
        .and_then(|text| Setting::parse(knob, text));
    current.is_between(&original, &set)
        || before.is_some_and(|before| {
            current.is_between(&before, &set) || current.is_between(&original, &before)
        })
}

fn put_back(entry: &Entry, handle: &KnobHandle) -> Result<ActOutcome, CgroupError> {
    let current = handle.read()?;
    let Some(original) = Setting::parse(entry.lease.knob, &entry.original) else {
        return Ok(ActOutcome::Failed {
            error: format!(
                "the journal's original value {:?} is unreadable",
                entry.original
            ),
        });
    };
    if current == original {
        return Ok(ActOutcome::Done {
            observed: format!("{} (was so already)", handle.shown(&current)),
            original: None,
        });
    }
    if !is_ours(entry, &current) {
        return Ok(ActOutcome::ForeignChange {
            found: handle.shown(&current),
        });
    }
    let found = handle.set(&original, THAW_WAIT)?;
    Ok(if found == original {
        ActOutcome::Done {
            observed: handle.shown(&found),
            original: None,
        }
    } else {
        ActOutcome::Failed {
            error: format!(
                "wrote {} but read {}",
                handle.shown(&original),
                handle.shown(&found)
            ),
        }
    })
}

/// An error as an outcome.
pub fn outcome_of(error: CgroupError) -> ActOutcome {
    match error {
        CgroupError::Gone => ActOutcome::Gone,
        other => ActOutcome::Failed {
            error: other.to_string(),
        },
    }
}
