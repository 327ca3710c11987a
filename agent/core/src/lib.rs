//! The decision core: a deterministic state machine from policy requests to effects.
//!
//! Invariants:
//! - No I/O, no clock, no randomness: `now` is an argument, effects are data.
//! - No effect without a recorded decision; no lease without an undo; no action on a protected
//!   target; nothing irreversible while events about others were lost.
//! - Same inputs, same outputs, in the same order.
#![forbid(unsafe_code)]

mod core;
mod gates;
mod input;
mod lease;
mod protect;
mod types;

pub use crate::core::Core;
pub use input::{ActOutcome, Effect, Input, Member, PolicyOutput, TargetFacts};
pub use lease::{Knob, Lease, LeaseId};
pub use protect::{ProtectList, Protection};
pub use types::{
    Action, CoreConfig, Decision, EffectId, Evidence, Grant, Mode, PolicyRef, Power, ProcessId,
    Reason, Request, Severity, Target, Verdict, WorkloadId,
};
