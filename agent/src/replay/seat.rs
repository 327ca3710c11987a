//! A policy of a replay that follows the recorded run, with the batches that it has not seen yet.
//!
//! Invariant: it sees a batch when the recording has said all that concerns it: whether its queue had no room for it, and
//! what the policy was answered meanwhile. Until then the batch waits here, as it did in the policy's queue.

use crate::batch::Batch;
use crate::policy::{PolicyEvent, Stepper};
use crate::recording::digest;
use palisade_core::{PolicyRef, Request};
use std::collections::VecDeque;

/// A batch, and the records that were lost before it.
struct Waiting {
    batch: Batch,
    lost: u64,
}

/// What a policy asked for.
pub(super) struct Output {
    pub(super) batch: u64,
    pub(super) requests: Vec<Request>,
}

pub(super) struct Seat {
    stepper: Stepper,
    waiting: VecDeque<Waiting>,
    /// Batches that may wait: more never did, so the policy has seen what is beyond.
    most: usize,
    lost: u64,
    outputs: VecDeque<Output>,
    /// What people should know.
    notes: Vec<String>,
}

impl Seat {
    /// `queue`: the bound of the policy's queue.
    pub(super) fn new(stepper: Stepper, queue: usize) -> Self {
        Self {
            stepper,
            waiting: VecDeque::new(),
            // One at work, and one that is being told of.
            most: queue.saturating_add(2),
            lost: 0,
            outputs: VecDeque::new(),
            notes: Vec::new(),
        }
    }

    pub(super) fn reference(&self) -> &PolicyRef {
        self.stepper.reference()
    }

    /// Bits of the kinds that it receives.
    pub(super) fn mask(&self) -> u64 {
        self.stepper.mask()
    }

    /// At once, for a replay that decides anew.
    pub(super) fn step(&mut self, batch: &Batch) -> Vec<PolicyEvent> {
        self.stepper.step(batch, 0)
    }

    /// A batch was published.
    pub(super) fn offer(&mut self, batch: &Batch) {
        if !self.stepper.concerns(batch) {
            return;
        }
        self.waiting.push_back(Waiting {
            batch: batch.clone(),
            lost: std::mem::take(&mut self.lost),
        });
        if self.waiting.len() > self.most {
            self.next();
        }
    }

    /// There was no room for that batch, which was just published. `false`: it is not known here.
    pub(super) fn dropped(&mut self, seq: u64, records: u64) -> bool {
        let known = self.waiting.pop_back_if(|last| last.batch.seq == seq);
        let Some(last) = known else { return false };
        self.lost = last.lost.saturating_add(records);
        true
    }

    /// What it asks for at that batch, if it asks for so many things, and whether they are those of that digest: all
    /// batches before it are seen first.
    pub(super) fn output(
        &mut self,
        seq: u64,
        requests: u64,
        sha256: Option<&str>,
    ) -> Option<(Output, bool)> {
        while self
            .waiting
            .front()
            .is_some_and(|next| next.batch.seq <= seq)
        {
            self.next();
        }
        let is_it =
            |output: &Output| output.batch == seq && output.requests.len() as u64 == requests;
        let at = self.outputs.iter().position(is_it)?;
        let output = self.outputs.remove(at)?;
        let same = sha256.is_some_and(|sha256| sha256 == digest(&output.requests));
        Some((output, same))
    }

    /// What it asked for that nobody heard.
    pub(super) fn unheard(&self) -> usize {
        self.outputs.len()
    }

    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    fn next(&mut self) {
        let Some(Waiting { batch, lost }) = self.waiting.pop_front() else {
            return;
        };
        for event in self.stepper.step(&batch, lost) {
            match event {
                PolicyEvent::Output {
                    batch, requests, ..
                } => self.outputs.push_back(Output { batch, requests }),
                event => self.notes.extend(in_words(&event)),
            }
        }
    }
}

/// What people should know of what a policy did.
pub(super) fn in_words(event: &PolicyEvent) -> Option<String> {
    match event {
        PolicyEvent::Strike {
            policy,
            detail,
            batch,
            ..
        } => Some(format!(
            "policy '{}' was struck at batch {batch}: {detail}",
            policy.name
        )),
        PolicyEvent::Ejected {
            policy,
            reason,
            batch,
        } => Some(format!(
            "policy '{}' was ejected at batch {batch}: {reason}",
            policy.name
        )),
        _ => None,
    }
}
