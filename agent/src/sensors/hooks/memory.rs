//! Hooks of page faults, reclaim and the out-of-memory killer.

use super::{Hook, Rung, sched};
use palisade_abi::Kind;

/// Page faults.
pub(in super::super) const FAULTS: u64 = Kind::SampleFaults.bit();
/// Reclaim.
pub(in super::super) const RECLAIM: u64 = Kind::SampleReclaim.bit();
/// Victims of the out-of-memory killer: before Linux 6.9 they are told at their end.
pub(in super::super) const VICTIMS: u64 = Kind::OomVictim.bit();

/// The end of a stall comes before its beginning: whoever is seen to begin is also seen to end.
pub(in super::super) const HOOKS: &[Hook] = &[
    sched!(
        "page fault (user)",
        FAULTS,
        &[],
        "fault_user",
        "fault_user_raw",
        "page_fault_user"
    ),
    sched!(
        "page fault (kernel)",
        FAULTS,
        &[],
        "fault_kernel",
        "fault_kernel_raw",
        "page_fault_kernel"
    ),
    sched!(
        "direct reclaim end",
        RECLAIM,
        &[],
        "direct_end",
        "direct_end_raw",
        "mm_vmscan_direct_reclaim_end"
    ),
    sched!(
        "direct reclaim begin",
        RECLAIM,
        &[],
        "direct_begin",
        "direct_begin_raw",
        "mm_vmscan_direct_reclaim_begin"
    ),
    sched!(
        "cgroup reclaim end",
        RECLAIM,
        &[],
        "group_end",
        "group_end_raw",
        "mm_vmscan_memcg_reclaim_end"
    ),
    sched!(
        "cgroup reclaim begin",
        RECLAIM,
        &[],
        "group_begin",
        "group_begin_raw",
        "mm_vmscan_memcg_reclaim_begin"
    ),
    sched!(
        "out-of-memory victim",
        VICTIMS,
        &[],
        "oom_victim",
        "oom_victim_raw",
        "mark_victim"
    ),
];
