//! Memory maps: `mmap` and `munmap` that succeeded.
//!
//! The arguments are kept from entry to return, for watched workloads only.

use crate::{
    emit::{counters, lost, now, record},
    files,
    filter::{config, wanted, watched, watched_workload},
    kernel::{Task, syscall_word},
    tables::PENDING_MAPS,
};
use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid, macros::tracepoint, programs::TracePointContext,
};
use palisade_abi::{Kind, LOSS_STATE_MAP, MapCall, PendingMap, kind};

const MAP_ANONYMOUS: u32 = 0x20;
/// Results from here on are negated errnos, not addresses.
const FIRST_ERROR: u64 = -4095_i64 as u64;

/// `sys_enter_mmap`: (address, length, protection, flags, descriptor, offset)
#[tracepoint]
pub fn map_enter(ctx: TracePointContext) -> u32 {
    let _ = remember(PendingMap {
        address: syscall_word(&ctx, 0),
        bytes: syscall_word(&ctx, 1),
        map_flags: syscall_word(&ctx, 3) as u32,
        fd: syscall_word(&ctx, 4) as u32,
    });
    0
}

/// `sys_enter_munmap`: (address, length)
#[tracepoint]
pub fn unmap_enter(ctx: TracePointContext) -> u32 {
    let _ = remember(PendingMap {
        address: syscall_word(&ctx, 0),
        bytes: syscall_word(&ctx, 1),
        map_flags: 0,
        fd: 0,
    });
    0
}

/// `sys_exit_mmap`
#[tracepoint]
pub fn map_exit(ctx: TracePointContext) -> u32 {
    let _ = mapped(syscall_word(&ctx, 0));
    0
}

/// `sys_exit_munmap`
#[tracepoint]
pub fn unmap_exit(ctx: TracePointContext) -> u32 {
    let _ = unmapped(syscall_word(&ctx, 0));
    0
}

#[inline(always)]
fn remember(call: PendingMap) -> Option<()> {
    let workload = watched_workload(config()?, Task::current())?;
    if PENDING_MAPS
        .insert(bpf_get_current_pid_tgid(), call, 0)
        .is_err()
    {
        lost(workload, LOSS_STATE_MAP);
    }
    Some(())
}

#[inline(always)]
fn recall() -> Option<PendingMap> {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: only this thread writes and removes its entry, and it is here.
    let call = *unsafe { PENDING_MAPS.get(thread) }?;
    let _ = PENDING_MAPS.remove(thread);
    Some(call)
}

#[inline(always)]
fn mapped(address: u64) -> Option<()> {
    let call = recall()?;
    if address >= FIRST_ERROR {
        return None;
    }
    let config = config()?;
    let task = Task::current();
    let who = watched(config, task)?;
    if wanted(config, Kind::SampleMaps)
        && let Some(counters) = counters(&who)
    {
        counters.maps += 1;
        counters.mapped_bytes += call.bytes;
    }
    if wanted(config, Kind::Mmap) {
        let body = MapCall {
            address,
            bytes: call.bytes,
            map_flags: call.map_flags,
            pad: 0,
        };
        record(&who, now(), kind::MMAP, 0, body);
    }
    if call.map_flags & MAP_ANONYMOUS == 0 && wanted(config, Kind::ModelMap) {
        files::mapped(config, &who, task, call.fd, call.bytes)?;
    }
    Some(())
}

#[inline(always)]
fn unmapped(result: u64) -> Option<()> {
    let call = recall()?;
    if result != 0 {
        return None;
    }
    let config = config()?;
    let who = watched(config, Task::current())?;
    if wanted(config, Kind::SampleMaps)
        && let Some(counters) = counters(&who)
    {
        counters.unmaps += 1;
        counters.unmapped_bytes += call.bytes;
    }
    if wanted(config, Kind::Munmap) {
        let body = MapCall {
            address: call.address,
            bytes: call.bytes,
            map_flags: 0,
            pad: 0,
        };
        record(&who, now(), kind::MUNMAP, 0, body);
    }
    Some(())
}
