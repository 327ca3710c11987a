//! Scheduling: switches, migrations, waits for a CPU. Counters only.
//!
//! These hooks fire for every task of the host, some of them with a run queue's lock held: the
//! filter comes first, and nothing here sends a record.

use crate::{
    emit::{counters, lost, now},
    filter::{Who, config, watched},
    kernel::{Address, Task},
    tables::{WAITING, offset},
};
use aya_ebpf::{
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use palisade_abi::{Config, LOSS_STATE_MAP, Waiting};

/// `sched_switch`, BTF tracepoint: (preempt, previous, next, state of previous)
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    // Before Linux 5.18 there is no fourth argument. The verifier knows the frozen switch and
    // never looks at the arm that is not taken.
    let state = if offset!(switch_has_state) == 1 {
        Some(ctx.arg::<u32>(3))
    } else {
        None
    };
    let _ = switch(
        ctx.arg::<u64>(0) & 1,
        task(ctx.arg(1)),
        task(ctx.arg(2)),
        state,
    );
    0
}

/// `sched_switch`, raw tracepoint
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn sched_switch_raw(ctx: RawTracePointContext) -> i32 {
    let state = if offset!(switch_has_state) == 1 {
        Some(ctx.arg::<u32>(3))
    } else {
        None
    };
    let _ = switch(
        ctx.arg::<u64>(0) & 1,
        task(ctx.arg(1)),
        task(ctx.arg(2)),
        state,
    );
    0
}

/// `sched_wakeup`, BTF tracepoint: (task)
#[btf_tracepoint(function = "sched_wakeup")]
pub fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    let _ = wakeup(task(ctx.arg(0)));
    0
}

/// `sched_wakeup`, raw tracepoint
#[raw_tracepoint(tracepoint = "sched_wakeup")]
pub fn sched_wakeup_raw(ctx: RawTracePointContext) -> i32 {
    let _ = wakeup(task(ctx.arg(0)));
    0
}

/// `sched_wakeup_new`, BTF tracepoint: (task)
#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    let _ = wakeup(task(ctx.arg(0)));
    0
}

/// `sched_wakeup_new`, raw tracepoint
#[raw_tracepoint(tracepoint = "sched_wakeup_new")]
pub fn sched_wakeup_new_raw(ctx: RawTracePointContext) -> i32 {
    let _ = wakeup(task(ctx.arg(0)));
    0
}

/// `sched_migrate_task`, BTF tracepoint: (task, CPU)
#[btf_tracepoint(function = "sched_migrate_task")]
pub fn sched_migrate(ctx: BtfTracePointContext) -> i32 {
    let _ = migrate(task(ctx.arg(0)));
    0
}

/// `sched_migrate_task`, raw tracepoint
#[raw_tracepoint(tracepoint = "sched_migrate_task")]
pub fn sched_migrate_raw(ctx: RawTracePointContext) -> i32 {
    let _ = migrate(task(ctx.arg(0)));
    0
}

#[inline(always)]
fn task(pointer: *const u8) -> Task {
    Task(Address(pointer as u64))
}

#[inline(always)]
fn switch(preempt: u64, previous: Task, next: Task, state: Option<u32>) -> Option<()> {
    let config = config()?;
    let _ = left(config, preempt, previous, state);
    came(config, next)
}

/// A task left the CPU. The kernel's own rule for `nvcsw` and `nivcsw`.
#[inline(always)]
fn left(config: &Config, preempt: u64, task: Task, state: Option<u32>) -> Option<()> {
    let who = watched(config, task)?;
    let state = match state {
        Some(state) => state,
        None => task.0.read(offset!(task_state))?,
    };
    let runnable = preempt != 0 || state == 0;
    if let Some(counters) = counters(&who) {
        if runnable {
            counters.involuntary += 1;
        } else {
            counters.voluntary += 1;
        }
    }
    if runnable {
        starts_waiting(&who);
    }
    // A task that goes to sleep may have an entry, and it stays: either the wake-up came while it
    // still ran, then the next one overwrites it; or, since Linux 6.12, the wake-up of a task with
    // a delayed dequeue overtook this hook, and the wait is real.
    Some(())
}

/// A task got the CPU.
#[inline(always)]
fn came(config: &Config, task: Task) -> Option<()> {
    let who = watched(config, task)?;
    // SAFETY: an entry is only changed under the lock of the task's run queue, which is held.
    let waiting = *unsafe { WAITING.get(who.tid) }?;
    let _ = WAITING.remove(who.tid);
    if waiting.workload != who.workload {
        return None;
    }
    let counters = counters(&who)?;
    counters.runq_waits += 1;
    counters.runq_ns += now().saturating_sub(waiting.since_ns);
    Some(())
}

#[inline(always)]
fn wakeup(task: Task) -> Option<()> {
    let who = watched(config()?, task)?;
    starts_waiting(&who);
    Some(())
}

#[inline(always)]
fn migrate(task: Task) -> Option<()> {
    let who = watched(config()?, task)?;
    counters(&who)?.migrations += 1;
    Some(())
}

#[inline(always)]
fn starts_waiting(who: &Who) {
    let waiting = Waiting {
        since_ns: now(),
        workload: who.workload,
    };
    if WAITING.insert(who.tid, waiting, 0).is_err() {
        lost(who.workload, LOSS_STATE_MAP);
    }
}
