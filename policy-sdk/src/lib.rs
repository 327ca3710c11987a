//! Write a Palisade policy in Rust, test it natively, build it into a WebAssembly component.
//!
//! A policy implements [`Policy`] and is exported by [`policy!`]. It gets [`Record`]s, the
//! 64-byte events of the agent, in place; it asks for actions with [`Request`]s; it looks up
//! names with [`host`]; it keeps its memory bounded with what is in [`stats`] and
//! [`BoundedMap`]; and it is tested with [`testing::Harness`] under plain `cargo test`, with
//! neither a kernel nor a WebAssembly toolchain.
//!
//! ```
//! use palisade_policy_sdk::abi::SampleMaps;
//! use palisade_policy_sdk::stats::Cooldown;
//! use palisade_policy_sdk::testing::{Harness, Proc};
//! use palisade_policy_sdk::{Policy, Record, Request, Requests, Settings, Target};
//!
//! /// Alerts when one process maps more than `limit_mib` in a sampling window.
//! struct BigMaps {
//!     limit: u64,
//!     cooldown: Cooldown<u32>,
//! }
//!
//! impl Policy for BigMaps {
//!     fn init(settings: &Settings) -> Result<Self, String> {
//!         Ok(Self {
//!             limit: settings.integer_in("limit_mib", 1..=1_u64 << 40)? << 20,
//!             cooldown: Cooldown::new(60_000_000_000, 256),
//!         })
//!     }
//!
//!     fn on_batch(&mut self, now_ns: u64, records: &[Record], out: &mut Requests) {
//!         for record in records {
//!             let Some(maps) = record.get::<SampleMaps>() else { continue };
//!             if maps.mapped_bytes > self.limit && self.cooldown.ready(record.header.pid, now_ns) {
//!                 let alert = Request::alert(Target::Workload(record.header.workload))
//!                     .reason(format!("Process {} maps memory quickly", record.header.pid))
//!                     .evidence("mapped", maps.mapped_bytes as f64, "bytes");
//!                 out.push(alert);
//!             }
//!         }
//!     }
//! }
//!
//! palisade_policy_sdk::policy!(BigMaps, "examples/big-maps.toml");
//!
//! # fn main() {
//! // In the policy's tests:
//! let mut harness = Harness::<BigMaps>::with(&[("limit_mib", 8.into())]).unwrap();
//! let proc = Proc::new(100, 7);
//! harness.push(proc.sample_maps(1, 0, 4 << 20, 0));
//! assert!(harness.deliver().is_empty());
//! harness.push(proc.sample_maps(1, 0, 9 << 20, 0));
//! assert_eq!(harness.deliver().len(), 1);
//! # }
//! ```
//!
//! # The manifest
//!
//! `policy.toml` lies beside the policy's `Cargo.toml` and travels inside of the component:
//!
//! ```toml
#![doc = include_str!("../examples/big-maps.toml")]
//! ```
//!
//! Powers are `alert`, `throttle`, `freeze`, `signal`, `kill`; what is not asked for here is
//! never granted. Kinds are named as in [`Kind::name`]. Setting types are `integer`, `number`,
//! `text`, `flag`.
//!
//! # Invariants
//!
//! - No clock, no randomness, no I/O: the same records give the same requests.
//! - Everything here is bounded in memory.
//! - `unsafe` code exists in one generated module, on `wasm32` alone.
#![cfg_attr(not(target_arch = "wasm32"), forbid(unsafe_code))]
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))] // A failed unwrap is a failed test.
#![warn(missing_docs)]

mod absent;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod bindings;
pub mod host;
mod policy;
mod request;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod runtime;
mod settings;
pub mod state;
pub mod stats;
mod table;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
#[cfg(target_arch = "wasm32")]
mod wire;

pub use absent::AbsentKinds;
pub use host::Level;
pub use palisade_abi as abi;
pub use palisade_abi::{Kind, Record};
pub use policy::{Described, Policy};
pub use request::{Action, Evidence, ProcessId, Request, Requests, Severity, Target};
pub use settings::{Setting, Settings};
pub use table::BoundedMap;

/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;
/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;
