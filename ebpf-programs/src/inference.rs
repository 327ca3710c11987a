//! Requests on server sockets, and whose segments were sent again.
//!
//! A socket is known by its address from its first transfer, or from its `connect`, to its end.
//! The address may be used again: the entry goes at every change of state that ends a connection
//! or begins one.
//!
//! A server's socket is one whose local port was bound before it was connected: an accepted one
//! hangs in its listener's bucket of ports. The kernel marks a bucket that `connect` filled by
//! itself with a negative `fastreuse`. A client that binds its port first is told apart if its
//! `connect` was seen.

use crate::{
    emit::{bucket, now, slot},
    filter::{Who, config, wanted},
    kernel::Address,
    net::{is_tcp, net_offset},
    quotas::slot_within,
    tables::{ENDED, HISTOGRAMS, NET},
    typed::{Typed, watched},
};
use aya_ebpf::{
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::LruHashMap,
    programs::{BtfTracePointContext, RawTracePointContext},
};
use palisade_abi::{
    Config, CountersKey, HistogramKey, Kind, QUOTA_HISTOGRAMS, SOCKET_ANSWERING, SOCKET_CLIENT,
    SOCKET_IDLE, SOCKET_RECEIVING, Socket,
};

const TCP_SYN_SENT: u32 = 2;
const TCP_SYN_RECV: u32 = 3;
const TCP_FIN_WAIT1: u32 = 4;
const TCP_CLOSE: u32 = 7;
const TCP_LAST_ACK: u32 = 9;

/// Kinds that tell of whole times.
const WHOLE_TIMES: u64 = Kind::SampleInference.bit() | Kind::SampleCompleted.bit();
const INFERENCES: u64 = WHOLE_TIMES | Kind::SampleFirstByte.bit();

/// Sockets of watched processes by address. Where there are more, the one that was not used for
/// the longest is forgotten, and with it the request under way on it. Resized by the agent.
#[map]
pub static SOCKETS: LruHashMap<u64, Socket> = LruHashMap::with_max_entries(16_384, 0);

/// `inet_sock_set_state`, BTF tracepoint: (socket, old state, new state)
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn net_state(ctx: BtfTracePointContext) -> i32 {
    let _ = state_changed(Address(ctx.arg(0)), ctx.arg(2));
    0
}

/// `inet_sock_set_state`, raw tracepoint
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn net_state_raw(ctx: RawTracePointContext) -> i32 {
    let _ = state_changed(Address(ctx.arg(0)), ctx.arg(2));
    0
}

/// `tcp_retransmit_skb`, BTF tracepoint: (socket, segment[, error])
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn net_retransmit(ctx: BtfTracePointContext) -> i32 {
    // The verifier knows the frozen switch and never looks at the arm that is not taken.
    if net_offset!(retransmit_has_error) == 1 && ctx.arg::<i32>(2) != 0 {
        return 0;
    }
    let _ = retransmitted(Address(ctx.arg(0)), Address(ctx.arg(1)));
    0
}

/// `tcp_retransmit_skb`, raw tracepoint
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn net_retransmit_raw(ctx: RawTracePointContext) -> i32 {
    if net_offset!(retransmit_has_error) == 1 && ctx.arg::<i32>(2) != 0 {
        return 0;
    }
    let _ = retransmitted(Address(ctx.arg(0)), Address(ctx.arg(1)));
    0
}

/// Bytes were received.
#[inline(always)]
pub fn received(config: &Config, who: &Who, address: Address) -> Option<()> {
    if config.kinds & INFERENCES == 0 {
        return None;
    }
    let socket = known(who, address)?;
    let time_ns = now();
    match socket.phase {
        SOCKET_CLIENT => return Some(()),
        SOCKET_RECEIVING => {}
        phase => {
            if phase == SOCKET_ANSWERING {
                answered(config, socket);
            }
            socket.first_received_ns = time_ns;
            socket.phase = SOCKET_RECEIVING;
        }
    }
    socket.last_received_ns = time_ns;
    Some(())
}

