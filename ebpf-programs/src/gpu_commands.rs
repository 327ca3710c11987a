//! Driver calls by command, and how far each was over its command's baseline.
//!
//! The latencies of all processes on the host make the baseline, watched or not. Only calls that
//! succeeded have a say in it and give a command its name: refused calls with made-up commands
//! cost nobody anything.

use crate::{
    emit::{BPF_NOEXIST, add, nothing},
    filter::Who,
    quotas::{Room, slot_within},
    tables::{GPU_COMMANDS, ON_DEMAND},
};
use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap},
};
use palisade_abi::{
    GpuCommandCounters, GpuCommandKey, InFlight, LatencyHistogram, QUOTA_COMMANDS, QUOTA_LATENCIES,
    UNKNOWN_COMMAND, command_key, command_of, latency_bucket,
};

/// Latencies by (class, command), over all processes and CPUs. The agent forgets old ones.
#[map]
static LATENCIES: HashMap<u32, LatencyHistogram> = HashMap::with_max_entries(512, ON_DEMAND);

/// Baselines by (class, command), nanoseconds. Written by the agent.
#[map]
static BASELINES: HashMap<u32, u64> = HashMap::with_max_entries(512, ON_DEMAND);

/// The only entry: when [`BASELINES`] were renewed last, `CLOCK_BOOTTIME` nanoseconds.
#[map]
static BASELINES_AT: Array<u64> = Array::with_max_entries(1, 0);

/// The command of a call that returned, by which it is counted; its latency joins the host's. Without
/// room for one more command, or beyond the process's quota, it has no name.
#[inline(always)]
pub fn learn(call: &InFlight, latency_ns: u64, errno: u16) -> u16 {
    let command = command_of(call.command, call.command_bits);
    let key = command_key(call.class, command);
    let known = LATENCIES.get_ptr_mut(key);
    if errno != 0 {
        return if known.is_some() {
            command
        } else {
            UNKNOWN_COMMAND
        };
    }
    let Some(histogram) = known.or_else(|| make(call, key)) else {
        // The call is counted all the same.
        return UNKNOWN_COMMAND;
    };
    // SAFETY: the bucket is below the number of buckets; the verifier sees it, too.
    let count = unsafe {
        (&raw mut (*histogram).counts)
            .cast::<u64>()
            .add(latency_bucket(latency_ns))
    };
    add(count, 1);
    command
}

#[inline(always)]
fn make(call: &InFlight, key: u32) -> Option<*mut LatencyHistogram> {
    let room = Room::of(call.pid, call.start_ns, QUOTA_LATENCIES)?;
    if LATENCIES
        .insert(key, nothing::<LatencyHistogram>()?, BPF_NOEXIST)
        .is_ok()
    {
        room.take();
    }
    LATENCIES.get_ptr_mut(key)
}

/// Counts a watched process's call.
#[inline(always)]
pub fn count(who: &Who, call: &mut InFlight, command: u16, latency_ns: u64) {
    let key = GpuCommandKey {
        start_ns: who.start_ns,
        workload: who.workload,
        pid: who.pid,
        command,
        class: call.class as u16,
    };
    let Some(counters): Option<&mut GpuCommandCounters> =
        slot_within(&GPU_COMMANDS, &key, who, QUOTA_COMMANDS)
    else {
        return;
    };
    counters.calls += 1;
    counters.latency_ns += latency_ns;
    counters.excess_ns += latency_ns.saturating_sub(baseline(call, command));
}

/// The command's baseline, `u64::MAX` if it has none. A thread that repeats a command looks it up
/// once in the time for which baselines stay.
#[inline(always)]
fn baseline(call: &mut InFlight, command: u16) -> u64 {
    let key = command_key(call.class, command);
    let renewed = match BASELINES_AT.get_ptr(0) {
        // SAFETY: an aligned word of a map value, which the agent may change at any time.
        Some(at) => unsafe { core::ptr::read_volatile(at) },
        None => 0,
    };
    if call.baseline_of != key || call.baselines_at != renewed {
        call.baseline_of = key;
        call.baselines_at = renewed;
        // SAFETY: an aligned word, which the agent may replace at any time.
        call.baseline_ns = unsafe { BASELINES.get(key) }.copied().unwrap_or(u64::MAX);
    }
    call.baseline_ns
}
