//! The one way to talk to a running agent: a Unix socket with a line of JSON each way.
//!
//! Invariants:
//! - Only root and the agent's own user are answered; the kernel says who asks, not the asker.
//! - Every request has a version, a bounded size and a bounded time. Bytes from the socket never
//!   panic the agent, and no client can keep another from being answered for good.
//! - One agent a host: the lock in the run folder says which.
//!
//! This room carries questions and answers; it decides nothing and knows no policy.

mod client;
mod lock;
mod protocol;
mod server;

pub use client::{ControlError, call};
pub use lock::{AgentLock, LockError, lock};
pub use protocol::{
    ErrorCode, Failure, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, REQUEST_TIMEOUT, Request, Response,
    VERSION,
};
pub use server::{Handler, MAX_CONNECTIONS, Server, ServerError};

#[cfg(test)]
mod tests;
