//! Signals, by pidfd only.
//!
//! Invariants:
//! - The pidfd is opened first; then start time and cgroup are compared; then the signal goes to
//!   the pidfd. A pid that was reused in between fails the comparison or the send.
//! - PID 1, this process and its ancestors are never signalled, whatever the caller says.
//! - A kill freezes nothing before its caller, who keeps the undo, has agreed.

use super::cgroup::{CgroupDir, CgroupError, KnobHandle, Setting, Version, is_within, v2};
use crate::boot_clock::now_ns;
use crate::identity::layout::Layout;
use palisade_core::{ActOutcome, Knob, Lease, LeaseId, ProcessId, WorkloadId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest part of a kill's time that is spent on freezing the workload first.
const FREEZE_FIRST: Duration = Duration::from_millis(100);
/// Pause between two looks at a dying workload, and between two rounds.
const LOOK: Duration = Duration::from_millis(1);
/// Processes signalled in one round, so that descriptors stay bounded.
const ROUND_MAX: usize = 256;

/// SIGTERM to one process; then waits up to `wait` and says what was seen.
pub fn terminate(
    layout: &Layout,
    process: ProcessId,
    workload: Option<WorkloadId>,
    wait: Duration,
) -> ActOutcome {
    match try_terminate(layout, process, workload, wait) {
        Ok(outcome) => outcome,
        Err(error) => ActOutcome::Failed {
            error: format!("signal process {}: {error}", process.pid),
        },
    }
}

fn try_terminate(
    layout: &Layout,
    process: ProcessId,
    workload: Option<WorkloadId>,
    wait: Duration,
) -> io::Result<ActOutcome> {
    if off_limits()?.contains(&process.pid) {
        return Ok(ActOutcome::Failed {
            error: format!(
                "process {} is PID 1, the agent or its ancestor",
                process.pid
            ),
        });
    }
    let Some(pidfd) = open(process.pid)? else {
        return Ok(ActOutcome::Gone);
    };
    match start_ticks(process.pid) {
        Ok(ticks) if ticks == ticks_of_ns(process.start_ns) => {}
        Ok(_) => return Ok(ActOutcome::Gone), // the pid belongs to another process now
        Err(e) if is_gone(&e) => return Ok(ActOutcome::Gone),
        Err(e) => return Err(e),
    }
    if let Some(workload) = workload {
        let now = layout
            .cgroup_of_pid(process.pid)
            .and_then(|cgroup| layout.workload_id(&cgroup));
        match now {
            Ok(now) if now == workload => {}
            Ok(_) => {
                return Ok(ActOutcome::Failed {
                    error: format!("process {} moved to another cgroup", process.pid),
                });
            }
            Err(e) if is_gone(&e) => return Ok(ActOutcome::Gone),
            Err(e) => return Err(e),
        }
    }
    let start = Instant::now();
    match pidfd_send_signal(&pidfd, Signal::TERM) {
        Ok(()) => {}
        Err(Errno::SRCH) => return Ok(ActOutcome::Gone),
        Err(e) => return Err(e.into()),
    }
    let gone = wait_exit(&pidfd, wait)?;
    Ok(ActOutcome::Done {
        observed: if gone {
            format!(
                "SIGTERM sent, process gone after {} ms",
                start.elapsed().as_millis()
            )
        } else {
            format!(
                "SIGTERM sent, process still there after {} ms",
                wait.as_millis()
            )
        },
        original: None,
    })
}

/// SIGKILL to every process of a workload and below it, and waits up to `wait` until it is empty.
/// `freezer` is the cgroup that holds exactly the workload, where there is one: on v2 its
/// `cgroup.kill` also reaches processes that fork meanwhile, on v1 it stops the forking.
/// `before_freeze` is called at most once, ahead of the first freeze; its `false` means that the
/// workload is killed without being frozen.
pub fn kill(
    layout: &Layout,
    workload: &CgroupDir,
    cgroup: &str,
    freezer: Result<(Version, CgroupDir), CgroupError>,
    wait: Duration,
    before_freeze: impl FnOnce(&KnobHandle) -> bool,
) -> Result<ActOutcome, CgroupError> {
    if workload.is_root() || cgroup == "/" {
        return Err(CgroupError::Refused(
            "the root cgroup is not killed".to_owned(),
        ));
    }
    let refused = off_limits().map_err(|e| CgroupError::Io {
        call: "read",
        path: "/proc/self/stat".into(),
        source: e,
    })?;
    let members = workload.members()?;
    if let Some(pid) = members.intersection(&refused).next() {
        return Err(CgroupError::Refused(format!(
            "process {pid} in it is PID 1, the agent or its ancestor"
        )));
    }
    if members.is_empty() {
        return Ok(ActOutcome::Gone);
    }
    let start = Instant::now();
    let done = |how: &str| ActOutcome::Done {
        observed: format!(
            "{} processes killed {how}, workload empty after {} ms",
            members.len(),
            start.elapsed().as_millis()
        ),
        original: None,
    };
    if let Ok((Version::V2, dir)) = &freezer
        && dir.has("cgroup.kill")
    {
        dir.write("cgroup.kill", "1")?;
        while start.elapsed() < wait {
            match v2::populated(dir) {
                // On a hybrid host the workload itself is in another hierarchy.
                Ok(false) if workload.members().is_ok_and(|m| m.is_empty()) => {
                    return Ok(done("by cgroup.kill"));
                }
                Err(CgroupError::Gone) => return Ok(done("by cgroup.kill")),
                Ok(_) => std::thread::sleep(LOOK),
                Err(e) => return Err(e),
            }
        }
        return Err(still_there(workload, "cgroup.kill", wait));
    }
    let freezer = freezer.ok().map(|(version, dir)| KnobHandle {
        dir,
        version,
        knob: Knob::Freeze,
    });
    let freeze = freezer.as_ref().is_some_and(before_freeze);
    let mut round = 0u32;
    while start.elapsed() < wait {
        round += 1;
        if let Some(freezer) = freezer.as_ref().filter(|_| freeze) {
            // Only to stop it from forking; a workload that does not freeze is killed all the same.
            let _ = freezer.set(&Setting::Frozen(true), FREEZE_FIRST.min(wait));
        }
        let signalled = signal_members(layout, workload, cgroup, &refused);
        if let Some(freezer) = &freezer {
            // A v1 task dies of its SIGKILL when it thaws; this also ends an earlier freeze.
            freezer.write(&Setting::Frozen(false))?;
        }
        for pidfd in signalled? {
            let left = wait.saturating_sub(start.elapsed());
            let _ = wait_exit(&pidfd, left);
        }
        match workload.members() {
            Ok(left) if left.is_empty() => return Ok(done(&format!("by pidfd in {round} rounds"))),
            Ok(_) => std::thread::sleep(LOOK),
            Err(CgroupError::Gone) => return Ok(done("by pidfd")),
            Err(e) => return Err(e),
        }
    }
    Err(still_there(workload, "SIGKILL by pidfd", wait))
}

/// The lease of the freeze within a kill, which ends with the kill. The core does not know it: a
/// later moment than the one that the core counts its leases from is a number of its own.
pub fn freeze_of_kill(policy: &str, workload: WorkloadId, cgroup: &str, wait: Duration) -> Lease {
    let now_ns = now_ns();
    Lease {
        id: LeaseId(now_ns),
        workload,
        cgroup: cgroup.to_owned(),
        knob: Knob::Freeze,
        value: 1,
        owners: vec![policy.to_owned()],
        until_ns: now_ns.saturating_add(wait.as_nanos() as u64),
    }
}

fn still_there(workload: &CgroupDir, how: &str, wait: Duration) -> CgroupError {
    let left = workload.members().map_or(0, |m| m.len());
    CgroupError::Timeout(format!(
        "{left} processes are left {} ms after {how}",
        wait.as_millis()
    ))
}

fn signal_members(
    layout: &Layout,
    workload: &CgroupDir,
    cgroup: &str,
    refused: &BTreeSet<u32>,
) -> Result<Vec<OwnedFd>, CgroupError> {
    let mut signalled = Vec::new();
    for pid in workload.members()?.difference(refused).take(ROUND_MAX) {
        let Ok(Some(pidfd)) = open(*pid) else {
            continue;
        };
        // After the open: a pid that was reused is in another cgroup, or is a member all the same.
        if !layout
            .cgroup_of_pid(*pid)
            .is_ok_and(|at| is_within(&at, cgroup))
        {
            continue;
        }
        if pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
            signalled.push(pidfd);
        }
    }
    Ok(signalled)
}

