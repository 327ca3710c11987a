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
    /// Or why there is none.
    recorder: Result<Recorder, String>,
}

impl Reel {
    /// In that file, which is begun or could not be.
    pub(super) fn new(path: &Path, recorder: Result<Recorder, String>) -> Self {
        Self {
            path: path.to_owned(),
            recorder,
        }
    }

    /// The recorder, if it could be started.
    pub(super) fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref().ok()
    }

    /// Why nothing more is recorded.
    fn failure(&self) -> Option<String> {
        match &self.recorder {
            Ok(recorder) => recorder.failure(),
            Err(error) => Some(error.clone()),
        }
    }

    fn progress(&self) -> Progress {
        self.recorder().map(Recorder::progress).unwrap_or_default()
    }

    /// For the control socket.
    pub(super) fn status(&self) -> Value {
        let failure = self.failure();
        json!({
            "path": self.path,
            "ok": failure.is_none(),
            "error": failure,
            "progress": self.progress(),
        })
    }

    /// Ends the recording in order, and writes into the audit log what is not whole.
    pub(super) fn finish(&self, told: &mut Told, audit: &Audit) {
        if let Some(recorder) = self.recorder() {
            // Why is told below.
            let _ = recorder.finish();
        }
        self.tell(told, audit);
        let Progress {
            lost, notes_lost, ..
        } = self.progress();
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
        let progress = self.progress();
        let missing = progress.lost + progress.notes_lost;
        if let Some(error) = self.failure() {
            told.failed = true;
            let text = format!(
                "the recording {} has ended, the agent goes on without it: {error}",
                self.path.display()
            );
            tracing::error!("{text}");
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
