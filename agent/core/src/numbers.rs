//! Numbers for decisions, effects and leases.
//!
//! Invariant: within an agent's run no number is given twice.

use crate::{EffectId, LeaseId};

/// The next number of each sort.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    decisions: u64,
    effects: u64,
    leases: u64,
}

impl Numbers {
    /// Decisions and effects count from 1, leases upwards from the seed.
    pub(crate) fn new(run_seed: u64) -> Self {
        Self {
            decisions: 0,
            effects: 0,
            leases: run_seed,
        }
    }

    pub(crate) fn decision(&mut self) -> u64 {
        self.decisions = self.decisions.wrapping_add(1);
        self.decisions
    }

    pub(crate) fn effect(&mut self) -> EffectId {
        self.effects = self.effects.wrapping_add(1);
        EffectId(self.effects)
    }

    /// A lease of an earlier run has this number: those to come are larger.
    pub(crate) fn seen(&mut self, id: LeaseId) {
        if id.0 >= self.leases {
            self.leases = id.0.wrapping_add(1);
        }
    }

    /// Passes over numbers that are taken.
    pub(crate) fn lease(&mut self, taken: impl Fn(LeaseId) -> bool) -> LeaseId {
        loop {
            let id = LeaseId(self.leases);
            self.leases = self.leases.wrapping_add(1);
            if !taken(id) {
                return id;
            }
        }
    }
}
