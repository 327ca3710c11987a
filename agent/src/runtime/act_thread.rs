//! The act thread: carries effects out, one after the other, and reports what came of them.
//!
//! Invariant: the keeper is sent home only when nothing is held. Whatever else ends this thread
//! looks like the agent's death to the keeper, which then undoes what is in force.

use super::judge::Message;
use crate::act::{Executor, Keeper};
use palisade_core::{Effect, Severity};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// How often the keeper is looked after, however much there is to do.
const KEEPER_CHECK: Duration = Duration::from_secs(1);

/// What the act thread is told.
#[derive(Debug)]
pub(super) enum Job {
    /// Carry out an effect.
    Effect(Effect),
    /// Tell people about a policy, without a request behind it.
    Tell { policy: String, text: String },
}

/// Runs until the core thread has ended.
pub(super) fn run(
    mut executor: Executor,
    mut keeper: Keeper,
    jobs: &Receiver<Job>,
    messages: &Sender<Message>,
) {
    let mut checked = Instant::now();
    loop {
        match jobs.recv_timeout(KEEPER_CHECK.saturating_sub(checked.elapsed())) {
            Ok(Job::Effect(effect)) => {
                if let Some(outcome) = executor.perform(&effect) {
                    let _ = messages.send(Message::Outcome(Box::new(effect), outcome));
                }
            }
            Ok(Job::Tell { policy, text }) => {
                // What became of it is counted and logged by the alerts themselves.
                let _ = executor.tell(&policy, Severity::Critical, &text);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if checked.elapsed() >= KEEPER_CHECK {
            checked = Instant::now();
            look_after(&mut keeper);
        }
    }
    let held = executor.journal().entries().len();
    if held > 0 {
        tracing::error!("{held} lease(s) could not be undone; they are left to the keeper");
        return;
    }
    if let Err(error) = keeper.dismiss() {
        tracing::warn!("the keeper did not end in order: {error}");
    }
}

fn look_after(keeper: &mut Keeper) {
    match keeper.ensure() {
        Ok(false) => {}
        Ok(true) => tracing::error!("the keeper had died; started another"),
        Err(error) => {
            tracing::error!("no keeper: {error}; leases are only undone by the agent itself");
        }
    }
}
