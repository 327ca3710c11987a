//! What a policy can call, and the bookkeeping of one call into it.
//!
//! Invariants: no host call blocks; what a guest can make the host keep is bounded.

use super::bindings::palisade::policy::{host, types};
use super::engine::Facts;
use super::event::LogLevel;
use super::limits::{Limiter, Limits, STRING_BYTES};
use super::strikes::tidy;
use palisade_core::{ProcessId, WorkloadId};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::time::Duration;
use wasmtime::UpdateDeadline;

/// A line that a policy logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How important.
    pub level: LogLevel,
    /// The text, bounded, without control characters.
    pub message: String,
    /// Lines dropped before this one because there were too many.
    pub suppressed: u64,
}

/// Data of a store.
pub struct HostState {
    facts: Arc<dyn Facts>,
    pub limiter: Limiter,
    budget: Budget,
    log: LogBook,
}

impl HostState {
    pub fn new(facts: Arc<dyn Facts>, limits: &Limits) -> Self {
        Self {
            facts,
            limiter: Limiter::new(limits),
            budget: Budget::default(),
            log: LogBook {
                per_second: limits.log_lines_per_second,
                ..LogBook::default()
            },
        }
    }

    /// To be called before each call into the guest.
    pub fn begin(&mut self, now_ns: u64, deadline: Duration) {
        self.budget = Budget {
            deadline,
            ..Budget::default()
        };
        self.log.begin(now_ns);
    }

    /// Whether the call was cut off.
    pub fn missed_deadline(&self) -> bool {
        self.budget.missed
    }

    /// Takes the lines logged so far.
    pub fn take_log(&mut self) -> Vec<LogLine> {
        std::mem::take(&mut self.log.lines)
    }

    /// At an epoch's end: whether the guest may go on.
    pub fn at_epoch(&mut self) -> UpdateDeadline {
        self.budget.at_epoch(thread_cpu())
    }
}

/// CPU time of the calling thread.
fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// CPU time of the call under way.
///
/// Most calls end before the first epoch does, and a look at the thread's CPU clock costs as much
/// as such a call. So the clock is read at the first epoch's end, and the at most one tick before
/// it is for free. A preempted thread does not get older by this clock.
#[derive(Debug, Default)]
struct Budget {
    deadline: Duration,
    since: Option<Duration>,
    missed: bool,
}

impl Budget {
    fn at_epoch(&mut self, cpu: Duration) -> UpdateDeadline {
        let since = *self.since.get_or_insert(cpu);
        let left = self.deadline.saturating_sub(cpu.saturating_sub(since));
        if left.is_zero() {
            self.missed = true;
            return UpdateDeadline::Interrupt;
        }
        UpdateDeadline::Continue(1)
    }
}

/// Log lines of one policy, so many a second of event time.
#[derive(Debug, Default)]
struct LogBook {
    per_second: u32,
    window_ns: u64,
    in_window: u32,
    suppressed: u64,
    lines: Vec<LogLine>,
}

impl LogBook {
    fn begin(&mut self, now_ns: u64) {
        const SECOND: u64 = 1_000_000_000;
        if now_ns.abs_diff(self.window_ns) < SECOND {
            return;
        }
        self.window_ns = now_ns;
        self.in_window = 0;
        if self.suppressed > 0 {
            self.lines.push(LogLine {
                level: LogLevel::Warn,
                message: format!(
                    "{} log lines were dropped: too many a second",
                    self.suppressed
                ),
                suppressed: std::mem::take(&mut self.suppressed),
            });
        }
    }

    fn add(&mut self, level: LogLevel, message: &str) {
        if self.in_window >= self.per_second {
            self.suppressed += 1;
            return;
        }
        self.in_window += 1;
        let message = tidy(message, STRING_BYTES);
        self.lines.push(LogLine {
            level,
            message,
            suppressed: 0,
        });
    }
}

impl types::Host for HostState {}

impl host::Host for HostState {
    fn log(&mut self, level: types::Level, message: String) {
        let level = match level {
            types::Level::Debug => LogLevel::Debug,
            types::Level::Info => LogLevel::Info,
            types::Level::Warn => LogLevel::Warn,
            types::Level::Error => LogLevel::Error,
        };
        self.log.add(level, &message);
    }

    fn process_of(&mut self, process: types::Process) -> Option<types::ProcessInfo> {
        let process = ProcessId {
            pid: process.pid,
            start_ns: process.start_ns,
        };
        let facts = self.facts.process_of(process)?;
        Some(types::ProcessInfo {
            parent: facts.parent,
            comm: facts.comm,
            exe: facts.exe,
            workload: facts.workload,
        })
    }

    fn workload_of(&mut self, workload: u64) -> Option<types::WorkloadInfo> {
        let facts = self.facts.workload_of(WorkloadId(workload))?;
        Some(types::WorkloadInfo {
            cgroup: facts.cgroup,
            container: facts.container,
        })
    }

    fn file_path(&mut self, device: u32, inode: u64) -> Option<String> {
        self.facts.file_path(device, inode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preempted_call_is_not_cut_off() {
        let ms = Duration::from_millis;
        let mut budget = Budget {
            deadline: ms(20),
            ..Budget::default()
        };
        assert!(matches!(
            budget.at_epoch(ms(1000)),
            UpdateDeadline::Continue(1)
        ));
        // 20 ms later by the wall clock it had the CPU for 3 ms.
        assert!(matches!(
            budget.at_epoch(ms(1003)),
            UpdateDeadline::Continue(1)
        ));
        assert!(!budget.missed);
        assert!(matches!(
            budget.at_epoch(ms(1020)),
            UpdateDeadline::Interrupt
        ));
        assert!(budget.missed);
    }

    #[test]
    fn dropped_log_lines_are_counted_and_told() {
        let mut log = LogBook {
            per_second: 2,
            ..LogBook::default()
        };
        log.begin(5_000_000_000);
        for _ in 0..5 {
            log.add(LogLevel::Info, "x");
        }
        assert_eq!(log.lines.len(), 2);
        log.begin(6_000_000_000);
        assert_eq!(log.lines.len(), 3);
        assert_eq!(log.lines[2].suppressed, 3);
    }
}
