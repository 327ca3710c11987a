//! The beginning of a recording: whether the replay can follow the recorded run.
//!
//! Invariant: what is looked at is kept, and played from its first entry on.

use super::answers::Answers;
use super::seat::Seat;
use crate::config::Config;
use crate::recording::{CoreStart, Entry, Origin, ReadError};
use palisade_core::{Input, PolicyRef};
use std::collections::BTreeSet;

/// Entries after which it is no beginning any more.
const ENTRIES: usize = 4096;

/// The entries until every policy runs.
pub(super) struct Beginning {
    pub(super) entries: Vec<Result<Entry, ReadError>>,
    /// How the core began, if that is known.
    pub(super) start: Option<CoreStart>,
    /// Who ran then.
    running: Vec<PolicyRef>,
}

impl Beginning {
    pub(super) fn read(
        reader: &mut impl Iterator<Item = Result<Entry, ReadError>>,
        origin: &Origin,
    ) -> Self {
        let mut this = Self {
            entries: Vec::new(),
            start: None,
            running: Vec::new(),
        };
        let all: BTreeSet<&str> = origin.policies.iter().map(String::as_str).collect();
        while this.entries.len() < ENTRIES
            && let Some(entry) = reader.next()
        {
            let mut complete = false;
            match &entry {
                Ok(Entry::Core(start)) => this.start = Some(start.clone()),
                Ok(Entry::Input {
                    input: Input::Policies(policies),
                    ..
                }) => {
                    this.running = policies.iter().map(|(policy, _)| policy.clone()).collect();
                    let running = this.running.iter().map(|policy| policy.name.as_str());
                    complete = running.collect::<BTreeSet<_>>() == all;
                }
                _ => {}
            }
            this.entries.push(entry);
            // Nothing follows without a core; a run without policies has nothing to wait for.
            if complete || this.start.is_none() || all.is_empty() {
                break;
            }
        }
        this
    }

    /// Tells what policies were answered while they began.
    pub(super) fn answers(&self, answers: &Answers) {
        for entry in self.entries.iter().flatten() {
            answers.learn(entry);
        }
    }

    /// Why the replay must decide anew; empty: it can follow the run.
    pub(super) fn why_anew(&self, origin: &Origin, config: &Config, seats: &[Seat]) -> Vec<String> {
        if self.start.is_none() {
            let why = "the recording does not say what the core was told about targets and outcomes: it is of \
                       format version 1, or was made without policies";
            return vec![why.to_owned()];
        }
        let mut why = Vec::new();
        if origin.config_sha256 != config.digest {
            why.push("the configuration is not that of the recorded run".to_owned());
        }
        for seat in seats {
            let reference = seat.reference();
            let ran = self
                .running
                .iter()
                .find(|policy| policy.name == reference.name);
            match ran {
                None => why.push(format!("policy '{}' did not run then", reference.name)),
                Some(ran) if ran.sha256 != reference.sha256 => why.push(format!(
                    "policy '{}' is another file than the one that ran",
                    reference.name
                )),
                Some(_) => {}
            }
        }
        why
    }
}
