//! Which kernels the programs may run on, and what has to be switched on in them.

use super::SensorError;

/// Oldest kernel, as major and minor version. Before it, maps that take memory for an entry when it is made
/// (`BPF_F_NO_PREALLOC`) call the kernel's allocator from within programs, also under the run queue's lock, where that
/// may wait for itself; Linux 6.1 gave them an allocator of their own (commit "bpf: Convert hash map to bpf_mem_alloc").
pub const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// Release of the running kernel, as `uname -r` prints it.
pub fn kernel_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// `6.18.44-x` → (6, 18)
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// An error on a kernel that is too old. One whose version cannot be read is believed to be new.
pub(super) fn check(release: &str) -> Result<(), SensorError> {
    match kernel_version(release) {
        Some(version) if version < OLDEST_KERNEL => Err(SensorError::TooOld {
            release: release.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Where the kernel says whether it compiles programs. Where it does not it refuses programs with loops of its own
/// (`bpf_loop`), which is nearly all of ours; on most distributions it cannot be switched off. The file is there in the
/// host's network namespace only.
pub(super) const JIT_SWITCH: &str = "/proc/sys/net/core/bpf_jit_enable";

/// An error where that switch is off. Where there is none, loading tells.
pub(super) fn check_jit(switch: Option<&str>) -> Result<(), SensorError> {
    match switch.map(str::trim) {
        Some("0") => Err(SensorError::NoJit),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_kernels_are_refused_and_unreadable_versions_are_not() {
        for (release, good) in [
            ("5.15.0-91-generic", false),
            ("6.0.19", false),
            ("6.1.0-31-amd64", true),
            ("7.2", true),
            ("6.1+", true),
            ("next", true),
            ("", true),
        ] {
            assert_eq!(check(release).is_ok(), good, "{release}");
        }
    }

    #[test]
    fn a_kernel_that_interprets_programs_is_refused() {
        for (switch, good) in [
            (Some("0\n"), false),
            (Some("1\n"), true),
            (Some("2"), true),
            (None, true),
        ] {
            assert_eq!(check_jit(switch).is_ok(), good, "{switch:?}");
        }
    }
}
