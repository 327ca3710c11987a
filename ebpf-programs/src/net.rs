//! TCP: bytes and calls per process, and segments that were sent again.
//!
//! The process that makes the call is the one that counts. Peeks and the error queue are no
//! receives; a call that moved nothing does not count.

use crate::{
    emit::{lost, slot},
    filter::{config, wanted},
    inference,
    kernel::Address,
    tables::{NET, ON_DEMAND},
    typed::{Memory, Typed, watched, watched_workload},
};
use aya_ebpf::{
    Global,
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, fexit, kprobe, kretprobe, map, raw_tracepoint},
    maps::HashMap,
    programs::{
        BtfTracePointContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext,
    },
};
use palisade_abi::{Kind, LOSS_STATE_MAP, NetCall, NetOffsets};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;
const MSG_PEEK: u64 = 0x2;
const MSG_ERRQUEUE: u64 = 0x2000;

/// Calls under way of watched processes. Only the rung of breakpoints uses it.
#[map]
pub static NET_CALLS: HashMap<u64, NetCall> = HashMap::with_max_entries(16_384, ON_DEMAND);

/// Offsets of kernel structure members.
#[unsafe(no_mangle)]
pub static OFFSETS_NET: Global<NetOffsets> = Global::new(NetOffsets {
    sk_family: 0,
    sk_protocol: 0,
    bind_hash: 0,
    fastreuse: 0,
    skb_segments: 0,
    retransmit_has_error: 0,
    receive_arguments: 0,
    pad: 0,
});

/// One member of [`OFFSETS_NET`]; see `tables::offset`.
macro_rules! net_offset {
    ($member:ident) => {{
        let table = (&raw const $crate::net::OFFSETS_NET).cast::<palisade_abi::NetOffsets>();
        // SAFETY: as for `tables::offset`.
        unsafe { core::ptr::read_volatile(&raw const (*table).$member) as usize }
    }};
}
pub(crate) use net_offset;

/// `sock_send_length`, BTF tracepoint: (socket, result, flags)
#[btf_tracepoint(function = "sock_send_length")]
pub fn net_send(ctx: BtfTracePointContext) -> i32 {
    let _ = sent(Typed(ctx.arg(0)), ctx.arg(1));
    0
}

/// `sock_send_length`, raw tracepoint
#[raw_tracepoint(tracepoint = "sock_send_length")]
pub fn net_send_raw(ctx: RawTracePointContext) -> i32 {
    let _ = sent(Address(ctx.arg(0)), ctx.arg(1));
    0
}

/// `tcp_sendmsg`: (socket, message, size), result
#[fexit(function = "tcp_sendmsg")]
pub fn net_send_exit(ctx: FExitContext) -> i32 {
    let _ = sent(Typed(ctx.arg(0)), ctx.arg(3));
    0
}

/// `tcp_sendmsg`
#[kprobe]
pub fn net_send_enter(ctx: ProbeContext) -> u32 {
    let _ = remember(&ctx, 0);
    0
}

/// `tcp_sendmsg`
#[kretprobe]
pub fn net_send_return(ctx: RetProbeContext) -> u32 {
    if let Some(call) = recall() {
        let _ = sent(Address(call.socket), ctx.ret());
    }
    0
}

/// `sock_recv_length`, BTF tracepoint: (socket, result, flags)
#[btf_tracepoint(function = "sock_recv_length")]
pub fn net_receive(ctx: BtfTracePointContext) -> i32 {
    let _ = received(Typed(ctx.arg(0)), ctx.arg(1), ctx.arg(2));
    0
}

/// `sock_recv_length`, raw tracepoint
#[raw_tracepoint(tracepoint = "sock_recv_length")]
pub fn net_receive_raw(ctx: RawTracePointContext) -> i32 {
    let _ = received(Address(ctx.arg(0)), ctx.arg(1), ctx.arg(2));
    0
}