/// PID 0 and 1, this process, and its ancestors.
fn off_limits() -> io::Result<BTreeSet<u32>> {
    let mut set = BTreeSet::from([0, 1, std::process::id()]);
    let mut pid = std::process::id();
    while pid > 1 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        match stat_field(&stat, 4).and_then(|text| text.parse().ok()) {
            Some(parent) if set.insert(parent) => pid = parent,
            _ => break,
        }
    }
    Ok(set)
}

/// `None` if there is no such process.
fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        // EINVAL: a thread that is not a group leader.
        Err(Errno::SRCH | Errno::INVAL) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Whether the process is gone within `wait`.
fn wait_exit(pidfd: &OwnedFd, wait: Duration) -> io::Result<bool> {
    let end = Instant::now() + wait;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::SRCH)
}

/// Start of a process in clock ticks since boot (boot time, suspended time included, since 3.x).
fn start_ticks(pid: u32) -> io::Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(Path::new(&path))?;
    stat_field(&stat, 22)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{path} has no start")))
}

/// `CLOCK_BOOTTIME` nanoseconds as /proc shows them: rounded down to ticks.
fn ticks_of_ns(ns: u64) -> u64 {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    ns / (1_000_000_000 / per_second)
}

/// Field `number` (from 1, as in proc(5), from 3 on) of a stat line. The name may hold blanks and
/// parentheses.
fn stat_field(stat: &str, number: usize) -> Option<&str> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(number.checked_sub(3)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn stat_fields_are_found_behind_hostile_names() {
        let stat = "7 (a) b (c) R 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        assert_eq!(stat_field(stat, 3), Some("R"));
        assert_eq!(stat_field(stat, 4), Some("1"));
        assert_eq!(stat_field(stat, 22), Some("4711"));
        assert_eq!(stat_field("", 22), None);
        assert_eq!(stat_field("7 (a)", 22), None);
    }

    #[test]
    fn ticks_round_down() {
        let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
        assert_eq!(ticks_of_ns(tick * 5 - 1), 4);
        assert_eq!(ticks_of_ns(tick * 5), 5);
    }

    #[test]
    fn this_process_and_its_parent_are_off_limits() {
        let set = off_limits().unwrap();
        for pid in [
            0,
            1,
            std::process::id(),
            std::os::unix::process::parent_id(),
        ] {
            assert!(set.contains(&pid), "{pid}");
        }
    }
}
