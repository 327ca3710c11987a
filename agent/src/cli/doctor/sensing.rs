//! Whether the kernel lets the agent see.

use super::Check;
use crate::sensors::{
    AttachReport, Capabilities, HookReport, OLDEST_KERNEL, Preemption, Way, kernel_version,
};
use palisade_abi::Kind;

/// Name of the check for the embedded object, which has an exit code of its own.
pub(super) const OBJECT: &str = "eBPF programs";

/// From here on programs at tracepoints may be preempted.
const TRACEPOINTS_PREEMPTED: (u32, u32) = (7, 0);
const DISTRIBUTION_KERNEL: &str = "boot a stock kernel of Debian 12, Ubuntu 24.04 or later";

/// One check a capability.
pub(super) fn checks(found: &Capabilities, object_bytes: Option<usize>) -> Vec<Check> {
    let mut checks = vec![
        kernel(&found.kernel, &found.machine),
        object(object_bytes),
        privileges(found),
    ];
    checks.push(if found.btf {
        Check::ok("kernel types (BTF)", "/sys/kernel/btf/vmlinux")
    } else {
        Check::missing(
            "kernel types (BTF)",
            "this kernel has no /sys/kernel/btf/vmlinux",
            format!("it needs CONFIG_DEBUG_INFO_BTF=y: {DISTRIBUTION_KERNEL}"),
        )
    });
    for (name, works) in [
        ("ring buffer", &found.ring_buffer),
        ("tracepoints", &found.tracepoints),
    ] {
        checks.push(match works {
            Ok(()) => Check::ok(name, "may be loaded"),
            Err(error) => Check::missing(
                name,
                error.clone(),
                "run as root outside of containers; if that is so already, seccomp, lockdown or \
                 the kernel forbids bpf(2)",
            ),
        });
    }
    checks.push(tracefs(found));
    checks.extend(lockdown(found));
    match &found.trial {
        Some(Ok(report)) => {
            checks.push(preemption(found, report));
            checks.extend(hooks(report));
            checks.push(cuda(&found.cuda_library));
        }
        Some(Err(error)) => checks.push(Check::missing(
            "hooks",
            error.clone(),
            "see the checks above; where they are all in order, this kernel is unlike any known",
        )),
        // The reason is a check of its own: no object, or no privileges.
        None => {}
    }
    checks
}

/// Whether programs may be preempted, where that matters: at functions' entries and returns, and from Linux 7.0 on
/// at tracepoints.
fn preemption(found: &Capabilities, report: &AttachReport) -> Check {
    let name = "preemption";
    let places = report.hooks.iter().filter_map(|it| it.attached.as_deref());
    let trampolines = || {
        places
            .clone()
            .any(|place| place.starts_with(Way::Fexit.name()))
    };
    match found.preemption {
        Preemption::None => Check::ok(name, "none inside the kernel: no program is skipped for it"),
        Preemption::Full if kernel_version(&found.kernel) >= Some(TRACEPOINTS_PREEMPTED) => {
            Check::warn(
                name,
                "the kernel may preempt programs, at tracepoints too, and skips those of others meanwhile",
                "watch the losses by hook-skipped; avoid = [\"fexit\"] below [sensors] spares the opens of model files",
            )
        }
        Preemption::Full if trampolines() => Check::warn(
            name,
            "the kernel may preempt programs at functions' returns (fexit), and skips those of others meanwhile",
            "where hook-skipped losses count, set avoid = [\"fexit\"] below [sensors]",
        ),
        Preemption::Unknown if trampolines() => Check::warn(
            name,
            "chosen at boot, and not to be read here",
            "mount -t debugfs none /sys/kernel/debug, and look again",
        ),
        Preemption::Full | Preemption::Unknown => Check::ok(
            name,
            "no program is at a function's return (fexit), where it would matter",
        ),
    }
}

/// What each hook is attached to, and what policies go without where one is not.
fn hooks(report: &AttachReport) -> Vec<Check> {
    let tried = report.hooks.iter().filter(|hook| hook.wanted);
    tried.map(hook).collect()
}

