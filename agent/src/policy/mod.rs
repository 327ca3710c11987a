//! Hosting policies: WebAssembly components that look at events and ask for actions.
//!
//! Invariants:
//! - A policy only ever asks. What comes out of this room is a [`palisade_core::Request`] whose
//!   sizes and ranges were checked; nothing here acts on the host.
//! - No policy slows the sensors or another policy: publishing never blocks, each policy has its
//!   own thread, bounded queue, memory limit and deadline.
//! - Guest bytes never panic the agent. Whatever a guest does wrong is a [`Strike`] or a
//!   [`LoadError`].
//! - Event time only: a policy's behaviour depends on the batches it is given, never on the clock.
//!   (The clock decides only when a runaway call is cut off.)
//!
//! This room must not touch cgroups, signals, the audit log or the sensors: it reports
//! [`PolicyEvent`]s and answers questions.

mod bindings;
mod compiled;
pub mod compiler;
mod convert;
mod engine;
mod error;
mod event;
mod host;
mod instance;
mod limits;
mod manifest;
mod queue;
mod quota;
mod registry;
mod reload;
mod running;
mod settings;
mod status;
mod stepper;
mod strikes;
mod ticker;
mod together;
mod watch;
mod worker;

#[cfg(test)]
mod tests;

pub use compiled::{Compiled, check, inspect};
pub use engine::{EngineShared, Facts, Lookup, NoLookup, ProcessFacts, WorkloadFacts};
pub use error::LoadError;
pub use event::{Events, Handover, LogLevel, PolicyEvent};
pub use instance::{CallOutput, CallStats, Delivery, Instance, MAX_RECORDS_PER_CALL, StartError};
pub use limits::Limits;
pub use manifest::{Manifest, SECTION as MANIFEST_SECTION, SettingSchema, SettingType};
pub use queue::Publisher;
pub use registry::{Engine, EngineOptions, PolicySource};
pub use settings::{Setting, Settings, resolve};
pub use status::{PolicyState, PolicyStatus};
pub use stepper::Stepper;
pub use strikes::{Strike, StrikeKind};
