//! The thread of one policy: takes batches and swaps from its queue, in order.
//!
//! Invariants:
//! - A swap happens between two batches; each batch is given to exactly one instance, unless that
//!   crashes: after a roll-back the old version begins with the call that crashed the new one, after
//!   a restart the new instance begins behind it.
//! - What no instance could be given is told to the next one as lost.
//! - After a fatal strike the instance is gone before the next call.
//! - Whatever goes wrong is an event before anything that follows from it.

mod exchange;

use super::engine::EngineShared;
use super::error::LoadError;
use super::event::{Events, Handover, PolicyEvent};
use super::instance::Delivery;
use super::queue::{Message, Queue, count};
use super::running::{Running, Saved};
use super::status::{Board, PolicyState};
use super::strikes::{Ledger, Strike};
use crate::batch::Batch;
use palisade_core::PolicyRef;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// A new version that is ready to take over.
pub(super) struct Swap {
    pub new: Running,
    /// Told how it went.
    pub reply: Sender<Result<PolicyRef, LoadError>>,
}

/// The version before the running one, kept while that one is on probation.
struct Probation {
    old: Running,
    /// Event time of its end; not known before the first batch.
    until_ns: Option<u64>,
    /// Last batch that the old version saw.
    seq: u64,
    /// What the worker knew of it at the swap: the new version's checkpoints are not for it.
    saved: Option<Saved>,
    knows_from: Option<u64>,
}

/// What of a batch is to be given to the policy.
struct Part {
    /// Records to be told as lost before it.
    lost: u64,
    /// Where it begins.
    from: usize,
}

/// Over what an instance crashed.
struct Crash<'a> {
    batch: &'a Batch,
    /// As in its [`Part`]; 0 if it was told by a call that returned.
    lost: u64,
    /// The records that the call was given.
    records: Range<usize>,
}

/// A policy's thread.
pub(super) struct Worker {
    shared: Arc<EngineShared>,
    queue: Arc<Queue>,
    board: Arc<Board>,
    events: Events,
    /// `None` once ejected.
    running: Option<Running>,
    reference: PolicyRef,
    probation: Option<Probation>,
    saved: Option<Saved>,
    /// Event time of the last checkpoint; not known before the first batch.
    saved_ns: Option<u64>,
    ledger: Ledger,
    /// First batch that the running instance's state knows of.
    knows_from: Option<u64>,
    /// Records that crashes cost and that the policy was not told of yet.
    owed: u64,
    /// Last batch that was delivered.
    seq: u64,
    now_ns: u64,
}

impl Worker {
    pub fn new(
        shared: Arc<EngineShared>,
        queue: Arc<Queue>,
        board: Arc<Board>,
        events: Events,
        running: Running,
    ) -> Self {
        Self {
            shared,
            queue,
            board,
            events,
            reference: running.reference.clone(),
            ledger: Ledger::new(running.limits.strikes, running.limits.strike_window),
            running: Some(running),
            probation: None,
            saved: None,
            saved_ns: None,
            knows_from: None,
            owed: 0,
            seq: 0,
            now_ns: 0,
        }
    }

    /// Works until it is told to stop.
    pub fn run(mut self) {
        self.shared.ticker.stay();
        self.emit_log();
        loop {
            match self.queue.take() {
                Message::Batch { batch, lost } => self.batch(&batch, lost),
                Message::Swap(swap) => self.swap(*swap),
                Message::Stop => return,
            }
        }
    }

    /// Gives the policy a batch and draws all consequences.
    pub fn batch(&mut self, batch: &Batch, lost: u64) {
        if self.running.is_none() {
            return;
        }
        self.now_ns = batch.now_ns;
        self.end_probation();
        self.seq = batch.seq;
        self.lose(lost);
        let mut part = Some(Part { lost, from: 0 });
        while let Some(mut next) = part {
            next.lost = next.lost.saturating_add(std::mem::take(&mut self.owed));
            part = self.deliver(batch, next);
        }
        self.checkpoint_if_due();
    }

    /// Gives the instance in charge a part of a batch. Answers what is left to be given to the one
    /// in charge after that; each answer begins further on or is for another version.
    fn deliver(&mut self, batch: &Batch, Part { lost, from }: Part) -> Option<Part> {
        self.knows_from.get_or_insert(batch.seq);
        let Some(running) = &mut self.running else {
            return None;
        };
        let before = running.instance.stats();
        let Delivery {
            requests,
            strikes,
            records,
            undelivered,
        } = running.instance.deliver(batch, lost, from);
        let after = running.instance.stats();
        let memory = running.instance.memory_bytes();
        self.board.update(|counters| {
            counters.last_batch = batch.seq;
            counters.batches += 1;
            counters.records += records;
            counters.requests += requests.len() as u64;
            counters.calls += after.calls - before.calls;
            counters.call_ns_total += after.total_ns - before.total_ns;
            counters.call_ns_max = counters.call_ns_max.max(after.max_ns);
            counters.memory_bytes = memory;
        });
        self.emit_log();
        if !requests.is_empty() {
            self.emit(PolicyEvent::Output {
                policy: self.reference.clone(),
                batch: batch.seq,
                now_ns: batch.now_ns,
                requests,
            });
        }
        let crash = undelivered.map(|records| Crash {
            batch,
            // Told in the first call.
            lost: if records.start == from { lost } else { 0 },
            records,
        });
        self.strikes(&strikes, crash)
    }

