//! Palisade: the guardrail agent for hosts that serve AI models.
//!
//! The rooms and what each must never do are in `ARCHITECTURE.md`. Rooms do not import each other;
//! [`runtime`] joins them.

pub mod act;
pub mod audit;
pub mod batch;
pub mod boot_clock;
pub mod cli;
pub mod config;
pub mod control;
pub mod ebpf_object;
pub mod exit;
pub mod identity;
mod memory;
pub mod metrics;
pub mod policy;
mod questions;
pub mod recording;
pub mod replay;
pub mod runtime;
pub mod sensors;
