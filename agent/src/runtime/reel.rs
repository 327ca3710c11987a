//! How the recording of a run fares, for the status and the audit log.
//!
//! Invariant: a recording that fails never ends the agent; it is told once, loudly, and shown for as long as the agent runs.

use crate::audit::{Audit, Entry};
use crate::recording::{Progress, Recorder};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The recording of a run.
#[derive(Clone, Debug)]
pub(crate) struct Reel {
    path: PathBuf,
    recorder: Recorder,
}

impl Reel {
    /// In that file.
    pub(super) fn new(path: &Path, recorder: Recorder) -> Self {
        Self {
            path: path.to_owned(),
            recorder,
        }
    }

    pub(super) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// For the control socket.
    pub(super) fn status(&self) -> Value {
        let failure = self.recorder.failure();
        json!({
            "path": self.path,
            "ok": failure.is_none(),
            "error": failure,
            "progress": self.recorder.progress(),
        })
    }

    /// Ends the recording in order, and writes into the audit log what is not whole.
    pub(super) fn finish(&self, told: &mut Told, audit: &Audit) {
        // Why it fails is told below.
        let _ = self.recorder.finish();
        self.tell(told, audit);
        let Progress {
            lost, notes_lost, ..
        } = self.recorder.progress();
        if lost + notes_lost > 0 {
            let text = format!(
                "the recording {} lacks {lost} record(s) and {notes_lost} note(s)",
                self.path.display()
            );
            tracing::warn!("{text}");
            audit.append(Entry::Note { text });
        }
    }

    /// Writes into the audit log what went wrong since the last time.
    pub(super) fn tell(&self, told: &mut Told, audit: &Audit) {
        if told.failed {
            return;
        }
        let progress = self.recorder.progress();
        let missing = progress.lost + progress.notes_lost;
        if let Some(error) = self.recorder.failure() {
            told.failed = true;
            let text = format!(
                "the recording {} has ended, the agent goes on without it: {error}",
                self.path.display()
            );
            audit.append(Entry::Note { text });
        } else if missing > told.missing {
            audit.append(Entry::Loss {
                source: "recording".to_owned(),
                count: missing - told.missing,
                policy: None,
                workload: None,
            });
            told.missing = missing;
        }
    }
}

/// What the audit log was told about the recording.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    failed: bool,
    missing: u64,
}
