//! The core of a replay, and whoever is told what it decides.
//!
//! Invariants: time never goes back; every decision and undo is told as it is made, in order.

use super::{Line, Outcome};
use crate::batch::Batch;
use anyhow::Result;
use palisade_core::{Core, Effect, Input};

pub(super) struct Desk<'a> {
    core: Core,
    each: &'a mut dyn FnMut(&Line) -> Result<()>,
    failure: Option<anyhow::Error>,
    outcome: Outcome,
    first_ns: Option<u64>,
    now_ns: u64,
}

impl<'a> Desk<'a> {
    pub(super) fn new(core: Core, each: &'a mut dyn FnMut(&Line) -> Result<()>) -> Self {
        Self {
            core,
            each,
            failure: None,
            outcome: Outcome::default(),
            first_ns: None,
            now_ns: 0,
        }
    }

    /// A batch comes.
    pub(super) fn count(&mut self, batch: &Batch) {
        self.first_ns.get_or_insert(batch.now_ns);
        self.outcome.batches += 1;
        self.outcome.records += batch.records.len() as u64;
    }

    /// The core hears something. Answers what follows.
    pub(super) fn step(&mut self, now_ns: u64, input: Input) -> Vec<Effect> {
        self.now_ns = self.now_ns.max(now_ns);
        let effects = self.core.step(self.now_ns, input);
        for effect in &effects {
            if !matches!(effect, Effect::Record { .. } | Effect::Undo { .. }) {
                continue;
            }
            self.outcome.decisions += 1;
            let since_ns = self
                .now_ns
                .saturating_sub(self.first_ns.unwrap_or(self.now_ns));
            let line = Line {
                time_ns: self.now_ns,
                since_ns,
                effect: effect.clone(),
            };
            if self.failure.is_none() {
                self.failure = (self.each)(&line).err();
            }
        }
        effects
    }

    /// When the core wants to be told that time has passed.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.core.next_deadline()
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// What people should know.
    pub(super) fn notes(&mut self, notes: impl IntoIterator<Item = String>) {
        self.outcome.notes.extend(notes);
    }

    /// The decisions are not those of the recorded run, or perhaps not: why.
    pub(super) fn differs(&mut self, why: impl IntoIterator<Item = String>) {
        self.outcome.differs.extend(why);
    }

    /// Whether the lines can still be handed over.
    pub(super) fn failed(&mut self) -> Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }

    pub(super) fn end(mut self) -> Result<Outcome> {
        self.failed()?;
        Ok(self.outcome)
    }
}
