//! Scheduling: switches, time on and off the CPU, waits for it, migrations. Counters only.
//!
//! Invariants:
//! - These hooks fire for every task of the host, with a run queue's lock held: the filter comes
//!   first, and nothing here sends a record.
//! - The times are the scheduler's own (`sched_info`, `sum_exec_runtime`): what is told of a thread
//!   is the difference since it left a CPU before. So a switch is all that has to be seen, and
//!   nothing happens at a wake-up.
//! - An entry of `TURNS` is only touched while its thread leaves a CPU, or before its first turn. The
//!   next CPU takes a thread after the one before has left this hook, so no two touch it at once.
//! - The kernel counts a switch (`nvcsw`, `nivcsw`) right before this hook, from 6.1 to 7.x. So a thread
//!   whose two counters have grown by one was seen at its switch before; if by more, it was out of
//!   the scope meanwhile, which is no loss, or the kernel skipped a run, which it counts itself.

use crate::{
    emit::{bucket, counters, lost},
    filter::{Who, config, wanted},
    kernel::Address,
    quotas::slot_within,
    tables::{HISTOGRAMS, ON_DEMAND, offset},
    typed::{Memory, Typed, watched},
};
use aya_ebpf::{
    Global,
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::{Array, HashMap},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use palisade_abi::{
    Config, Counters, CpuOffsets, HistogramKey, Kind, LOSS_STATE_MAP, MAX_CPUS, QUOTA_HISTOGRAMS,
    Turn,
};

/// Bit of a task's state at its last switch.
const TASK_DEAD: u32 = 0x80;

/// Threads of watched workloads, by the address of their `task_struct`.
#[map]
pub static TURNS: HashMap<u64, Turn> = HashMap::with_max_entries(16_384, ON_DEMAND);

/// NUMA node of each CPU. Written by the agent.
#[map]
pub static NODES: Array<u32> = Array::with_max_entries(MAX_CPUS, 0);

/// Offsets of kernel structure members.
#[unsafe(no_mangle)]
pub static OFFSETS_CPU: Global<CpuOffsets> = Global::new(CpuOffsets {
    task_ran: 0,
    task_delayed: 0,
    task_turns: 0,
    task_arrival: 0,
    task_voluntary: 0,
    task_involuntary: 0,
    task_cfs_rq: 0,
    cfs_rq_rq: 0,
    rq_clock: 0,
    task_cpu: 0,
    victim_is_task: 0,
});

/// One member of [`OFFSETS_CPU`], as `offset!` reads those of `OFFSETS`.
macro_rules! cpu_offset {
    ($member:ident) => {{
        let table = (&raw const $crate::sched::OFFSETS_CPU).cast::<palisade_abi::CpuOffsets>();
        // SAFETY: `Global` is transparent over an initialised `CpuOffsets`; the volatile read
        // keeps the compiler from using the zeros above instead of what the agent put there.
        unsafe { core::ptr::read_volatile(&raw const (*table).$member) as usize }
    }};
}
pub(crate) use cpu_offset;

/// `sched_switch`, BTF tracepoint: (preempt, previous, next, state of previous)
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let _ = left(ctx.arg::<u64>(0) & 1, Typed(ctx.arg(1)), ctx.arg(3));
    0
}

/// `sched_switch`, raw tracepoint
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn sched_switch_raw(ctx: RawTracePointContext) -> i32 {
    let _ = left(ctx.arg::<u64>(0) & 1, Address(ctx.arg(1)), ctx.arg(3));
    0
}

/// `sched_wakeup_new`, BTF tracepoint: (task)
#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    let _ = born(Typed(ctx.arg(0)));
    0
}

/// `sched_wakeup_new`, raw tracepoint
#[raw_tracepoint(tracepoint = "sched_wakeup_new")]
pub fn sched_wakeup_new_raw(ctx: RawTracePointContext) -> i32 {
    let _ = born(Address(ctx.arg(0)));
    0
}

/// `sched_migrate_task`, BTF tracepoint: (task, CPU)
#[btf_tracepoint(function = "sched_migrate_task")]
pub fn sched_migrate(ctx: BtfTracePointContext) -> i32 {
    let _ = migrate(Typed(ctx.arg(0)), ctx.arg(1));
    0
}

/// `sched_migrate_task`, raw tracepoint
#[raw_tracepoint(tracepoint = "sched_migrate_task")]
pub fn sched_migrate_raw(ctx: RawTracePointContext) -> i32 {
    let _ = migrate(Address(ctx.arg(0)), ctx.arg(1));
    0
}

/// A task left the CPU.
#[inline(always)]
fn left<M: Memory>(preempt: u64, task: M, state: u32) -> Option<()> {
    let counted = count(preempt, task, state);
    if state & TASK_DEAD != 0 {
        // Also of a thread that is not watched any more.
        let _ = TURNS.remove(task.address().0);
    }
    counted
}

