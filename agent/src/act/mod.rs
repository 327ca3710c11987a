//! Acting: the one room that changes anything on the host.
//!
//! Invariants:
//! - It carries out effects and chooses nothing: no effect, no change.
//! - A containment is written to the [`Journal`] before it is written to the cgroup, so that at
//!   any instant the journal names everything that is in force.
//! - A cgroup is an open directory whose inode was compared, a process is a pidfd whose start time
//!   was compared. No signal is sent to a bare pid, no value is written through a bare path.
//! - What is reported was read back.
//! - An undo restores only what is still ours.
//!
//! It must not: decide, keep policy state, touch the audit log, or block without a bound.

pub mod alert;
pub mod cgroup;
pub mod executor;
pub mod journal;
pub mod keeper;
pub mod restore;
mod signal;

pub use alert::{AlertCounts, AlertOptions};
pub use executor::{Executor, ExecutorOptions};
pub use journal::{Entry, Journal, JournalError, Recovered};
pub use keeper::Keeper;
pub use restore::{Released, release_all};
