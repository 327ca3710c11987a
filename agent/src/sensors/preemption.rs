//! Whether this kernel may preempt a task in the middle of a program at a function's entry or return.
//!
//! Until that task goes on, the kernel skips the same program for whoever else comes by on that CPU
//! (`hook-skipped`), and an entry of the ring buffer that it has reserved holds up those behind it.

use serde::Serialize;
use std::{fs, path::Path};

/// What a kernel does about tasks that are inside the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Preemption {
    /// Leaves them alone, but where they offer a place.
    None,
    /// Preempts them: `full`, `lazy` or real-time.
    Full,
    /// Chosen at boot, and not to be read: no debugfs, no boot parameter, no `/boot/config-*`.
    Unknown,
}

impl Preemption {
    /// Of the running kernel, by what can be read without changing anything.
    pub(super) fn detect() -> Self {
        let Ok(uname) = nix::sys::utsname::uname() else {
            return Self::Unknown;
        };
        let boot = Path::new("/boot");
        let config = boot.join(format!("config-{}", uname.release().to_string_lossy()));
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        Self::of(
            &uname.version().to_string_lossy(),
            &read(Path::new("/sys/kernel/debug/sched/preempt")),
            &read(Path::new("/proc/cmdline")),
            &read(&config),
        )
    }

    /// By the words of `uname -v`; those of a kernel that leaves it to the boot tell no more: what is in
    /// force (`none voluntary (full)`), what was asked for at boot, and else what it was built with.
    fn of(version: &str, in_force: &str, parameters: &str, config: &str) -> Self {
        let built = |word| version.split_whitespace().any(|it| it == word);
        if built("PREEMPT") || built("PREEMPT_RT") || built("PREEMPT_LAZY") {
            return Self::Full;
        }
        if !built("PREEMPT_DYNAMIC") {
            return Self::None;
        }
        let mut in_force = in_force.split_whitespace();
        let in_force = in_force.find_map(|word| word.strip_prefix('(')?.strip_suffix(')'));
        let asked = || {
            let words = parameters.split_whitespace();
            words
                .filter_map(|word| word.strip_prefix("preempt="))
                .next_back()
        };
        let by_default = || {
            config.lines().find_map(|line| match line {
                "CONFIG_PREEMPT=y" => Some("full"),
                "CONFIG_PREEMPT_LAZY=y" => Some("lazy"),
                "CONFIG_PREEMPT_VOLUNTARY=y" => Some("voluntary"),
                "CONFIG_PREEMPT_NONE=y" => Some("none"),
                _ => None,
            })
        };
        match in_force.or_else(asked).or_else(by_default) {
            Some("full" | "lazy") => Self::Full,
            Some("none" | "voluntary") => Self::None,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_force_goes_before_what_was_asked_for_and_that_before_the_default() {
        const DYNAMIC: &str = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.0-1 (2026-01-01)";
        const FULL: &str =
            "CONFIG_PREEMPT_BUILD=y\n# CONFIG_PREEMPT_NONE is not set\nCONFIG_PREEMPT=y\n";
        let rows = [
            ("#1 SMP Debian", "", "preempt=full", FULL, Preemption::None),
            ("#1 SMP PREEMPT Debian", "", "", "", Preemption::Full),
            ("#1 SMP PREEMPT_RT Debian", "", "", "", Preemption::Full),
            (DYNAMIC, "", "quiet", "", Preemption::Unknown),
            (DYNAMIC, "", "quiet", FULL, Preemption::Full),
            (DYNAMIC, "", "preempt=none", FULL, Preemption::None),
            (
                DYNAMIC,
                "",
                "preempt=none preempt=lazy",
                "",
                Preemption::Full,
            ),
            (
                DYNAMIC,
                "none (voluntary) full\n",
                "preempt=full",
                FULL,
                Preemption::None,
            ),
            (DYNAMIC, "full (lazy)\n", "", "", Preemption::Full),
            (
                DYNAMIC,
                "",
                "",
                "CONFIG_PREEMPT_BUILD=y\nCONFIG_PREEMPT_VOLUNTARY=y\nCONFIG_PREEMPTION=y\n",
                Preemption::None,
            ),
        ];
        for (version, in_force, parameters, config, expected) in rows {
            assert_eq!(
                Preemption::of(version, in_force, parameters, config),
                expected,
                "{version}, {in_force}, {parameters}, {config}"
            );
        }
    }
}
