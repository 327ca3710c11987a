//! Records into the ring buffer, counts into the per-CPU maps, losses into their own.

use crate::{
    filter::Who,
    kernel::File,
    path,
    tables::{ADDED, COUNTERS, EVENTS, LAST_WAKE, LOSSES, NOTHING},
};
use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns},
    maps::PerCpuHashMap,
};
use palisade_abi::{
    Body, CounterFamily, Counters, CpuLosses, FilePath, HISTOGRAM_BUCKETS, Header,
    LOSS_COUNTER_MAP, LOSS_RING_BUFFER, MAX_COUNTERS_BYTES, PATH_SLOTS, QUIET_NS, RECORD_BYTES,
    Record,
};

/// Only insert; an entry that is there stays as it is.
pub const BPF_NOEXIST: u64 = 1;

/// Do not wake whoever waits for the ring buffer (`BPF_RB_NO_WAKEUP`).
const QUIETLY: u64 = 1;
/// Wake whoever waits, whether it has read all or not (`BPF_RB_FORCE_WAKEUP`).
const LOUDLY: u64 = 2;

/// How to submit a record. Waking a thread costs microseconds, so a record that follows a wake-up
/// within [`QUIET_NS`] comes without one: the agent looks again by itself after that time, and
/// only sleeps for longer when it finds nothing.
#[inline(always)]
fn wake_up(time_ns: u64) -> u64 {
    let Some(slot) = LAST_WAKE.get_ptr_mut(0) else {
        return LOUDLY;
    };
    // SAFETY (both): an aligned word of a map value. CPUs that race for it may wake twice.
    let last = unsafe { core::ptr::read_volatile(slot) };
    // Signed: another CPU's wake-up may be the later one.
    if (time_ns.wrapping_sub(last) as i64) < QUIET_NS as i64 {
        return QUIETLY;
    }
    unsafe { core::ptr::write_volatile(slot, time_ns) };
    LOUDLY
}

/// `CLOCK_BOOTTIME`, nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

#[inline(always)]
fn header(who: &Who, time_ns: u64, kind: u16, flags: u16) -> Header {
    Header {
        time_ns,
        workload: who.workload,
        start_ns: who.start_ns,
        pid: who.pid,
        tid: who.tid,
        kind,
        flags,
        // SAFETY: the helper has no preconditions.
        cpu: unsafe { bpf_get_smp_processor_id() },
    }
}

/// Sends one record.
#[inline(always)]
pub fn record<B: Body>(who: &Who, time_ns: u64, kind: u16, flags: u16, body: B) {
    let Some(mut entry) = EVENTS.reserve::<Record>(0) else {
        lost(who.workload, LOSS_RING_BUFFER);
        return;
    };
    entry.write(Record {
        header: header(who, time_ns, kind, flags),
        body: bytemuck::cast(body),
    });
    entry.submit(wake_up(time_ns));
}

#[repr(C)]
struct WithPath {
    record: Record,
    path: FilePath,
}
const _: () = assert!(size_of::<WithPath>() == PATH_SLOTS * RECORD_BYTES);

/// Sends one record with the path of a file behind it; whether there was room.
#[inline(always)]
pub fn record_with_path<B: Body>(who: &Who, time_ns: u64, kind: u16, body: B, file: File) -> bool {
    let Some(mut entry) = EVENTS.reserve::<WithPath>(0) else {
        lost(who.workload, LOSS_RING_BUFFER);
        return false;
    };
    let slots = entry.as_mut_ptr();
    // SAFETY: the entry is reserved, aligned to 8 and as large as `WithPath`.
    unsafe {
        (&raw mut (*slots).record).write(Record {
            header: header(who, time_ns, kind, 0),
            body: bytemuck::cast(body),
        });
        path::walk(file, &raw mut (*slots).path);
    }
    entry.submit(wake_up(time_ns));
    true
}

/// The process's counters on this CPU; makes the entry if there is none.
#[inline(always)]
pub fn counters(who: &Who) -> Option<&'static mut Counters> {
    slot(&COUNTERS, &who.key(), who.workload)
}