/// Where CUDA calls could be watched. Nothing is tried: see [`crate::sensors::Capabilities`].
fn cuda(library: &Result<String, String>) -> Check {
    Check::ok(
        "CUDA calls",
        match library {
            Ok(path) => format!("can be watched in {path}; not tried, as that touches its users"),
            Err(error) => error.clone(),
        },
    )
}

fn hook(hook: &HookReport) -> Check {
    let name = format!("hook: {}", hook.name);
    if let Some(place) = &hook.attached {
        let above: Vec<&str> = hook
            .failed
            .iter()
            .map(|(place, _)| place.as_str())
            .collect();
        return Check::ok(
            name,
            if above.is_empty() {
                place.clone()
            } else {
                format!("{place} (instead of {})", above.join(", "))
            },
        );
    }
    if hook.optional {
        return Check::ok(name, "not on this host, and not every host has it");
    }
    let kinds: Vec<&str> = Kind::ALL
        .iter()
        .filter(|kind| hook.kinds & kind.bit() != 0)
        .map(|kind| kind.name())
        .collect();
    let tried: Vec<String> = hook
        .failed
        .iter()
        .map(|(place, reason)| format!("{place}: {reason}"))
        .collect();
    Check::warn(
        name,
        format!(
            "cannot be attached ({}): no {}",
            tried.join("; "),
            kinds.join(", ")
        ),
        format!("policies that subscribe to them stay blind: {DISTRIBUTION_KERNEL}"),
    )
}

fn kernel(release: &str, machine: &str) -> Check {
    let name = "kernel";
    let detail = format!("{release} on {machine}");
    match kernel_version(release) {
        Some(version) if version >= OLDEST_KERNEL => Check::ok(name, detail),
        Some(_) => Check::missing(
            name,
            format!(
                "{detail}: older than {}.{}",
                OLDEST_KERNEL.0, OLDEST_KERNEL.1
            ),
            DISTRIBUTION_KERNEL,
        ),
        None => Check::warn(
            name,
            format!("{detail}: unknown version"),
            DISTRIBUTION_KERNEL,
        ),
    }
}

fn object(bytes: Option<usize>) -> Check {
    match bytes {
        Some(bytes) => Check::ok(OBJECT, format!("built in, {} KiB", bytes / 1024)),
        None => Check::missing(
            OBJECT,
            "this binary was built without them",
            "build it with ./x build, which gets the eBPF toolchain",
        ),
    }
}

fn privileges(found: &Capabilities) -> Check {
    let name = "privileges";
    if found.privileged {
        return Check::ok(name, "eBPF programs may be loaded");
    }
    Check::missing(
        name,
        "this user may not load eBPF programs",
        "run it as root (sudo palisade …), or with CAP_BPF and CAP_PERFMON",
    )
}

fn tracefs(found: &Capabilities) -> Check {
    let name = "tracefs";
    match (&found.tracefs, found.syscall_tracepoints) {
        (Some(place), Some(true) | None) => Check::ok(name, format!("mounted at {place}")),
        (Some(place), Some(false)) => Check::missing(
            name,
            format!("{place} has no tracepoints of system calls"),
            format!("the kernel needs CONFIG_FTRACE_SYSCALLS=y: {DISTRIBUTION_KERNEL}"),
        ),
        (None, _) if found.privileged => {
            Check::ok(name, "not mounted; the agent mounts it when it starts")
        }
        (None, _) => Check::warn(
            name,
            "not mounted, or not readable by this user",
            "mount -t tracefs tracefs /sys/kernel/tracing",
        ),
    }
}

