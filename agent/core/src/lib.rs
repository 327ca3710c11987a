//! The decision core: a deterministic state machine from policy requests to effects.
//!
//! Invariants:
//! - No I/O, no clock, no randomness: `now` is an argument, effects are data.
//! - No effect without a recorded decision; no lease without an undo; no action on a protected
//!   target; nothing irreversible while events about others were lost.
//! - Same inputs, same outputs, in the same order.
#![forbid(unsafe_code)]

mod account;
mod core;
mod decide;
mod gates;
mod held;
mod input;
mod lease;
mod loss;
mod number;
mod numbers;
mod protect;
mod quiet;
mod retry;
mod shares;
mod status;
mod types;

pub use crate::core::Core;
pub use gates::MIN_LEASE_MS;
pub use held::Phase;
pub use input::{ActOutcome, Effect, Input, Member, PolicyOutput, TargetFacts};
pub use lease::{Knob, Lease, LeaseId};
pub use protect::{
    DEFAULT_EXECUTABLES, DEFAULT_UNITS, DEFAULT_WHOLE_CGROUPS, ProtectError, ProtectList,
    Protection, SYSTEM_DIRECTORIES,
};
pub use status::{LeaseStatus, PolicyStatus, Status};
pub use types::{
    Action, CoreConfig, Decision, EffectId, Evidence, Grant, Mode, PolicyRef, Power, ProcessId,
    Reason, Request, Severity, Target, Verdict, WorkloadId,
};
