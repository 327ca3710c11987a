//! How the recording of a run fares, for the status and the audit log.
//!
//! Invariant: a recording that fails, or is full, never ends the agent; it is told once, loudly, and shown for as long as the
//! agent runs.

use crate::audit::{Audit, Entry};
use crate::config::units;
use crate::recording::{Destination, Progress, Recorder};
use serde_json::{Value, json};

/// The recording of a run.
#[derive(Clone, Debug)]
pub(crate) struct Reel {
    to: Destination,
    recorder: Recorder,
}

impl Reel {
    /// Of a run, there.
    pub(super) fn new(to: &Destination, recorder: Recorder) -> Self {
        Self {
            to: to.clone(),
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
            "path": self.to.path,
            "max_bytes": self.to.max_bytes,
            "ok": failure.is_none(),
            "error": failure,
            "full": self.recorder.is_full(),
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
                self.to.path.display()
            );
            tracing::warn!("{text}");
            audit.append(Entry::Note { text });
        }
    }

    /// Writes into the audit log what went wrong since the last time, and that the file is full.
    pub(super) fn tell(&self, told: &mut Told, audit: &Audit) {
        if told.failed {
            return;
        }
        let path = self.to.path.display();
        let progress = self.recorder.progress();
        let missing = progress.lost + progress.notes_lost;
        if let Some(error) = self.recorder.failure() {
            told.failed = true;
            let text =
                format!("the recording {path} has ended, the agent goes on without it: {error}");
            audit.append(Entry::Note { text });
            return;
        }
        // A full file can still fail, when it is brought to the disk.
        if told.full {
            return;
        }
        if missing > told.missing {
            audit.append(Entry::Loss {
                source: "recording".to_owned(),
                count: missing - told.missing,
                policy: None,
                workload: None,
            });
            told.missing = missing;
        }
        if progress.full {
            told.full = true;
            let size = units::show_size(self.to.max_bytes);
            let text = format!(
                "the recording {path} is full at {size} and has ended in order, the agent goes on without it; for a longer \
                 one: --max-size"
            );
            tracing::warn!("{text}");
            audit.append(Entry::Note { text });
        }
    }
}

/// What the audit log was told about the recording.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    /// That it has failed.
    failed: bool,
    /// That it is full.
    full: bool,
    missing: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{self, Filter};
    use crate::recording::{self, LEAST_MAX_BYTES, Origin};

    /// A folder with an audit log, and where a recording as small as can be may lie in it.
    fn place() -> (tempfile::TempDir, Audit, Destination) {
        let dir = tempfile::tempdir().unwrap();
        let (audit, _) = audit::open(&dir.path().join("audit"), audit::Options::default()).unwrap();
        let to = Destination {
            path: dir.path().join("run.arrows"),
            max_bytes: LEAST_MAX_BYTES,
        };
        (dir, audit, to)
    }

    /// The notes in the log, which ends with this.
    fn notes(dir: &tempfile::TempDir, audit: &Audit) -> Vec<String> {
        audit.close().unwrap();
        let records = audit::read(&dir.path().join("audit"), &Filter::default()).unwrap();
        let texts = records.iter().filter_map(|record| record.text(&["text"]));
        texts.map(str::to_owned).collect()
    }

    #[test]
    fn a_full_recording_is_told_once_and_is_no_failure() {
        let (dir, audit, to) = place();
        let recorder = Recorder::start(to.create(&Origin::default()).unwrap()).unwrap();
        let reel = Reel::new(&to, recorder.clone());
        let mut told = Told::default();
        reel.tell(&mut told, &audit);
        assert_eq!(reel.status()["full"], false);
        // A chunk that no compression makes small.
        let tick = |i: u64| recording::Entry::Tick {
            time_ns: i.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        };
        assert!(recorder.notes((0..20_000).map(tick).collect()));
        reel.finish(&mut told, &audit);
        reel.tell(&mut told, &audit);
        let status = reel.status();
        assert_eq!(
            (&status["ok"], &status["full"], &status["error"]),
            (&Value::Bool(true), &Value::Bool(true), &Value::Null)
        );
        let texts = notes(&dir, &audit);
        let [text] = &texts[..] else {
            panic!("{texts:?}");
        };
        assert!(text.contains("run.arrows is full at 64KiB"), "{text}");
    }

    #[test]
    fn a_recording_that_fails_after_it_was_full_is_told_once_more() {
        let (dir, audit, to) = place();
        let fails = || Err(std::io::Error::other("the disk is gone").into());
        let recorder = Recorder::waiting(fails).unwrap();
        recorder.begin();
        let reel = Reel::new(&to, recorder);
        let mut told = Told {
            full: true,
            ..Told::default()
        };
        reel.finish(&mut told, &audit);
        reel.tell(&mut told, &audit);
        let texts = notes(&dir, &audit);
        assert!(
            matches!(&texts[..], [text] if text.contains("the disk is gone")),
            "{texts:?}"
        );
    }
}