/// `tcp_recvmsg`: (socket, message, length, [nonblock,] flags, [address length]), result.
/// The switch is frozen: the verifier never looks at the arms that are not taken.
#[fexit(function = "tcp_recvmsg")]
pub fn net_receive_exit(ctx: FExitContext) -> i32 {
    let (flags, result) = match net_offset!(receive_arguments) {
        4 => (pinned(ctx.arg(3)), pinned(ctx.arg(4))),
        5 => (pinned(ctx.arg(3)), pinned(ctx.arg(5))),
        6 => (pinned(ctx.arg(4)), pinned(ctx.arg(6))),
        _ => return 0,
    };
    let _ = received(Typed(ctx.arg(0)), result as i32, flags as u32);
    0
}

/// `tcp_recvmsg`
#[kprobe]
pub fn net_receive_enter(ctx: ProbeContext) -> u32 {
    let flags = match net_offset!(receive_arguments) {
        6 => ctx.arg(4).map(pinned),
        _ => ctx.arg(3).map(pinned),
    };
    let _ = remember(&ctx, flags.unwrap_or_default());
    0
}

/// The same word. It keeps the compiler from making one load, at a place computed first, of the
/// loads in several arms: the verifier wants fixed places in a program's context.
#[inline(always)]
fn pinned(word: u64) -> u64 {
    let same: u64;
    // SAFETY: moves a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) word => same) };
    same
}

/// `tcp_recvmsg`
#[kretprobe]
pub fn net_receive_return(ctx: RetProbeContext) -> u32 {
    if let Some(call) = recall() {
        let _ = received(Address(call.socket), ctx.ret(), call.flags as u32);
    }
    0
}

#[inline(always)]
fn remember(ctx: &ProbeContext, flags: u64) -> Option<()> {
    let workload = watched_workload(config()?, Typed::current())?;
    let call = NetCall {
        socket: ctx.arg(0)?,
        flags,
    };
    // An entry that is still there belongs to a call whose return was not seen.
    if NET_CALLS
        .insert(bpf_get_current_pid_tgid(), call, 0)
        .is_err()
    {
        lost(workload, LOSS_STATE_MAP);
    }
    Some(())
}

#[inline(always)]
fn recall() -> Option<NetCall> {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: only this thread writes and removes its entry, and it is here.
    let call = *unsafe { NET_CALLS.get(thread) }?;
    let _ = NET_CALLS.remove(thread);
    Some(call)
}

#[inline(always)]
fn sent(socket: impl Memory, result: i32) -> Option<()> {
    if result <= 0 || !is_tcp(socket)? {
        return None;
    }
    let config = config()?;
    let who = watched(config, Typed::current())?;
    if wanted(config, Kind::SampleNet)
        && let Some(counters) = slot(&NET, &who.key(), who.workload)
    {
        counters.sends += 1;
        counters.sent_bytes += result as u64;
    }
    inference::sent(config, &who, socket.address())
}

#[inline(always)]
fn received(socket: impl Memory, result: i32, flags: u32) -> Option<()> {
    if result <= 0 || flags as u64 & (MSG_PEEK | MSG_ERRQUEUE) != 0 || !is_tcp(socket)? {
        return None;
    }
    let config = config()?;
    let who = watched(config, Typed::current())?;
    if wanted(config, Kind::SampleNet)
        && let Some(counters) = slot(&NET, &who.key(), who.workload)
    {
        counters.receives += 1;
        counters.received_bytes += result as u64;
    }
    inference::received(config, &who, socket.address())
}

/// Whether it is a TCP socket. At most two reads, cheaper than the filter.
#[inline(always)]
pub fn is_tcp(socket: impl Memory) -> Option<bool> {
    if socket.read::<u16>(net_offset!(sk_protocol))? != IPPROTO_TCP {
        return Some(false);
    }
    let family: u16 = socket.read(net_offset!(sk_family))?;
    Some(family == AF_INET || family == AF_INET6)
}