#[inline(always)]
fn count<M: Memory>(preempt: u64, task: M, state: u32) -> Option<()> {
    let config = config()?;
    let who = watched(config, task)?;
    let counters = counters(&who)?;
    let mut now = Turn {
        start_ns: task.read(offset!(task_start))?,
        ran_ns: task.read(cpu_offset!(task_ran))?,
        delayed_ns: task.read(cpu_offset!(task_delayed))?,
        turns: task.read(cpu_offset!(task_turns))?,
        voluntary: task.read(cpu_offset!(task_voluntary))?,
        involuntary: task.read(cpu_offset!(task_involuntary))?,
        slept_ns: 0,
    };
    let key = task.address().0;
    // SAFETY: only this thread's switches touch the entry, and it is in one.
    let known = TURNS.get_ptr_mut(key).map(|entry| unsafe { &mut *entry });
    let mut voluntary = preempt == 0 && state != 0;
    if let Some(before) = &known
        && before.start_ns == now.start_ns
    {
        voluntary = was_voluntary(before, &now, voluntary);
        turn_ended(config, &who, counters, task, before, &now);
    }
    if voluntary {
        counters.voluntary += 1;
    } else {
        counters.involuntary += 1;
    }
    if voluntary && wanted(config, Kind::SampleCpu) {
        now.slept_ns = scheduler_clock(task).unwrap_or(0);
    }
    if let Some(entry) = known {
        *entry = now;
    } else if state & TASK_DEAD == 0 && TURNS.insert(key, now, 0).is_err() {
        lost(who.workload, LOSS_STATE_MAP);
    }
    Some(())
}

/// Whether the kernel counted this switch as voluntary. It does so for a thread that meant to sleep
/// and had a signal pending, too, whose state says (from Linux 6.15 on) that it only made room.
/// `guess` decides where both counters have grown since the switch seen before.
#[inline(always)]
fn was_voluntary(before: &Turn, now: &Turn, guess: bool) -> bool {
    if now.voluntary == before.voluntary {
        false
    } else if now.involuntary == before.involuntary {
        true
    } else {
        guess
    }
}

#[inline(always)]
fn turn_ended<M: Memory>(
    config: &Config,
    who: &Who,
    counters: &mut Counters,
    task: M,
    before: &Turn,
    now: &Turn,
) {
    let voluntary = now.voluntary.wrapping_sub(before.voluntary);
    let involuntary = now.involuntary.wrapping_sub(before.involuntary);
    if voluntary.wrapping_add(involuntary) != 1 {
        // Whose were the switches in between, and what they took, is nobody's to say.
        return;
    }
    // The scheduler takes no note of the wait of a thread that was preempted on its way to sleep.
    let waited = now.turns != before.turns;
    let delayed_ns = now.delayed_ns.wrapping_sub(before.delayed_ns);
    counters.on_ns += now.ran_ns.wrapping_sub(before.ran_ns);
    counters.runq_waits += u64::from(waited);
    counters.runq_ns += delayed_ns;
    if !waited {
        return;
    }
    if before.slept_ns != 0
        && let Some(arrival) = task.read::<u64>(cpu_offset!(task_arrival))
    {
        counters.off_waits += 1;
        counters.off_ns += arrival
            .saturating_sub(before.slept_ns)
            .saturating_sub(delayed_ns);
    }
    if wanted(config, Kind::SampleRunq) {
        let key = HistogramKey {
            start_ns: who.start_ns,
            workload: who.workload,
            pid: who.pid,
            kind: Kind::SampleRunq as u32,
        };
        if let Some(histogram) = slot_within(&HISTOGRAMS, &key, who, QUOTA_HISTOGRAMS)
            && let Some(count) = histogram.counts.get_mut(bucket(delayed_ns))
        {
            *count += 1;
        }
    }
}

/// The clock by which the scheduler takes its times, as of this switch.
#[inline(always)]
fn scheduler_clock<M: Memory>(task: M) -> Option<u64> {
    task.follow(cpu_offset!(task_cfs_rq))?
        .follow(cpu_offset!(cfs_rq_rq))?
        .read(cpu_offset!(rq_clock))
}

/// A new thread: it has had no turn yet.
#[inline(always)]
fn born<M: Memory>(task: M) -> Option<()> {
    let who = watched(config()?, task)?;
    let turn = Turn {
        start_ns: task.read(offset!(task_start))?,
        ..Turn::default()
    };
    if TURNS.insert(task.address().0, turn, 0).is_err() {
        lost(who.workload, LOSS_STATE_MAP);
    }
    Some(())
}

/// A task is about to be moved to CPU `to`.
#[inline(always)]
fn migrate<M: Memory>(task: M, to: u32) -> Option<()> {
    let who = watched(config()?, task)?;
    let counters = counters(&who)?;
    counters.migrations += 1;
    let from: u32 = task.read(cpu_offset!(task_cpu))?;
    if NODES.get(from)? != NODES.get(to)? {
        counters.cross_node += 1;
    }
    Some(())
}
