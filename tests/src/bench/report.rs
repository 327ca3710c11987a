//! What every benchmark says of the machine.

use std::fs;

/// One line: CPUs, model, kernel, and whether program statistics are off.
pub fn machine() -> String {
    let model = fs::read_to_string("/proc/cpuinfo")
        .unwrap_or_default()
        .lines()
        .find_map(|line| {
            line.strip_prefix("model name")?
                .split_once(':')
                .map(|(_, name)| name.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    format!(
        "machine: {} CPUs ({model}), kernel {}, bpf_stats {}",
        std::thread::available_parallelism().map_or(0, usize::from),
        palisade::sensors::kernel_release(),
        match bpf_stats() {
            Some(false) => "off",
            Some(true) => "ON: every program run costs more",
            None => "unknown",
        }
    )
}

/// Whether the kernel measures program runs, which costs time itself.
pub fn bpf_stats() -> Option<bool> {
    let text = fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").ok()?;
    Some(text.trim() != "0")
}

/// Processes that trace already, as `name (pid)`: whoever holds a perf event or the attachment of a tracing program.
/// System calls that others trace are slow without us, and what we add seems small.
pub fn tracing() -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| {
            let pid: u32 = process.file_name().to_str()?.parse().ok()?;
            let mut descriptors = fs::read_dir(process.path().join("fd")).ok()?.flatten();
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            descriptors
                .any(|descriptor| {
                    let file = fs::read_link(descriptor.path()).unwrap_or_default();
                    let info = || {
                        let number = descriptor.file_name();
                        fs::read_to_string(process.path().join("fdinfo").join(number))
                    };
                    match file.to_str() {
                        Some("anon_inode:[perf_event]") => true,
                        Some("anon_inode:bpf_link") => is_tracing(&info().unwrap_or_default()),
                        _ => false,
                    }
                })
                .then(|| format!("{} ({pid})", name.trim()))
        })
        .collect()
}

/// Whether a link's `fdinfo` tells of a tracing program; others filter packets or devices.
fn is_tracing(info: &str) -> bool {
    const KINDS: [&str; 5] = [
        "raw_tracepoint",
        "tracing",
        "perf_event",
        "kprobe",
        "uprobe",
    ];
    info.lines()
        .find_map(|line| line.strip_prefix("link_type:"))
        .is_some_and(|kind| KINDS.iter().any(|tracing| kind.trim().starts_with(tracing)))
}

/// CPU time of all CPUs since the boot, in clock ticks, or between two moments.
#[derive(Clone, Copy, Debug)]
pub struct CpuTicks {
    busy: u64,
    steal: u64,
}

impl CpuTicks {
    /// Seconds in which something ran.
    pub fn busy(self) -> f64 {
        seconds(self.busy)
    }

    /// Seconds that a hypervisor took away.
    pub fn steal(self) -> f64 {
        seconds(self.steal)
    }
}

impl std::ops::Sub for CpuTicks {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(earlier.busy),
            steal: self.steal.saturating_sub(earlier.steal),
        }
    }
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// CPU time of all CPUs so far.
pub fn cpu_ticks() -> CpuTicks {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    let at = |index: usize| numbers.get(index).copied().unwrap_or(0);
    // user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user.
    CpuTicks {
        busy: at(0) + at(1) + at(2) + at(5) + at(6),
        steal: at(7),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_of_tracing_programs_count() {
        assert!(is_tracing(
            "pos:\t0\nlink_type:\traw_tracepoint\nlink_id:\t4\n"
        ));
        assert!(is_tracing("link_type:\tperf_event\n"));
        assert!(!is_tracing("pos:\t0\nlink_type:\tcgroup\n"));
        assert!(!is_tracing(""));
    }
}