    /// Draws the consequences. Answers what is left of the batch for the instance in charge then.
    fn strikes(&mut self, strikes: &[Strike], crash: Option<Crash<'_>>) -> Option<Part> {
        let mut too_many = false;
        let mut fatal = false;
        for strike in strikes {
            too_many |= self.ledger.strike(self.now_ns);
            fatal |= strike.fatal;
            let text = strike.to_string();
            self.board.update(|counters| {
                counters.strikes += 1;
                counters.last_error = Some(text);
            });
            self.emit(PolicyEvent::Strike {
                policy: self.reference.clone(),
                kind: strike.kind,
                detail: strike.detail.clone(),
                batch: self.seq,
            });
        }
        let last = strikes.last()?;
        if !fatal && !too_many {
            return None;
        }
        if let Some(probation) = self.probation.take() {
            self.roll_back(probation, last, crash)
        } else if too_many {
            self.eject(&format!("too many strikes, the last one: {last}"));
            None
        } else {
            self.restart();
            self.skip(crash?)
        }
    }

    /// Counts what the call that crashed was given as lost, and answers what is behind it.
    fn skip(&mut self, crash: Crash<'_>) -> Option<Part> {
        let Crash {
            batch,
            lost,
            records,
        } = crash;
        let mask = self.running.as_ref()?.mask();
        let from = records.end;
        let skipped = count(&batch.records[records], mask);
        self.board.update(|counters| {
            counters.lost = counters.lost.saturating_add(skipped);
        });
        self.lose(skipped);
        // The new instance does not know either of what the old one was told and crashed over.
        self.owed = self.owed.saturating_add(lost).saturating_add(skipped);
        (from < batch.records.len()).then_some(Part { lost: 0, from })
    }

    fn lose(&self, records: u64) {
        if records > 0 {
            self.emit(PolicyEvent::Lost {
                policy: self.reference.clone(),
                records,
                batch: self.seq,
            });
        }
    }

    fn restart(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        let saved = self.saved.as_ref();
        match running.restart(&self.shared, self.now_ns, saved) {
            Ok(restored) => {
                let after = saved
                    .filter(|_| restored)
                    .map(|saved| saved.seq.saturating_add(1));
                let from_seq = after.or(self.knows_from).unwrap_or(self.seq);
                let state = if restored {
                    Handover::Checkpoint
                } else {
                    Handover::Fresh
                };
                if !restored {
                    self.knows_from = None;
                }
                self.board.update(|counters| counters.restarts += 1);
                self.emit(PolicyEvent::Restarted {
                    policy: self.reference.clone(),
                    state,
                    from_seq,
                    to_seq: self.seq,
                });
                self.emit_log();
            }
            Err(error) => self.eject(&format!("it does not start again: {error}")),
        }
    }

    fn eject(&mut self, reason: &str) {
        self.queue.close();
        self.running = None;
        self.probation = None;
        self.saved = None;
        self.board.set(self.reference.clone(), PolicyState::Ejected);
        self.board.update(|counters| {
            counters.memory_bytes = 0;
            counters.last_error = Some(reason.to_owned());
        });
        self.emit(PolicyEvent::Ejected {
            policy: self.reference.clone(),
            reason: reason.to_owned(),
            batch: self.seq,
        });
    }

    fn checkpoint_if_due(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        let since = *self.saved_ns.get_or_insert(self.now_ns);
        let every = running.limits.checkpoint_every.as_nanos() as u64;
        if self.now_ns.saturating_sub(since) < every {
            return;
        }
        self.saved_ns = Some(self.now_ns);
        match running.save(self.now_ns, self.seq) {
            Ok(saved) => {
                self.saved = Some(saved);
                self.emit_log();
            }
            Err(strike) => {
                self.strikes(&[strike], None);
            }
        }
    }

    fn emit_log(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        for line in running.instance.take_log() {
            let event = PolicyEvent::Log {
                policy: self.reference.clone(),
                level: line.level,
                message: line.message,
                suppressed: line.suppressed,
            };
            // As below.
            self.events.send(event);
        }
    }

    fn emit(&self, event: PolicyEvent) {
        // The receiver goes before the policies only when the agent ends.
        self.events.send(event);
    }
}
