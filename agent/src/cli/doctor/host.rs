//! Whether the host lets the agent know, act and keep its records.

use super::Check;
use crate::config::{PRESETS, ProcDevices};
use crate::identity::layout::{Flavour, Layout, LayoutError};
use crate::sensors::sees_kernel_pids;
use rustix::fs::{Access, StatVfsMountFlags, access, statvfs};
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What acting on other users' processes and cgroups takes: name and bit.
const ACTING: &[(&str, u32)] = &[
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_KILL", 5),
    ("CAP_SYS_PTRACE", 19),
];

/// Whether other processes can be known and acted on.
pub(super) fn processes() -> Vec<Check> {
    let mut checks = Vec::new();
    let name = "process numbers";
    checks.push(if sees_kernel_pids() {
        Check::ok(name, "the kernel's own (initial PID namespace)")
    } else {
        Check::missing(
            name,
            "this is another PID namespace than the kernel's own",
            "run it on the host, or in a container with --pid=host",
        )
    });
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    checks.push(acting(&status));
    checks
}

fn acting(status: &str) -> Check {
    let name = "acting on others";
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    let lacking: Vec<&str> = ACTING
        .iter()
        .filter(|(_, bit)| effective >> bit & 1 == 0)
        .map(|(capability, _)| *capability)
        .collect();
    if lacking.is_empty() {
        return Check::ok(name, "permitted");
    }
    Check::warn(
        name,
        format!(
            "other users' processes are out of reach without {}",
            lacking.join(", ")
        ),
        "run it as root, or add these capabilities",
    )
}

/// Which hierarchy gives the ids, and which actions it allows.
pub(super) fn cgroups(layout: &Result<Layout, LayoutError>) -> Vec<Check> {
    let layout = match layout {
        Ok(layout) => layout,
        Err(error) => {
            return vec![Check::missing(
                "cgroups",
                error.to_string(),
                "mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd",
            )];
        }
    };
    let flavour = match layout.flavour {
        Flavour::V1 => "v1",
        Flavour::V2 => "v2",
        Flavour::Hybrid => "hybrid (v1 controllers beside a v2 tree)",
    };
    vec![
        Check::ok(
            "cgroups",
            format!(
                "{flavour}; workloads are the cgroups below {}",
                layout.id_root.display()
            ),
        ),
        writable(&layout.id_root),
        throttle(layout),
        freeze(layout),
        kill(layout),
    ]
}

fn writable(root: &Path) -> Check {
    let name = "cgroups writable";
    let read_only = statvfs(root).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::RDONLY));
    if !read_only && access(root, Access::WRITE_OK).is_ok() {
        return Check::ok(name, root.display().to_string());
    }
    Check::warn(
        name,
        format!(
            "{} cannot be written to: the agent can only watch",
            root.display()
        ),
        "run it as root, outside of containers or with the host's cgroups mounted read-write",
    )
}

/// CPU weight and quota.
fn throttle(layout: &Layout) -> Check {
    let name = "throttle";
    if layout.flavour == Flavour::V2 {
        let read = |file: &str| fs::read_to_string(layout.id_root.join(file)).unwrap_or_default();
        let has = |file: &str| read(file).split_whitespace().any(|word| word == "cpu");
        return if has("cgroup.subtree_control") || has("cpu.stat") {
            Check::ok(name, "CPU quota (cpu.max) and weight (cpu.weight)")
        } else if has("cgroup.controllers") {
            Check::warn(
                name,
                "the cpu controller is there but not given to the cgroups below the root",
                format!(
                    "echo +cpu > {}/cgroup.subtree_control",
                    layout.id_root.display()
                ),
            )
        } else {
            Check::warn(
                name,
                "the cpu controller is missing",
                "boot a kernel with CONFIG_CFS_BANDWIDTH, without cgroup_disable=cpu",
            )
        };
    }
    let has = |file: &str| layout.id_root.join(file).exists();
    match (has("cpu.cfs_quota_us"), has("cpu.shares")) {
        (true, true) => Check::ok(name, "CPU quota (cpu.cfs_quota_us) and weight (cpu.shares)"),
        (false, true) => Check::warn(
            name,
            "only weight (cpu.shares): no CPU quota",
            "boot a kernel with CONFIG_CFS_BANDWIDTH=y",
        ),
        _ => Check::warn(
            name,
            "neither quota nor weight",
            "boot a kernel with CONFIG_FAIR_GROUP_SCHED=y and CONFIG_CFS_BANDWIDTH=y",
        ),
    }
}

fn freeze(layout: &Layout) -> Check {
    let name = "freeze";
    if layout.flavour == Flavour::V2 {
        return Check::ok(name, "cgroup.freeze");
    }
    match layout.controllers.get("freezer") {
        Some(mount) => Check::ok(name, format!("v1 freezer at {}", mount.display())),
        None => Check::warn(
            name,
            "the v1 freezer is not mounted: nothing can be frozen",
            "mkdir -p /sys/fs/cgroup/freezer && mount -t cgroup -o freezer none /sys/fs/cgroup/freezer",
        ),
    }
}

fn kill(layout: &Layout) -> Check {
    let name = "kill";
    match (layout.flavour, layout.controllers.contains_key("freezer")) {
        (Flavour::V2, _) => Check::ok(name, "cgroup.kill: whole workloads at once"),
        (_, true) => Check::ok(name, "freeze, signal every process, thaw"),
        (_, false) => Check::warn(
            name,
            "process by process only: one that forks fast may escape",
            "mount the v1 freezer",
        ),
    }
}

