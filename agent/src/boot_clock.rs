//! The clock of the agent: `CLOCK_BOOTTIME`, which the kernel programs put into records, too.
//!
//! Invariant: whoever needs the present time takes it from here, or is given it; wall time is for people (`audit::clock`).

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the boot, suspended time included. It never goes back.
pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    (time.tv_sec as u64)
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec as u64)
}
