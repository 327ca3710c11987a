//! One version taking over from another, and back.
//!
//! Invariant: whatever the new version did in its probation, the old one goes on from where it
//! was at the swap.

use super::super::LoadError;
use super::super::event::{Handover, PolicyEvent};
use super::super::running::{Running, Saved};
use super::super::status::PolicyState;
use super::super::strikes::{Ledger, Strike};
use super::{Crash, Part, Probation, Swap, Worker};

impl Worker {
    /// Lets the new version take over, if it takes the state.
    pub(super) fn swap(&mut self, swap: Swap) {
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
                // The queue took in batches for the new one too.
                self.listen();
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
                saved: state.clone(),
                knows_from: self.knows_from,
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
        self.board.set(running.reference.clone(), state);
        self.running = Some(running);
        self.listen();
    }

    /// Makes the queue take in what the version in charge and the one kept want.
    fn listen(&self) {
        let kept = self.probation.as_ref().map(|probation| &probation.old);
        let masks = self.running.iter().chain(kept).map(Running::mask);
        self.queue.set_mask(masks.fold(0, |all, mask| all | mask));
    }

    pub(super) fn end_probation(&mut self) {
        let (Some(probation), Some(running)) = (&mut self.probation, &self.running) else {
            return;
        };
        let length = running.limits.probation.as_nanos() as u64;
        let until = *probation
            .until_ns
            .get_or_insert(self.now_ns.saturating_add(length));
        if self.now_ns >= until {
            self.board.set(self.reference.clone(), PolicyState::Running);
            self.probation = None;
            self.listen();
        }
    }

    /// Puts the old version back in charge. Answers what is left of the batch for it.
    pub(super) fn roll_back(
        &mut self,
        probation: Probation,
        why: &Strike,
        crash: Option<Crash<'_>>,
    ) -> Option<Part> {
        let Probation {
            old,
            seq,
            saved,
            knows_from,
            ..
        } = probation;
        let failed = std::mem::replace(&mut self.reference, old.reference.clone());
        // A batch of which the new version saw nothing is given to the old one.
        let to_seq = match &crash {
            Some(crash) if crash.records.start == 0 => crash.batch.seq.saturating_sub(1),
            _ => self.seq,
        };
        self.ledger.clear();
        self.saved = saved;
        self.knows_from = knows_from;
        self.put_in_charge(old, None);
        self.emit(PolicyEvent::RolledBack {
            policy: self.reference.clone(),
            failed,
            reason: why.to_string(),
            from_seq: seq.saturating_add(1),
            to_seq,
        });
        crash.map(|Crash { lost, records, .. }| Part {
            lost,
            from: records.start,
        })
    }
}