fn lockdown(found: &Capabilities) -> Option<Check> {
    let mode = found.lockdown.as_deref()?;
    let name = "lockdown";
    // Integrity leaves reading kernel memory to eBPF; confidentiality does not.
    Some(if mode == "confidentiality" {
        Check::missing(
            name,
            "mode confidentiality: eBPF may not read kernel memory",
            "boot with lockdown=integrity or without",
        )
    } else {
        Check::ok(name, format!("mode {mode}"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn good() -> Capabilities {
        Capabilities {
            kernel: "6.1.0-x".into(),
            machine: "x86_64".into(),
            privileged: true,
            preemption: Preemption::None,
            btf: true,
            tracefs: Some("/sys/kernel/tracing".into()),
            syscall_tracepoints: Some(true),
            ring_buffer: Ok(()),
            tracepoints: Ok(()),
            trial: Some(Ok(AttachReport {
                kinds: Kind::Exec.bit(),
                hooks: vec![
                    HookReport {
                        name: "exec".into(),
                        kinds: Kind::Exec.bit(),
                        wanted: true,
                        attached: Some("tp_btf:sched_process_exec".into()),
                        optional: false,
                        failed: Vec::new(),
                    },
                    HookReport {
                        name: "rare".into(),
                        kinds: 0,
                        wanted: true,
                        attached: None,
                        optional: true,
                        failed: vec![("tp:rare".into(), "ENOENT".into())],
                    },
                ],
                unavailable: 0,
            })),
            cuda_library: Ok("/usr/lib/libcuda.so.1".into()),
            unprivileged_bpf_disabled: Some(2),
            lockdown: Some("none".into()),
        }
    }

    fn with_fexit(found: &mut Capabilities, preemption: Preemption) {
        found.preemption = preemption;
        if let Some(Ok(report)) = &mut found.trial {
            report.hooks[0].attached = Some("fexit:__x64_sys_mmap".into());
        }
    }

    #[test]
    fn every_lack_has_its_check_and_a_remedy() {
        type Row = (&'static str, fn(&mut Capabilities), Status);
        let rows: &[Row] = &[
            ("kernel", |_| {}, Status::Ok),
            ("kernel", |c| c.kernel = "5.15.0".into(), Status::Missing),
            ("kernel", |c| c.kernel = "6.1.0-x".into(), Status::Ok),
            ("kernel", |c| c.kernel = "5.4.0-1".into(), Status::Missing),
            ("kernel", |c| c.kernel = "next".into(), Status::Warn),
            ("preemption", |_| {}, Status::Ok),
            (
                "preemption",
                |c| c.preemption = Preemption::Full,
                Status::Ok,
            ),
            (
                "preemption",
                |c| with_fexit(c, Preemption::Full),
                Status::Warn,
            ),
            (
                "preemption",
                |c| with_fexit(c, Preemption::Unknown),
                Status::Warn,
            ),
            (
                "preemption",
                |c| with_fexit(c, Preemption::None),
                Status::Ok,
            ),
            (
                "preemption",
                |c| {
                    c.preemption = Preemption::Full;
                    c.kernel = "7.2.1".into();
                },
                Status::Warn,
            ),
            ("privileges", |c| c.privileged = false, Status::Missing),
            ("kernel types (BTF)", |c| c.btf = false, Status::Missing),
            (
                "ring buffer",
                |c| c.ring_buffer = Err("EPERM".into()),
                Status::Missing,
            ),
            (
                "tracepoints",
                |c| c.tracepoints = Err("EPERM".into()),
                Status::Missing,
            ),
            (
                "hooks",
                |c| c.trial = Some(Err("no".into())),
                Status::Missing,
            ),
            ("hook: exec", |_| {}, Status::Ok),
            ("hook: rare", |_| {}, Status::Ok),
            (
                "hook: exec",
                |c| {
                    if let Some(Ok(report)) = &mut c.trial {
                        report.hooks[0].attached = None;
                    }
                },
                Status::Warn,
            ),
            ("tracefs", |c| c.tracefs = None, Status::Ok),
            (
                "tracefs",
                |c| c.syscall_tracepoints = Some(false),
                Status::Missing,
            ),
            (
                "lockdown",
                |c| c.lockdown = Some("integrity".into()),
                Status::Ok,
            ),
            (
                "lockdown",
                |c| c.lockdown = Some("confidentiality".into()),
                Status::Missing,
            ),
        ];
        for (name, change, status) in rows {
            let mut found = good();
            change(&mut found);
            let checks = checks(&found, Some(1));
            let check = checks.iter().find(|check| check.name == *name);
            assert_eq!(check.map(|check| check.status), Some(*status), "{name}");
            for check in &checks {
                assert_eq!(
                    check.remedy.is_some(),
                    check.status != Status::Ok,
                    "{check:?}"
                );
            }
        }
    }
}
