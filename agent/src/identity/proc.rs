//! Readers of /proc/PID.
//!
//! Invariant: a pid alone is never trusted. Whoever reads something of a process compares its
//! start time *afterwards*: if that still fits, the pid belonged to the same process all the while.

use palisade_core::ProcessId;
use std::fs;
use std::io;
use std::path::Path;

/// `PF_KTHREAD` of the kernel's task flags.
const PF_KTHREAD: u32 = 0x0020_0000;

/// What /proc/PID/stat says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) comm: String,
    pub(super) state: char,
    pub(super) parent: u32,
    pub(super) kernel_thread: bool,
    pub(super) threads: u32,
    /// Start after boot in clock ticks, rounded down.
    pub(super) start_ticks: u64,
}

impl Stat {
    pub(super) fn read(pid: u32) -> io::Result<Self> {
        let bytes = fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(&String::from_utf8_lossy(&bytes))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed /proc/PID/stat"))
    }

    /// The name may hold blanks and parentheses; the last closing one ends it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let open = text.find('(')?;
        let close = text.rfind(')')?;
        let comm = text.get(open + 1..close)?.to_owned();
        // Fields from the third (state) on; see proc_pid_stat(5).
        let fields: Vec<&str> = text.get(close + 1..)?.split_ascii_whitespace().collect();
        let flags: u32 = fields.get(6)?.parse().ok()?;
        Some(Self {
            comm,
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            kernel_thread: flags & PF_KTHREAD != 0,
            threads: fields.get(17)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }

    /// It has exited and only waits to be reaped: there is nothing left to act on. A process
    /// whose first thread alone has ended looks like a zombie too, but its others run on.
    pub(super) fn ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x') && self.threads <= 1
    }
}

/// Length of a clock tick, as /proc counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tick {
    nanos: u64,
}

impl Tick {
    /// Of this host; 10 ms (the kernel's `USER_HZ` on every architecture but alpha) if it does not say.
    pub(super) fn of_host() -> Self {
        let hz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
            .ok()
            .flatten();
        let hz = hz
            .and_then(|hz| u64::try_from(hz).ok())
            .filter(|hz| (1..=1_000_000).contains(hz));
        Self {
            nanos: 1_000_000_000 / hz.unwrap_or(100),
        }
    }

    /// As the kernel rounds it for /proc.
    pub(super) fn ticks(self, start_ns: u64) -> u64 {
        start_ns / self.nanos
    }

    /// The earliest start that reads as `ticks`.
    pub(super) fn nanos(self, ticks: u64) -> u64 {
        ticks.saturating_mul(self.nanos)
    }
}

/// The executable's path, lossy; `None` for a kernel thread or a process that is gone.
/// ` (deleted)` stays at the end where the kernel puts it.
pub(super) fn exe(pid: u32) -> Option<String> {
    link(Path::new(&format!("/proc/{pid}/exe"))).or_else(|| {
        // The first thread has ended, or there is nothing to be seen: another thread tells.
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        tasks
            .flatten()
            .find_map(|task| link(&task.path().join("exe")))
    })
}

/// The target of a link, lossy.
pub(super) fn link(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.to_string_lossy().into_owned())
}

/// The stat of exactly that process, or why there is none.
pub(super) fn verify(process: ProcessId, tick: Tick) -> Result<Stat, String> {
    let pid = process.pid;
    let stat = match Stat::read(pid) {
        Ok(stat) => stat,
        // ESRCH: it went between opening and reading.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) =>
        {
            return Err(format!("pid {pid} has ended"));
        }
        Err(error) => return Err(format!("/proc/{pid}/stat: {error}")),
    };
    if stat.start_ticks != tick.ticks(process.start_ns) {
        let when = if stat.start_ticks > tick.ticks(process.start_ns) {
            "later"
        } else {
            "earlier"
        };
        return Err(format!("pid {pid} now belongs to a process started {when}"));
    }
    if stat.ended() {
        return Err(format!("pid {pid} has ended and waits to be reaped"));
    }
    Ok(stat)
}

/// Every process of this host, as numbered in /proc.
pub(super) fn pids() -> io::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_confuse() {
        let text = "812 (a) (b c) S 1 812 812 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0 1 0";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat.comm, "a) (b c");
        assert_eq!((stat.state, stat.parent, stat.start_ticks), ('S', 1, 4711));
        assert!(stat.kernel_thread);
        let zombie = |threads: u32| {
            let text = text
                .replace(") S", ") Z")
                .replace(" 20 0 1 ", &format!(" 20 0 {threads} "));
            Stat::parse(&text).unwrap().ended()
        };
        assert!(zombie(1) && !zombie(2));
        assert!(!stat.ended());
    }

    #[test]
    fn garbage_is_no_stat() {
        for text in [
            "",
            "(",
            ")(",
            "1 (x)",
            "1 (x) S 1 2 3",
            "1 (x) S a b c d e f g",
        ] {
            assert_eq!(Stat::parse(text), None, "{text}");
        }
    }

    #[test]
    fn ticks_round_down_as_in_proc() {
        let tick = Tick { nanos: 10_000_000 };
        assert_eq!(tick.ticks(19_999_999), 1);
        assert_eq!(tick.ticks(tick.nanos(7)), 7);
        assert_eq!(tick.nanos(u64::MAX), u64::MAX);
    }

    #[test]
    fn this_process_is_itself_and_no_other() {
        let tick = Tick::of_host();
        let pid = std::process::id();
        let stat = Stat::read(pid).unwrap();
        let start_ns = tick.nanos(stat.start_ticks);
        assert!(verify(ProcessId { pid, start_ns }, tick).is_ok());
        let earlier = ProcessId { pid, start_ns: 0 };
        assert!(verify(earlier, tick).unwrap_err().contains("started later"));
        let gone = ProcessId {
            pid: u32::MAX,
            start_ns,
        };
        assert!(verify(gone, tick).unwrap_err().contains("has ended"));
        assert!(exe(pid).is_some());
        assert!(pids().unwrap().contains(&pid));
    }
}
