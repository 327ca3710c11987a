//! CUDA: launches, failed allocations, and the time blocked in synchronising and copying calls.
//!
//! Breakpoints in the driver's user-space library, for every process that maps it. Counters only:
//! a call costs a trap or two, never a record. A blocking call that the library makes inside
//! another one counts as a part of that.

use crate::{
    emit::{add, lost, now, slot},
    filter::config,
    tables::{CUDA, ON_DEMAND},
    typed::{Typed, watched, watched_workload},
};
use aya_ebpf::{
    bindings::pt_regs,
    helpers::bpf_get_current_pid_tgid,
    macros::{map, uprobe, uretprobe},
    maps::HashMap,
    programs::{ProbeContext, RetProbeContext},
};
use palisade_abi::{CudaCall, CudaCounters, LOSS_STATE_MAP};

/// Blocking calls under way of watched processes.
#[map]
pub static CUDA_CALLS: HashMap<u64, CudaCall> = HashMap::with_max_entries(16_384, ON_DEMAND);

/// Entry of a call that launches a kernel or a graph.
#[uprobe]
pub fn cuda_launch(_ctx: ProbeContext) -> u32 {
    let _ = counted(|counters| add(&raw mut counters.launches, 1));
    0
}

/// Return of a call that allocates.
#[uretprobe]
pub fn cuda_alloc(ctx: RetProbeContext) -> u32 {
    // `CUresult`: an enumeration, hence 32 bits; 0 is success.
    if ctx.ret::<u32>() != 0 {
        let _ = counted(|counters| add(&raw mut counters.failed_allocs, 1));
    }
    0
}

/// Entry of a call that synchronises.
#[uprobe]
pub fn cuda_sync_enter(ctx: ProbeContext) -> u32 {
    let _ = enter(ctx.regs);
    0
}

/// Return of a call that synchronises.
#[uretprobe]
pub fn cuda_sync_exit(ctx: RetProbeContext) -> u32 {
    if let Some(blocked_ns) = exit(ctx.regs) {
        let _ = counted(|counters| {
            add(&raw mut counters.syncs, 1);
            add(&raw mut counters.blocked_ns, blocked_ns);
        });
    }
    0
}

/// Entry of a call that copies and waits for it.
#[uprobe]
pub fn cuda_copy_enter(ctx: ProbeContext) -> u32 {
    let _ = enter(ctx.regs);
    0
}

/// Return of a call that copies.
#[uretprobe]
pub fn cuda_copy_exit(ctx: RetProbeContext) -> u32 {
    if let Some(blocked_ns) = exit(ctx.regs) {
        let _ = counted(|counters| {
            add(&raw mut counters.copies, 1);
            add(&raw mut counters.blocked_ns, blocked_ns);
        });
    }
    0
}

#[inline(always)]
fn counted(count: impl FnOnce(&mut CudaCounters)) -> Option<()> {
    let who = watched(config()?, Typed::current())?;
    count(slot(&CUDA, &who.key(), who.workload)?);
    Some(())
}

#[inline(always)]
fn enter(regs: *const pt_regs) -> Option<()> {
    let workload = watched_workload(config()?, Typed::current())?;
    let thread = bpf_get_current_pid_tgid();
    let stack = stack_pointer(regs);
    // SAFETY: only this thread writes and removes its entry, and it is here.
    if let Some(outer) = unsafe { CUDA_CALLS.get(thread) } {
        if stack < outer.stack {
            return None;
        }
        // Its frame is gone: its return was not seen.
        lost(workload, LOSS_STATE_MAP);
    }
    let call = CudaCall {
        entered_ns: now(),
        stack,
    };
    if CUDA_CALLS.insert(thread, call, 0).is_err() {
        lost(workload, LOSS_STATE_MAP);
    }
    Some(())
}

/// How long the call took, unless it was one inside another.
#[inline(always)]
fn exit(regs: *const pt_regs) -> Option<u64> {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: only this thread writes and removes its entry, and it is here.
    let call = *unsafe { CUDA_CALLS.get(thread) }?;
    // On x86 the return has taken its address off the stack.
    let lowest = call.stack + cfg!(bpf_target_arch = "x86_64") as u64;
    if stack_pointer(regs) < lowest {
        return None;
    }
    let _ = CUDA_CALLS.remove(thread);
    Some(now().saturating_sub(call.entered_ns))
}

#[inline(always)]
fn stack_pointer(regs: *const pt_regs) -> u64 {
    // SAFETY: the context of a breakpoint program is the interrupted thread's registers.
    #[cfg(bpf_target_arch = "x86_64")]
    unsafe {
        (*regs).rsp
    }
    // SAFETY: as above.
    #[cfg(not(bpf_target_arch = "x86_64"))]
    unsafe {
        (*regs).sp
    }
}
