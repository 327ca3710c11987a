//! Maps and globals of the sensors of scheduling, memory and system calls.

use bytemuck::{Pod, Zeroable};

/// CPUs whose node can be told.
pub const MAX_CPUS: u32 = 8192;

/// System calls, by number, that can be marked as waiting.
pub const MAX_SYSCALLS: u32 = 1024;

/// Offsets of kernel structure members in bytes for these sensors; see [`crate::Offsets`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CpuOffsets {
    /// `task_struct.se` + `sched_entity.sum_exec_runtime`
    pub task_ran: u32,
    /// `task_struct.sched_info` + `sched_info.run_delay`
    pub task_delayed: u32,
    /// `task_struct.sched_info` + `sched_info.pcount`
    pub task_turns: u32,
    /// `task_struct.sched_info` + `sched_info.last_arrival`
    pub task_arrival: u32,
    /// `task_struct.nvcsw`
    pub task_voluntary: u32,
    /// `task_struct.nivcsw`
    pub task_involuntary: u32,
    /// `task_struct.se` + `sched_entity.cfs_rq`
    pub task_cfs_rq: u32,
    /// `cfs_rq.rq`
    pub cfs_rq_rq: u32,
    /// `rq.clock`
    pub rq_clock: u32,
    /// `task_struct.thread_info` + `thread_info.cpu`, or `task_struct.cpu`
    pub task_cpu: u32,
    /// 1 if the tracepoint `mark_victim` hands over the task, 0 if its thread id only.
    pub victim_is_task: u32,
}

/// What the scheduler had counted of a thread when it left a CPU last, by the address of its
/// `task_struct`. Times are nanoseconds of the scheduler's own clocks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Turn {
    /// Start of the thread, `CLOCK_BOOTTIME`: another thread may get the same address later.
    pub start_ns: u64,
    /// Time on a CPU.
    pub ran_ns: u64,
    /// Time spent waiting for one.
    pub delayed_ns: u64,
    /// Times it got one.
    pub turns: u64,
    /// Voluntary switches, this one included.
    pub voluntary: u64,
    /// Involuntary ones.
    pub involuntary: u64,
    /// When it went to sleep; 0 if it did not, or nobody wants to know.
    pub slept_ns: u64,
}

/// Who made the kernel look for a victim, by the victim's thread id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct OomCause {
    /// See [`crate::OomVictim::by_workload`].
    pub workload: u64,
    /// See [`crate::OomVictim::by_pid`].
    pub pid: u32,
    /// Explicit padding.
    pub pad: u32,
}
