//! One policy driven by hand: the same conduct as in the running agent (splitting, strikes,
//! restarts from checkpoints, ejection), on the caller's thread. For replay and back-tests.
//!
//! Invariant: the same source and the same batches give the same events, cut-off times aside.

use super::compiled::{PolicyFile, Prepared};
use super::engine::EngineShared;
use super::error::LoadError;
use super::event::PolicyEvent;
use super::queue::{self, Queue};
use super::registry::PolicySource;
use super::status::Board;
use super::worker::Worker;
use crate::batch::Batch;
use palisade_core::PolicyRef;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

/// A policy driven by hand.
pub struct Stepper {
    worker: Worker,
    events: Receiver<PolicyEvent>,
    reference: PolicyRef,
    mask: u64,
}

impl std::fmt::Debug for Stepper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stepper")
            .field("reference", &self.reference)
            .finish_non_exhaustive()
    }
}

impl Stepper {
    /// Checks, compiles and starts `source` as `generation`.
    ///
    /// # Errors
    /// The policy is refused.
    pub fn new(
        shared: &Arc<EngineShared>,
        source: &PolicySource,
        generation: u64,
    ) -> Result<Self, LoadError> {
        let file = PolicyFile::read(&source.path, source.limits.file_bytes)?;
        let running = Prepared::new(shared, source, &file)?.running(source, generation);
        let (reference, mask) = (running.reference.clone(), running.mask());
        let queue = Arc::new(Queue::new(&source.name, &source.limits, mask));
        let board = Arc::new(Board::new(reference.clone()));
        let (sender, events) = channel();
        shared.ticker.stay();
        let worker = Worker::new(Arc::clone(shared), queue, board, sender.into(), running);
        Ok(Self {
            worker,
            events,
            reference,
            mask,
        })
    }

    /// Who it is.
    pub fn reference(&self) -> &PolicyRef {
        &self.reference
    }

    /// Bits of [`palisade_abi::Kind::bit`] that it receives.
    pub fn mask(&self) -> u64 {
        self.mask
    }

    /// Whether a running agent would put `batch` into its queue.
    pub fn concerns(&self, batch: &Batch) -> bool {
        queue::concerns(batch, queue::kinds(&batch.records), self.mask)
    }

    /// Gives it `batch`, before which `lost` of its records were dropped, and returns what came of
    /// it, in order.
    pub fn step(&mut self, batch: &Batch, lost: u64) -> Vec<PolicyEvent> {
        self.worker.batch(batch, lost);
        self.events.try_iter().collect()
    }
}
