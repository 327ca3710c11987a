//! Processes: a new program, a new process, the end of one.

use crate::{
    cuda::CUDA_CALLS,
    emit::{BPF_NOEXIST, now, record, record_with_path},
    filter::{config, wanted, watched},
    gpu,
    kernel::{Address, Task},
    memory,
    net::NET_CALLS,
    pids,
    tables::{ENDED, offset},
};
use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_get_current_uid_gid},
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use palisade_abi::{Exec, Exit, Fork, Kind, kind};

/// `sched_process_exec`, BTF tracepoint: (task, its thread id before, program)
#[btf_tracepoint(function = "sched_process_exec")]
pub fn process_exec(ctx: BtfTracePointContext) -> i32 {
    let _ = exec(Address(ctx.arg::<u64>(2)));
    0
}

/// `sched_process_exec`, raw tracepoint
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec_raw(ctx: RawTracePointContext) -> i32 {
    let _ = exec(Address(ctx.arg::<u64>(2)));
    0
}

/// `sched_process_fork`, BTF tracepoint: (parent, child)
#[btf_tracepoint(function = "sched_process_fork")]
pub fn process_fork(ctx: BtfTracePointContext) -> i32 {
    let _ = fork(task(ctx.arg(0)), task(ctx.arg(1)));
    0
}

/// `sched_process_fork`, raw tracepoint
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork_raw(ctx: RawTracePointContext) -> i32 {
    let _ = fork(task(ctx.arg(0)), task(ctx.arg(1)));
    0
}

/// `sched_process_exit`, BTF tracepoint: (task)
#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(ctx: BtfTracePointContext) -> i32 {
    let _ = exit(task(ctx.arg(0)));
    0
}

/// `sched_process_exit`, raw tracepoint
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit_raw(ctx: RawTracePointContext) -> i32 {
    let _ = exit(task(ctx.arg(0)));
    0
}

#[inline(always)]
fn task(pointer: *const u8) -> Task {
    Task(Address(pointer as u64))
}

/// `program`: the kernel's `linux_binprm`.
#[inline(always)]
fn exec(program: Address) -> Option<()> {
    let config = config()?;
    let task = Task::current();
    let _ = pids::executes(config, task, program);
    if !wanted(config, Kind::Exec) {
        return None;
    }
    let who = watched(config, task)?;
    let body = Exec {
        parent: task.0.follow(offset!(task_parent)).map(Task)?.pid()?,
        uid: bpf_get_current_uid_gid() as u32,
        comm: bpf_get_current_comm().unwrap_or_default(),
    };
    match pids::executable(task) {
        Some(file) => {
            record_with_path(&who, now(), kind::EXEC, body, file);
        }
        None => record(&who, now(), kind::EXEC, 0, body),
    }
    Some(())
}

#[inline(always)]
fn fork(parent: Task, child: Task) -> Option<()> {
    let config = config()?;
    let pid = child.pid()?;
    if child.tid()? != pid {
        return None;
    }
    let _ = pids::forks(config, parent, child);
    if !wanted(config, Kind::Fork) {
        return None;
    }
    let who = watched(config, parent)?;
    let body = Fork {
        child: pid,
        pad: 0,
        child_start_ns: child.own_start()?,
        reserved: 0,
    };
    record(&who, now(), kind::FORK, 0, body);
    Some(())
}

#[inline(always)]
fn exit(task: Task) -> Option<()> {
    // The thread is gone: so is whatever it was in the middle of. A killed call normally returns
    // first; this is for tasks that die inside the kernel and for hooks attached half-way.
    let tid = task.tid()?;
    let pid = task.pid()?;
    let thread = (pid as u64) << 32 | tid as u64;
    gpu::forget(task);
    let _ = NET_CALLS.remove(thread);
    let _ = CUDA_CALLS.remove(thread);

    let config = config()?;
    let _ = memory::victim_exits(config, task, tid);
    if !wanted(config, Kind::Exit) {
        return None;
    }
    let signal = task.0.follow(offset!(task_signal))?;
    if signal.read::<u32>(offset!(signal_live))? != 0 {
        return None;
    }
    let who = watched(config, task)?;
    ENDED
        .insert([who.start_ns, who.pid as u64], 1, BPF_NOEXIST)
        .ok()?;
    // What `wait` answers: the group's code if the group was ended as a whole, else the leader's.
    let code = match signal.read::<u32>(offset!(signal_group_exit_code))? {
        0 => task.leader()?.0.read(offset!(task_exit_code))?,
        group => group,
    };
    let body = Exit {
        code,
        pad: 0,
        reserved: [0; 2],
    };
    record(&who, now(), kind::EXIT, 0, body);
    Some(())
}
