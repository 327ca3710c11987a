//! Memory: page faults, stalls in reclaim, victims of the out-of-memory killer.
//!
//! Invariant: what is counted belongs to the task that runs; only a victim is somebody else.

use crate::{
    emit::{BPF_NOEXIST, lost, now, record, slot},
    filter::{config, wanted},
    kernel::{Address, Task},
    sched::cpu_offset,
    tables::{FAULTS, RECLAIM},
    typed::{Memory, Typed, watched, watched_workload, workload},
};
use aya_ebpf::{
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::{HashMap, LruHashMap},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use palisade_abi::{Config, Kind, LOSS_STATE_MAP, OomCause, OomVictim, kind};

/// When the reclaim under way began, `CLOCK_BOOTTIME` nanoseconds, by thread and [`Reclaim`].
#[map]
pub static RECLAIMING: HashMap<u64, u64> = HashMap::with_max_entries(4096, 0);

/// Victims whose end will be told, by thread id. Only where the hook does not have the task.
#[map]
pub static VICTIMS: LruHashMap<u32, OomCause> = LruHashMap::with_max_entries(256, 0);

/// Victims that were told, by pid and start: the kernel may mark a second thread.
#[map]
pub static TOLD_VICTIMS: LruHashMap<[u64; 2], u32> = LruHashMap::with_max_entries(256, 0);

/// Why memory is reclaimed.
#[derive(Clone, Copy, PartialEq)]
enum Reclaim {
    /// The host is short of memory.
    Direct = 0,
    /// A cgroup is at its limit.
    Group = 1,
}

/// Both forms of a program: the task's type is known to the verifier in both.
macro_rules! both {
    ($point:literal, $btf:ident, $raw:ident, $run:expr) => {
        #[doc = concat!("`", $point, "`, BTF tracepoint")]
        #[btf_tracepoint(function = $point)]
        pub fn $btf(_ctx: BtfTracePointContext) -> i32 {
            let _ = $run;
            0
        }

        #[doc = concat!("`", $point, "`, raw tracepoint")]
        #[raw_tracepoint(tracepoint = $point)]
        pub fn $raw(_ctx: RawTracePointContext) -> i32 {
            let _ = $run;
            0
        }
    };
}

both!("page_fault_user", fault_user, fault_user_raw, fault(true));
both!(
    "page_fault_kernel",
    fault_kernel,
    fault_kernel_raw,
    fault(false)
);
both!(
    "mm_vmscan_direct_reclaim_begin",
    direct_begin,
    direct_begin_raw,
    begins(Reclaim::Direct)
);
both!(
    "mm_vmscan_direct_reclaim_end",
    direct_end,
    direct_end_raw,
    ends(Reclaim::Direct)
);
both!(
    "mm_vmscan_memcg_reclaim_begin",
    group_begin,
    group_begin_raw,
    begins(Reclaim::Group)
);
both!(
    "mm_vmscan_memcg_reclaim_end",
    group_end,
    group_end_raw,
    ends(Reclaim::Group)
);

/// `mark_victim`, BTF tracepoint: (task, uid) or (thread id)
#[btf_tracepoint(function = "mark_victim")]
pub fn oom_victim(ctx: BtfTracePointContext) -> i32 {
    // The verifier knows the frozen switch and never looks at the arm that is not taken.
    let _ = if cpu_offset!(victim_is_task) == 1 {
        tell(Typed(ctx.arg(0)), cause())
    } else {
        remember(ctx.arg(0))
    };
    0
}

/// `mark_victim`, raw tracepoint
#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn oom_victim_raw(ctx: RawTracePointContext) -> i32 {
    let _ = if cpu_offset!(victim_is_task) == 1 {
        tell(Address(ctx.arg(0)), cause())
    } else {
        remember(ctx.arg(0))
    };
    0
}

#[inline(always)]
fn fault(user: bool) -> Option<()> {
    let who = watched(config()?, Typed::current())?;
    let counters = slot(&FAULTS, &who.key(), who.workload)?;
    if user {
        counters.user += 1;
    } else {
        counters.kernel += 1;
    }
    Some(())
}

#[inline(always)]
fn reclaim_key(task: Typed, why: Reclaim) -> Option<u64> {
    let tid: u32 = task.read(crate::tables::offset!(task_pid))?;
    Some((why as u64) << 32 | tid as u64)
}

#[inline(always)]
fn begins(why: Reclaim) -> Option<()> {
    let task = Typed::current();
    let workload = watched_workload(config()?, task)?;
    if RECLAIMING
        .insert(reclaim_key(task, why)?, now(), 0)
        .is_err()
    {
        lost(workload, LOSS_STATE_MAP);
    }
    Some(())
}

#[inline(always)]
fn ends(why: Reclaim) -> Option<()> {
    let task = Typed::current();
    let key = reclaim_key(task, why)?;
    // SAFETY: only this thread writes and removes its entry, and it is here.
    let began = *unsafe { RECLAIMING.get(key) }?;
    let _ = RECLAIMING.remove(key);
    let who = watched(config()?, task)?;
    let counters = slot(&RECLAIM, &who.key(), who.workload)?;
    let stalled_ns = now().saturating_sub(began);
    if why == Reclaim::Direct {
        counters.direct += 1;
        counters.direct_ns += stalled_ns;
    } else {
        counters.memcg += 1;
        counters.memcg_ns += stalled_ns;
    }
    Some(())
}

/// Whose allocation failed: the task that runs.
#[inline(always)]
fn cause() -> OomCause {
    let task = Typed::current();
    OomCause {
        workload: workload(task).unwrap_or(0),
        pid: task.read(crate::tables::offset!(task_tgid)).unwrap_or(0),
        pad: 0,
    }
}

#[inline(always)]
fn remember(tid: u32) -> Option<()> {
    VICTIMS.insert(tid, cause(), 0).ok()
}

#[inline(always)]
fn tell<M: Memory>(victim: M, cause: OomCause) -> Option<()> {
    let who = watched(config()?, victim)?;
    TOLD_VICTIMS
        .insert([who.start_ns, who.pid as u64], 1, BPF_NOEXIST)
        .ok()?;
    let body = OomVictim {
        by_workload: cause.workload,
        by_pid: cause.pid,
        pad: 0,
        reserved: 0,
    };
    record(&who, now(), kind::OOM_VICTIM, 0, body);
    Some(())
}

/// Tells a victim at its end, where its mark did not have the task.
#[inline(always)]
pub fn victim_exits(config: &Config, task: Task, tid: u32) -> Option<()> {
    if cpu_offset!(victim_is_task) == 1 || !wanted(config, Kind::OomVictim) {
        return None;
    }
    // SAFETY: written once, when the thread was marked; removed here.
    let cause = *unsafe { VICTIMS.get(tid) }?;
    let _ = VICTIMS.remove(tid);
    tell(task.0, cause)
}
