//! System calls, counted at entry, those that wait or yield apart.
//!
//! Invariant: the numbers of the calls that wait come from the agent. Programs of another
//! architecture's call table (32 bit on 64) are counted by their own numbers.

use crate::{
    emit::slot,
    filter::config,
    tables::SYSCALLS,
    typed::{Typed, watched},
};
use aya_ebpf::{
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::Array,
    programs::{BtfTracePointContext, RawTracePointContext},
};
use palisade_abi::MAX_SYSCALLS;

/// Bit `n % 64` of word `n / 64` is set if call `n` waits or yields. Written by the agent.
#[map]
pub static WAITING_CALLS: Array<u64> = Array::with_max_entries(MAX_SYSCALLS / 64, 0);

/// `sys_enter`, BTF tracepoint: (registers, number)
#[btf_tracepoint(function = "sys_enter")]
pub fn syscall_enter(ctx: BtfTracePointContext) -> i32 {
    let _ = enter(ctx.arg(1));
    0
}

/// `sys_enter`, raw tracepoint
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn syscall_enter_raw(ctx: RawTracePointContext) -> i32 {
    let _ = enter(ctx.arg(1));
    0
}

#[inline(always)]
fn enter(number: u64) -> Option<()> {
    let who = watched(config()?, Typed::current())?;
    let counters = slot(&SYSCALLS, &who.key(), who.workload)?;
    let waits = number < MAX_SYSCALLS as u64
        && WAITING_CALLS
            .get((number / 64) as u32)
            .is_some_and(|word| word >> (number % 64) & 1 == 1);
    if waits {
        counters.waiting += 1;
    } else {
        counters.calls += 1;
    }
    Some(())
}