/// Pressure-stall information.
pub(super) fn pressure() -> Check {
    let name = "pressure (PSI)";
    // With psi=0 the files are there but reading fails.
    if fs::read_to_string("/proc/pressure/memory").is_ok() {
        return Check::ok(name, "/proc/pressure");
    }
    Check::warn(
        name,
        "this kernel does not tell pressure",
        "boot with psi=1 (needs CONFIG_PSI=y)",
    )
}

/// Drivers of known devices, and their nodes.
pub(super) fn gpus() -> Check {
    let name = "GPUs";
    let devices = ProcDevices::read().unwrap_or_default();
    let drivers: Vec<String> = PRESETS
        .iter()
        .filter_map(|preset| {
            Some(format!(
                "{} (major {})",
                preset.name,
                devices.major(preset.driver)?
            ))
        })
        .collect();
    if drivers.is_empty() {
        return Check::warn(
            name,
            "no known driver is loaded: driver signals stay silent until one is",
            "load the driver, or name another device in [[devices]]",
        );
    }
    let nodes = nodes(Path::new("/dev")) + nodes(Path::new("/dev/dri"));
    Check::ok(
        name,
        format!("{}; {nodes} device node(s)", drivers.join(", ")),
    )
}

fn nodes(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let known = |name: &str| {
        ["nvidia", "kfd", "card", "renderD"]
            .iter()
            .any(|p| name.starts_with(p))
    };
    entries
        .flatten()
        .filter(|entry| known(&entry.file_name().to_string_lossy()))
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_char_device()))
        .count()
}

/// Whether a folder can be written to, or made.
pub(super) fn folder(name: &'static str, path: &Path) -> Check {
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    let place = existing.unwrap_or(Path::new("/"));
    let shown = path.display();
    if !place.is_dir() {
        return Check::missing(
            name,
            format!("{} is not a folder", place.display()),
            "remove it, or name another folder in the configuration",
        );
    }
    if access(place, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        return Check::missing(
            name,
            format!("{shown} cannot be written to"),
            "run it as root, or name another folder in the configuration",
        );
    }
    if place == path {
        Check::ok(name, shown.to_string())
    } else {
        Check::ok(name, format!("{shown} (the agent makes it)"))
    }
}

/// Whether an agent runs. Not in order or out of order: good to know.
pub(super) fn agent(socket: &Path) -> Check {
    let running = UnixStream::connect(socket).is_ok();
    Check::ok("agent", if running { "running" } else { "not running" })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Status;
    use super::*;

    fn layout(text: &str) -> Result<Layout, LayoutError> {
        Layout::from_mountinfo(text)
    }

    fn status(checks: &[Check], name: &str) -> Status {
        checks
            .iter()
            .find(|check| check.name == name)
            .unwrap()
            .status
    }

    #[test]
    fn what_the_hierarchy_allows_is_told_for_each_flavour() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        let v2 = layout(&format!("1 2 0:9 / {root} rw - cgroup2 cgroup2 rw\n"));
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        assert_eq!(status(&cgroups(&v2), "throttle"), Status::Warn);
        write("cgroup.controllers", "cpuset cpu io\n");
        let check = cgroups(&v2).remove(2);
        assert!(check.remedy.unwrap().starts_with("echo +cpu > "));
        write("cgroup.subtree_control", "cpu\n");
        assert_eq!(status(&cgroups(&v2), "throttle"), Status::Ok);
        assert_eq!(status(&cgroups(&v2), "kill"), Status::Ok);

        let v1 = format!("1 2 0:9 / {root} rw - cgroup cgroup rw,cpu\n");
        let bare = cgroups(&layout(&v1));
        assert_eq!(status(&bare, "throttle"), Status::Warn);
        assert_eq!(status(&bare, "freeze"), Status::Warn);
        write("cpu.shares", "1024");
        write("cpu.cfs_quota_us", "-1");
        let freezer = format!("{v1}3 2 0:8 / /fr rw - cgroup cgroup rw,freezer\n");
        let whole = cgroups(&layout(&freezer));
        assert!(
            whole.iter().all(|check| check.status == Status::Ok),
            "{whole:?}"
        );
        assert_eq!(cgroups(&layout(""))[0].status, Status::Missing);
    }

    #[test]
    fn folders_need_not_exist_but_their_place_must_be_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(folder("f", dir.path()).status, Status::Ok);
        assert!(
            folder("f", &dir.path().join("a/b"))
                .detail
                .contains("the agent makes it")
        );
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        assert_eq!(folder("f", &file.join("a")).status, Status::Missing);
    }

    #[test]
    fn lacking_capabilities_are_named() {
        assert_eq!(acting("CapEff:\t000001ffffffffff\n").status, Status::Ok);
        let check = acting("CapEff:\t0000000000000002\n");
        assert!(
            check.detail.ends_with("without CAP_KILL, CAP_SYS_PTRACE"),
            "{check:?}"
        );
        assert_eq!(acting("").status, Status::Warn);
    }

    #[test]
    fn looking_at_this_host_never_fails_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(processes().len(), 2);
        for check in [pressure(), gpus(), agent(&dir.path().join("none"))] {
            assert_eq!(check.remedy.is_some(), check.status != Status::Ok);
        }
        folder("f", &dir.path().join("x"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
