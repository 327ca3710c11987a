//! Loops that the kernel runs for us (`bpf_loop`, since Linux 5.17).
//!
//! The verifier does not follow such a loop to its end: older ones follow one turn for each way that leads to it, newer
//! ones (about Linux 6.7) until a turn adds nothing. A loop of the compiler's they follow through all turns on each way:
//! that was most of what loading the programs took.

use aya_ebpf::helpers::generated::bpf_loop;
use core::ffi::c_void;

/// What a step answers, as the kernel takes it: 64 bits, 0 or 1.
#[repr(i64)]
pub enum Then {
    /// The next one follows.
    GoOn = 0,
    /// There is none.
    End = 1,
}

/// A body that changes what it is given.
pub type Step<T> = extern "C" fn(u32, &mut T) -> Then;

/// Takes a step after another, `times` at most.
#[inline(always)]
pub fn up_to<T>(times: u32, step: Step<T>, state: &mut T) {
    // SAFETY: the kernel calls `step` as `u64 (u64 turn, void *state)`; the turn is below `times` and so fits its register's
    // lower half, `Then` fills the register of the answer, and `state` is nobody else's meanwhile. The verifier checks
    // the function like any other.
    let _ = unsafe { bpf_loop(times, step as *mut c_void, (&raw mut *state).cast(), 0) };
}
