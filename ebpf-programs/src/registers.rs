//! The arguments of the system call that the running task is in. The kernel keeps them in the
//! registers that the task came with, from the call's entry to its return.

use crate::typed::{Memory, Typed};
use aya_ebpf::{
    Global,
    helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
};
use palisade_abi::SyscallOffsets;

#[unsafe(no_mangle)]
static OFFSETS_SYSCALL: Global<SyscallOffsets> = Global::new(SyscallOffsets { arguments: [0; 6] });

/// The running task's registers, as they were in user mode.
#[derive(Clone, Copy)]
pub struct Registers(Typed);

impl Registers {
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: the helpers have no preconditions.
        Self(Typed(
            unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const u8,
        ))
    }

    /// Argument `N` of the system call.
    #[inline(always)]
    pub fn argument<const N: usize>(self) -> Option<u64> {
        let table = (&raw const OFFSETS_SYSCALL).cast::<SyscallOffsets>();
        // SAFETY: `Global` is transparent over an initialised value; the volatile read keeps the
        // compiler from using the zeros above instead of what the agent put there.
        let offset = unsafe { core::ptr::read_volatile(&raw const (*table).arguments[N]) };
        self.0.read(offset as usize)
    }
}
