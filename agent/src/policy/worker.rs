//! The thread of one policy: takes batches and swaps from its queue, in order.
//!
//! Invariants:
//! - A swap happens between two batches; each batch is given to exactly one instance (after a
//!   roll-back the part of it that crashed the new version is given to the old one).
//! - After a fatal strike the instance is gone before the next batch.
//! - Whatever goes wrong is an event before anything that follows from it.

use super::engine::EngineShared;
use super::error::LoadError;
use super::event::{Events, Handover, PolicyEvent};
use super::instance::Delivery;
use super::queue::{Message, Queue};
use super::running::{Running, Saved};
use super::status::{Board, PolicyState};
use super::strikes::{Ledger, Strike};
use crate::batch::Batch;
use palisade_core::PolicyRef;
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
            seq: 0,
            now_ns: 0,
        }
    }

    /// Works until it is told to stop.
    pub fn run(mut self) {
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
        if lost > 0 {
            self.emit(PolicyEvent::Lost {
                policy: self.reference.clone(),
                records: lost,
                batch: batch.seq,
            });
        }
        self.seq = batch.seq;
        self.knows_from.get_or_insert(batch.seq);
        self.deliver(batch, lost, 0);
        self.checkpoint_if_due();
    }

    fn deliver(&mut self, batch: &Batch, lost: u64, from: usize) {
        let Some(running) = &mut self.running else {
            return;
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
        if !strikes.is_empty() {
            let rest = undelivered.map(|from| (batch, if from == 0 { lost } else { 0 }, from));
            self.strikes(&strikes, rest);
        }
    }

    /// Draws the consequences. `rest` is what no call returned for: batch, losses, first record.
    fn strikes(&mut self, strikes: &[Strike], rest: Option<(&Batch, u64, usize)>) {
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
        let Some(last) = strikes.last() else { return };
        if !fatal && !too_many {
            return;
        }
        if let Some(probation) = self.probation.take() {
            self.roll_back(probation, last, rest);
        } else if too_many {
            self.eject(&format!("too many strikes, the last one: {last}"));
        } else {
            self.restart();
        }
    }

    fn roll_back(
        &mut self,
        probation: Probation,
        why: &Strike,
        rest: Option<(&Batch, u64, usize)>,
    ) {
        let failed = std::mem::replace(&mut self.reference, probation.old.reference.clone());
        // A batch of which the new version saw nothing is given to the old one.
        let to_seq = match rest {
            Some((batch, _, 0)) => batch.seq.saturating_sub(1),
            _ => self.seq,
        };
        self.ledger.clear();
        self.put_in_charge(probation.old, None);
        self.emit(PolicyEvent::RolledBack {
            policy: self.reference.clone(),
            failed,
            reason: why.to_string(),
            from_seq: probation.seq.saturating_add(1),
            to_seq,
        });
        if let Some((batch, lost, from)) = rest {
            self.deliver(batch, lost, from);
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

    fn swap(&mut self, swap: Swap) {
        let Swap { mut new, reply } = swap;
        // A policy that was ejected begins anew: its state may be what made it misbehave.
        let mut broken = None;
        let (state, handover) = match self
            .running
            .as_mut()
            .map(|old| old.save(self.now_ns, self.seq))
        {
            None => (None, Handover::Fresh),
            Some(Ok(saved)) => (Some(saved), Handover::Current),
            Some(Err(strike)) => {
                broken = Some(strike);
                let state = self.saved.clone();
                let handover = if state.is_some() {
                    Handover::Checkpoint
                } else {
                    Handover::Fresh
                };
                (state, handover)
            }
        };
        self.emit_log();
        let taken = state
            .as_ref()
            .map_or(Ok(()), |saved| new.restore(self.now_ns, saved));
        let answer = match taken {
            Ok(()) => {
                self.take_over(new, state, handover, broken.take());
                Ok(self.reference.clone())
            }
            Err(detail) => {
                let name = self.reference.name.clone();
                let error = LoadError::Restore {
                    name: name.clone(),
                    detail,
                };
                self.board
                    .update(|counters| counters.last_error = Some(error.to_string()));
                self.emit(PolicyEvent::Rejected {
                    name,
                    error: error.to_string(),
                });
                Err(error)
            }
        };
        // The one who asked may have stopped waiting.
        let _ = reply.send(answer);
        if let Some(strike) = broken {
            self.strikes(&[strike], None);
        }
    }

    fn take_over(
        &mut self,
        new: Running,
        state: Option<Saved>,
        handover: Handover,
        broken: Option<Strike>,
    ) {
        let previous = std::mem::replace(&mut self.reference, new.reference.clone());
        self.ledger = Ledger::new(new.limits.strikes, new.limits.strike_window);
        let old = self.running.take();
        self.probation = None;
        if let Some(strike) = broken {
            // No way back to an instance that crashed.
            self.emit(PolicyEvent::Strike {
                policy: previous.clone(),
                kind: strike.kind,
                detail: strike.detail,
                batch: self.seq,
            });
        } else if let Some(old) = old {
            self.probation = Some(Probation {
                old,
                until_ns: None,
                seq: self.seq,
            });
        }
        self.emit(PolicyEvent::Loaded {
            policy: new.reference.clone(),
            previous: Some(previous),
            state: handover,
            after_batch: self.seq,
        });
        match state {
            Some(_) => self.saved = state,
            None => self.knows_from = None,
        }
        self.board.update(|counters| counters.last_error = None);
        self.put_in_charge(new, Some(PolicyState::Probation));
        self.queue.open();
        self.emit_log();
    }

    fn put_in_charge(&mut self, running: Running, state: Option<PolicyState>) {
        let state = state
            .filter(|_| self.probation.is_some())
            .unwrap_or(PolicyState::Running);
        let kept = self
            .probation
            .as_ref()
            .map_or(0, |probation| probation.old.mask());
        self.queue.set_mask(running.mask() | kept);
        self.board.set(running.reference.clone(), state);
        self.running = Some(running);
    }

    fn end_probation(&mut self) {
        let (Some(probation), Some(running)) = (&mut self.probation, &self.running) else {
            return;
        };
        let length = running.limits.probation.as_nanos() as u64;
        let until = *probation
            .until_ns
            .get_or_insert(self.now_ns.saturating_add(length));
        if self.now_ns >= until {
            self.queue.set_mask(running.mask());
            self.board.set(self.reference.clone(), PolicyState::Running);
            self.probation = None;
        }
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
            Err(strike) => self.strikes(&[strike], None),
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
