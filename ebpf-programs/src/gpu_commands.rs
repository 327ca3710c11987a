//! Driver calls by command, and how far each was over its command's baseline.
//!
//! The latencies of all processes on the host make the baseline, watched or not. Only calls that
//! succeeded have a say in it and give a command its name: refused calls with made-up commands
//! cost nobody anything.

use crate::{
    emit::{BPF_NOEXIST, add, lost, slot},
    filter::Who,
    tables::{GPU_COMMANDS, ON_DEMAND},
};
use aya_ebpf::{macros::map, maps::HashMap};
use palisade_abi::{
    GpuCommandCounters, GpuCommandKey, InFlight, LOSS_COUNTER_MAP, LatencyHistogram,
    UNKNOWN_COMMAND, command_key, command_of, latency_bucket,
};

/// Latencies by (class, command), over all processes and CPUs. The agent forgets old ones.
#[map]
static LATENCIES: HashMap<u32, LatencyHistogram> = HashMap::with_max_entries(512, ON_DEMAND);

/// Baselines by (class, command), nanoseconds. Written by the agent.
#[map]
static BASELINES: HashMap<u32, u64> = HashMap::with_max_entries(512, ON_DEMAND);

/// What a new entry of [`LATENCIES`] holds; too large for a program's stack.
#[map]
static NO_LATENCIES: aya_ebpf::maps::Array<LatencyHistogram> =
    aya_ebpf::maps::Array::with_max_entries(1, 0);

/// The command of a call that returned, by which it is counted; its latency joins the host's.
#[inline(always)]
pub fn learn(call: &InFlight, latency_ns: u64, errno: u16) -> u16 {
    let command = command_of(call.command);
    let key = command_key(call.class, command);
    let known = LATENCIES.get_ptr_mut(key);
    if errno != 0 {
        return if known.is_some() {
            command
        } else {
            UNKNOWN_COMMAND
        };
    }
    let Some(histogram) = known.or_else(|| make(key)) else {
        lost(call.workload, LOSS_COUNTER_MAP);
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
fn make(key: u32) -> Option<*mut LatencyHistogram> {
    let nothing = NO_LATENCIES.get(0)?;
    let _ = LATENCIES.insert(key, nothing, BPF_NOEXIST);
    LATENCIES.get_ptr_mut(key)
}

/// Counts a watched process's call.
#[inline(always)]
pub fn count(who: &Who, class: u32, command: u16, latency_ns: u64) {
    let key = GpuCommandKey {
        start_ns: who.start_ns,
        workload: who.workload,
        pid: who.pid,
        command,
        class: class as u16,
    };
    let Some(counters): Option<&mut GpuCommandCounters> = slot(&GPU_COMMANDS, &key, who.workload)
    else {
        return;
    };
    counters.calls += 1;
    counters.latency_ns += latency_ns;
    // SAFETY: an aligned word, which the agent may replace at any time.
    if let Some(baseline) = unsafe { BASELINES.get(command_key(class, command)) } {
        counters.excess_ns += latency_ns.saturating_sub(*baseline);
    }
}