/// Bytes were sent.
#[inline(always)]
pub fn sent(config: &Config, who: &Who, address: Address) -> Option<()> {
    if config.kinds & INFERENCES == 0 {
        return None;
    }
    let socket = known(who, address)?;
    if socket.phase == SOCKET_CLIENT {
        return Some(());
    }
    let time_ns = now();
    socket.last_sent_ns = time_ns;
    if socket.phase != SOCKET_RECEIVING {
        return Some(());
    }
    socket.phase = SOCKET_ANSWERING;
    let first_byte_ns = time_ns.saturating_sub(socket.last_received_ns);
    if wanted(config, Kind::SampleInference)
        && let Some(counters) = slot(&NET, &who.key(), who.workload)
    {
        counters.requests += 1;
        counters.first_byte_ns += first_byte_ns;
    }
    if wanted(config, Kind::SampleFirstByte) {
        let key = HistogramKey {
            start_ns: who.start_ns,
            workload: who.workload,
            pid: who.pid,
            kind: Kind::SampleFirstByte as u32,
        };
        let histogram = slot_within(&HISTOGRAMS, &key, who, QUOTA_HISTOGRAMS)?;
        if let Some(count) = histogram.counts.get_mut(bucket(first_byte_ns)) {
            *count += 1;
        }
    }
    Some(())
}

/// The socket's entry, made if there is none, with the process as its owner.
#[inline(always)]
fn known(who: &Who, address: Address) -> Option<&'static mut Socket> {
    let found = SOCKETS.get_ptr_mut(address.0).or_else(|| {
        let phase = if has_bound_port(address)? {
            SOCKET_IDLE
        } else {
            SOCKET_CLIENT
        };
        let _ = SOCKETS.insert(address.0, owned(who, phase), 0);
        SOCKETS.get_ptr_mut(address.0)
    })?;
    // SAFETY: threads that use one socket at the same time may change its entry at the same
    // time. Its members are single words that make sense in every combination: at worst one
    // request of such a socket is missed or timed from its neighbour's bytes.
    let socket = unsafe { &mut *found };
    if socket.pid != who.pid || socket.workload != who.workload || socket.start_ns != who.start_ns {
        (socket.pid, socket.start_ns, socket.workload) = (who.pid, who.start_ns, who.workload);
    }
    Some(socket)
}

#[inline(always)]
fn owned(who: &Who, phase: u32) -> Socket {
    Socket {
        workload: who.workload,
        start_ns: who.start_ns,
        pid: who.pid,
        phase,
        ..Socket::default()
    }
}

/// Whether the local port was bound, by the socket itself or by its listener.
#[inline(always)]
fn has_bound_port(address: Address) -> Option<bool> {
    let bucket = address.follow(net_offset!(bind_hash))?;
    Some(bucket.read::<i8>(net_offset!(fastreuse))? >= 0)
}

#[inline(always)]
fn state_changed(address: Address, state: u32) -> Option<()> {
    let config = config()?;
    let found = SOCKETS.get_ptr_mut(address.0);
    if let Some(found) = found
        && matches!(state, TCP_FIN_WAIT1 | TCP_LAST_ACK | TCP_CLOSE)
    {
        // SAFETY: as in `known`.
        let socket = unsafe { &mut *found };
        if socket.phase == SOCKET_ANSWERING {
            answered(config, socket);
            socket.phase = SOCKET_IDLE;
        }
    }
    if found.is_some() && matches!(state, TCP_SYN_SENT | TCP_SYN_RECV | TCP_CLOSE) {
        let _ = SOCKETS.remove(address.0);
    }
    if state == TCP_SYN_SENT && is_tcp(address)? {
        let who = watched(config, Typed::current())?;
        let _ = SOCKETS.insert(address.0, owned(&who, SOCKET_CLIENT), 0);
    }
    Some(())
}

/// The answer under way is over.
#[inline(always)]
fn answered(config: &Config, socket: &Socket) {
    if config.kinds & WHOLE_TIMES != 0
        && let Some((key, workload)) = living_owner(socket)
        && let Some(counters) = slot(&NET, &key, workload)
    {
        counters.whole_ns += socket.last_sent_ns.saturating_sub(socket.first_received_ns);
        counters.completed += 1;
    }
}

#[inline(always)]
fn retransmitted(address: Address, segment: Address) -> Option<()> {
    // SAFETY: as in `known`.
    let socket = unsafe { &*SOCKETS.get_ptr(address.0)? };
    if !wanted(config()?, Kind::SampleInference) {
        return None;
    }
    let (key, workload) = living_owner(socket)?;
    let segments: u16 = segment.read(net_offset!(skb_segments))?;
    let counters = slot(&NET, &key, workload)?;
    counters.retransmits += segments.max(1) as u64;
    Some(())
}

/// Whose counters take what happens on the socket, unless that process is over: a connection may
/// outlive it, and nobody would remove the counters again.
#[inline(always)]
fn living_owner(socket: &Socket) -> Option<(CountersKey, u64)> {
    if ENDED
        .get_ptr([socket.start_ns, socket.pid as u64])
        .is_some()
    {
        return None;
    }
    let key = CountersKey {
        start_ns: socket.start_ns,
        workload: socket.workload,
        pid: socket.pid,
        pad: 0,
    };
    Some((key, socket.workload))
}
