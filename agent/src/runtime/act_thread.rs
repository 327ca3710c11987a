//! The act thread: carries effects out, one after the other, and reports what came of them.

use super::Message;
use crate::act::{Executor, Keeper};
use palisade_core::Effect;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

/// How often the keeper is looked after.
const KEEPER_CHECK: Duration = Duration::from_secs(1);

/// Runs until the core thread has ended, then sends the keeper home.
pub(super) fn run(
    mut executor: Executor,
    mut keeper: Keeper,
    effects: &Receiver<Effect>,
    messages: &Sender<Message>,
) {
    loop {
        match effects.recv_timeout(KEEPER_CHECK) {
            Ok(effect) => {
                if let Some(outcome) = executor.perform(&effect) {
                    let _ = messages.send(Message::Outcome(Box::new(effect), outcome));
                }
            }
            Err(RecvTimeoutError::Timeout) => match keeper.ensure() {
                Ok(false) => {}
                Ok(true) => tracing::error!("the keeper had died; started another"),
                Err(error) => tracing::error!(
                    "no keeper: {error}; leases are only undone by the agent itself"
                ),
            },
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if let Err(error) = keeper.dismiss() {
        tracing::warn!("the keeper did not end in order: {error}");
    }
}
