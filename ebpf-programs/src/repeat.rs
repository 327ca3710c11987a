//! Loops that the kernel runs for us (`bpf_loop`, since Linux 5.17).
//!
//! The verifier follows the body of such a loop once. A loop of the compiler's it follows turn by turn, again for
//! every way that leads to it: that was most of what loading the programs took.

use aya_ebpf::helpers::generated::bpf_loop;
use core::ffi::c_void;

/// What a step answers.
#[repr(i64)]
#[derive(Clone, Copy)]
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
    // SAFETY: the helper calls `step`, which the verifier checks like any other function, with the number
    // of the turn and with `state`, which is nobody else's meanwhile.
    let _ = unsafe { bpf_loop(times, step as *mut c_void, (&raw mut *state).cast(), 0) };
}
