//! What the benchmarks share. Nothing here asserts a speed: benchmarks report.
//!
//! Invariants:
//! - Figures come from pure functions ([`stats`], [`memory`]) that have tests of their own.
//! - Every process that is started here is a [`crate::Ward`] in a cgroup of its own and ends with the benchmark.
//! - What cannot be run is reported with its reason, never left out.

pub mod arguments;
pub mod histogram;
pub mod identity;
pub mod loads;
pub mod memory;
pub mod paired;
pub mod python;
pub mod report;
pub mod signed_rank;
pub mod speed;
pub mod stats;
pub mod storm;
pub mod table;
pub mod tracers;
pub mod watched;
pub mod workloads;
pub mod yardstick;