/// This CPU's value of a key that belongs to `workload`; makes the entry if there is none.
#[inline(always)]
pub fn slot<K, V: CounterFamily>(
    map: &PerCpuHashMap<K, V>,
    key: &K,
    workload: u64,
) -> Option<&'static mut V> {
    let found = map.get_ptr_mut(key).or_else(|| {
        if map.insert(key, nothing::<V>()?, BPF_NOEXIST).is_ok() {
            added::<V>();
        }
        map.get_ptr_mut(key)
    });
    value_or_loss(found, workload)
}

/// What a new entry of counters holds. From a map: zeroed on a program's stack, byte by byte, it would cost
/// as much to verify as all the rest of a program.
#[inline(always)]
pub fn nothing<V: bytemuck::Zeroable>() -> Option<&'static V> {
    const { assert!(size_of::<V>() <= MAX_COUNTERS_BYTES && align_of::<V>() <= align_of::<u64>()) };
    let nothing = NOTHING.get_ptr(0)?;
    // SAFETY: no more than the entry is read, aligned; a `V` may be zeros; programs may not write
    // to this map, and the agent does not.
    Some(unsafe { &*nothing.cast::<V>() })
}

/// What a look-up found on this CPU; nothing is one loss for a workload.
#[inline(always)]
pub fn value_or_loss<V>(found: Option<*mut V>, workload: u64) -> Option<&'static mut V> {
    match found {
        // SAFETY: the value belongs to this CPU. A program that interrupts this one here could
        // at worst lose one addition of a statistic.
        Some(value) => Some(unsafe { &mut *value }),
        None => {
            lost(workload, LOSS_COUNTER_MAP);
            None
        }
    }
}

/// Tells the agent that there is something to read, before anything is counted in the new entry.
#[inline(always)]
pub fn added<V: CounterFamily>() {
    if let Some(all) = ADDED.get_ptr_mut(0) {
        // SAFETY: the index is a constant, which `Added` has room for.
        add(unsafe { &raw mut (*all).counts[V::FAMILY] }, 1);
    }
}

/// Bucket of a time in nanoseconds; see `palisade_abi::HISTOGRAM_BUCKETS`. By halves: BPF has no
/// instruction that counts leading zeros, and the verifier follows this one to constants.
#[inline(always)]
pub fn bucket(ns: u64) -> usize {
    let mut rest = ns / 1000;
    if rest >> (HISTOGRAM_BUCKETS - 2) != 0 {
        return HISTOGRAM_BUCKETS - 1;
    }
    let mut bits = 0;
    if rest >> 16 != 0 {
        rest >>= 16;
        bits += 16;
    }
    if rest >> 8 != 0 {
        rest >>= 8;
        bits += 8;
    }
    if rest >> 4 != 0 {
        rest >>= 4;
        bits += 4;
    }
    if rest >> 2 != 0 {
        rest >>= 2;
        bits += 2;
    }
    if rest >> 1 != 0 {
        rest >>= 1;
        bits += 1;
    }
    if rest != 0 { bits + 1 } else { bits }
}

/// Adds to a word that other programs or CPUs add to at the same time.
#[inline(always)]
pub fn add(word: *mut u64, more: u64) {
    // SAFETY: `word` points into a map value, which the verifier checks; the kernel has had the
    // instruction from the beginning, and the target's Rust lacks it.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({word} + 0) += {more}",
            word = in(reg) word,
            more = in(reg) more,
        );
    }
}

/// Counts one loss for a workload.
#[inline(always)]
pub fn lost(workload: u64, source: u32) {
    let found = LOSSES.get_ptr_mut(workload).or_else(|| {
        if let Some(nothing) = nothing::<CpuLosses>() {
            let _ = LOSSES.insert(workload, nothing, BPF_NOEXIST);
        }
        LOSSES
            .get_ptr_mut(workload)
            .or_else(|| LOSSES.get_ptr_mut(0))
    });
    if let Some(losses) = found {
        // SAFETY: the index is a constant below 4 at every caller.
        let count = unsafe { &raw mut (*losses).counts[source as usize & 3] };
        // Programs of several kinds share the word, and some of them can be preempted.
        add(count, 1);
    }
}
