//! Hooks of the scheduler and of system calls.

use super::{Group, Hook, Rung, sched};
use palisade_abi::Kind;

/// The kinds that need to know when a thread leaves a CPU.
pub(in super::super) const SCHED: u64 =
    Kind::SampleSched.bit() | Kind::SampleRunq.bit() | Kind::SampleCpu.bit();
const MOVES: u64 = Kind::SampleSched.bit() | Kind::SampleCpu.bit();
/// System calls.
pub(in super::super) const CALLS: u64 = Kind::SampleSyscalls.bit();

pub(in super::super) const HOOKS: &[Hook] = &[
    sched!(
        "switch",
        SCHED,
        &[Group::Sched],
        "sched_switch",
        "sched_switch_raw",
        "sched_switch"
    ),
    sched!(
        "first wake-up",
        SCHED,
        &[],
        "sched_wakeup_new",
        "sched_wakeup_new_raw",
        "sched_wakeup_new"
    ),
    sched!(
        "migration",
        MOVES,
        &[Group::Sched],
        "sched_migrate",
        "sched_migrate_raw",
        "sched_migrate_task"
    ),
    sched!(
        "system call",
        CALLS,
        &[],
        "syscall_enter",
        "syscall_enter_raw",
        "sys_enter"
    ),
];
