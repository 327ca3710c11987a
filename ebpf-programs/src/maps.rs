//! Memory maps: `mmap` and `munmap` that succeeded.
//!
//! Only the return of a call is watched, with its result and the arguments, which are still among
//! the caller's registers. Nothing is kept from entry to return, so nothing can be lost in between.

use crate::{
    emit::{counters, now, record},
    files,
    filter::{config, wanted},
    kernel::{Task, syscall_word},
    registers::Registers,
    typed::{Typed, watched},
};
use aya_ebpf::{
    macros::{fexit, tracepoint},
    programs::{FExitContext, TracePointContext},
};
use palisade_abi::{Kind, MapCall, kind};

const MAP_ANONYMOUS: u32 = 0x20;
/// Results from here on are negated errnos, not addresses.
const FIRST_ERROR: u64 = -4095_i64 as u64;

/// The kernel's function for `mmap`: (registers), result
#[fexit(function = "__x64_sys_mmap")]
pub fn map_return(ctx: FExitContext) -> i32 {
    let _ = mapped(ctx.arg(1));
    0
}

/// `sys_exit_mmap`
#[tracepoint]
pub fn map_exit(ctx: TracePointContext) -> u32 {
    let _ = mapped(syscall_word(&ctx, 0));
    0
}

/// The kernel's function for `munmap`: (registers), result
#[fexit(function = "__x64_sys_munmap")]
pub fn unmap_return(ctx: FExitContext) -> i32 {
    let _ = unmapped(ctx.arg(1));
    0
}

/// `sys_exit_munmap`
#[tracepoint]
pub fn unmap_exit(ctx: TracePointContext) -> u32 {
    let _ = unmapped(syscall_word(&ctx, 0));
    0
}

/// (address, length, protection, flags, descriptor, offset)
#[inline(always)]
fn mapped(address: u64) -> Option<()> {
    if address >= FIRST_ERROR {
        return None;
    }
    let config = config()?;
    let who = watched(config, Typed::current())?;
    let registers = Registers::current();
    let bytes = registers.argument::<1>()?;
    if wanted(config, Kind::SampleMaps)
        && let Some(counters) = counters(&who)
    {
        counters.maps += 1;
        counters.mapped_bytes += bytes;
    }
    let map_flags = registers.argument::<3>()? as u32;
    if wanted(config, Kind::Mmap) {
        let body = MapCall {
            address,
            bytes,
            map_flags,
            pad: 0,
        };
        record(&who, now(), kind::MMAP, 0, body);
    }
    if map_flags & MAP_ANONYMOUS == 0 && wanted(config, Kind::ModelMap) {
        let fd = registers.argument::<4>()? as u32;
        files::mapped(config, &who, Task::current(), fd, bytes)?;
    }
    Some(())
}

/// (address, length)
#[inline(always)]
fn unmapped(result: u64) -> Option<()> {
    if result != 0 {
        return None;
    }
    let config = config()?;
    let who = watched(config, Typed::current())?;
    let registers = Registers::current();
    let bytes = registers.argument::<1>()?;
    if wanted(config, Kind::SampleMaps)
        && let Some(counters) = counters(&who)
    {
        counters.unmaps += 1;
        counters.unmapped_bytes += bytes;
    }
    if wanted(config, Kind::Munmap) {
        let body = MapCall {
            address: registers.argument::<0>()?,
            bytes,
            map_flags: 0,
            pad: 0,
        };
        record(&who, now(), kind::MUNMAP, 0, body);
    }
    Some(())
}
