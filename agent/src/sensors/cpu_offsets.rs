//! Offsets that the sensors of scheduling and memory read.

use super::{
    btf::Btf,
    offsets::{Group, Missing, Reader},
};
use palisade_abi::CpuOffsets;

/// Reads the offsets. A member that was not found is 0 and listed: a kernel without
/// `CONFIG_SCHED_INFO` (`SCHEDSTATS` or `TASK_DELAY_ACCT`) keeps no times of waits.
pub(super) fn resolve_cpu(btf: &Btf) -> (CpuOffsets, Vec<Missing>) {
    use Group::Sched;
    let mut read = Reader::new(btf);
    let offsets = CpuOffsets {
        task_ran: read.member(Sched, "task_struct", "se.sum_exec_runtime"),
        task_delayed: read.member(Sched, "task_struct", "sched_info.run_delay"),
        task_turns: read.member(Sched, "task_struct", "sched_info.pcount"),
        task_arrival: read.member(Sched, "task_struct", "sched_info.last_arrival"),
        task_voluntary: read.member(Sched, "task_struct", "nvcsw"),
        task_involuntary: read.member(Sched, "task_struct", "nivcsw"),
        task_cfs_rq: read.member(Sched, "task_struct", "se.cfs_rq"),
        cfs_rq_rq: read.member(Sched, "cfs_rq", "rq"),
        rq_clock: read.member(Sched, "rq", "clock"),
        task_cpu: read.member(Sched, "task_struct", "thread_info.cpu"),
        // Linux 6.9 added the second argument, and made the first one the task.
        victim_is_task: u32::from(
            btf.tracepoint_arguments("mark_victim")
                .is_some_and(|arguments| arguments >= 2),
        ),
    };
    (offsets, read.missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernels_scheduler_keeps_every_time() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("SKIPPED this_kernels_scheduler_keeps_every_time: no BTF on this kernel");
            return;
        };
        let btf = Btf::parse(data).expect("the kernel's own BTF parses");
        let (offsets, missing) = resolve_cpu(&btf);
        assert_eq!(missing, []);
        assert_ne!(offsets.task_ran, 0);
        assert_ne!(offsets.task_voluntary, offsets.task_involuntary);
        assert_ne!(offsets.rq_clock, 0);
    }
}
