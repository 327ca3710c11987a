//! Who must never be acted on.
//!
//! Invariants:
//! - Matched by executable path, systemd unit or cgroup path, never by a name that a process
//!   gives itself: built-in executables count only in directories that belong to the system,
//!   units only where every cgroup above them is a slice, so that a delegated subtree cannot
//!   name itself `sshd.service`.
//! - One protected member vetoes the whole target; a member whose executable cannot be told is
//!   protected; so are the root cgroup and what lies outside the agent's cgroup namespace.
//!
//! Known limit: a container that ships its own `/usr/sbin/sshd` is vetoed too, because the path
//! alone does not tell whose file system it is on. That errs on the side of not acting.

mod pattern;

use crate::{Member, Target, TargetFacts};
use pattern::{Pattern, glob};
use std::collections::BTreeSet;
use thiserror::Error;

/// File names (globs) of executables protected by default, in [`SYSTEM_DIRECTORIES`].
pub const DEFAULT_EXECUTABLES: &[&str] = &[
    "systemd*",
    "dbus-daemon",
    "dbus-broker*",
    "sshd",
    "sshd-session",
    "sshd-auth",
    "containerd",
    "containerd-shim*",
    "dockerd",
    "crio",
    "conmon",
    "conmonrs",
    "runc",
    "crun",
    "podman",
    "kubelet",
    "k3s",
    "rke2",
    "nvidia-persistenced",
    "nvidia-fabricmanager",
    "nv-fabricmanager",
    "nv-hostengine",
    "dcgm*",
];

/// Directories (globs) in which the default executables are believed to be what they are called.
pub const SYSTEM_DIRECTORIES: &[&str] = &[
    "/bin",
    "/sbin",
    "/lib/*",
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
    "/usr/lib/*",
    "/usr/libexec",
    "/usr/libexec/*",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/usr/local/lib/*",
    "/opt/bin",
    "/opt/*/bin",
    "/home/kubernetes/bin",
    "/var/lib/rancher/*/data/*/bin",
    "/snap/*/*/bin",
    "/snap/*/*/usr/bin",
    "/nix/store/*/bin",
    "/nix/store/*/lib/systemd",
];

/// Systemd units (globs) protected by default, with all below them.
pub const DEFAULT_UNITS: &[&str] = &[
    "init.scope",
    "systemd-journald*.service",
    "systemd-logind.service",
    "systemd-udevd.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "systemd-machined.service",
    "systemd-oomd.service",
    "systemd-homed.service",
    "systemd-userdbd.service",
    "dbus.service",
    "dbus-broker.service",
    "ssh.service",
    "ssh@*.service",
    "sshd.service",
    "sshd@*.service",
    "containerd.service",
    "docker.service",
    "crio.service",
    "podman.service",
    "libpod-conmon-*.scope",
    "crio-conmon-*.scope",
    "kubelet.service",
    "nvidia-persistenced.service",
    "nvidia-fabricmanager.service",
    "nvidia-dcgm.service",
    "dcgm.service",
];

/// Cgroups protected by default as a whole; what lies below them is not, by this rule.
pub const DEFAULT_WHOLE_CGROUPS: &[&str] = &["/", "/system.slice", "/user.slice", "/init"];

/// Why a pattern cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProtectError {
    /// It is empty, or only stars and slashes, and would protect everything.
    #[error("protecting {0:?} would protect everything")]
    Everything(String),
    /// A cgroup path starts with `/` and has no `..`.
    #[error("{0:?} is not a cgroup path: it must start with / and contain no ..")]
    NotACgroup(String),
    /// A unit is one component of a path.
    #[error("{0:?} is not the name of a systemd unit: it must not contain /")]
    NotAUnit(String),
}

/// The rule that protects a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protection {
    /// In words, with the process or cgroup that it protects.
    pub rule: String,
}

/// Who must never be acted on.
#[derive(Clone, Debug, Default)]
pub struct ProtectList {
    own_pids: BTreeSet<u32>,
    own_exe: Option<String>,
    executables: Vec<Pattern>,
    units: Vec<Pattern>,
    cgroups: Vec<String>,
}

impl ProtectList {
    /// The built-in defaults, the agent and its ancestors (`own_pids`, itself included), and
    /// whatever runs the agent's own executable, such as its keeper.
    pub fn new(own_pids: &[u32], own_exe: Option<&str>) -> Self {
        Self {
            own_pids: own_pids.iter().copied().collect(),
            own_exe: own_exe
                .map(|exe| undeleted(exe).to_owned())
                .filter(|exe| !exe.is_empty()),
            ..Self::default()
        }
    }

    /// Protects executables: an absolute path or the trailing components of one, with `*` within
    /// a component and `**` across.
    pub fn add_exe(&mut self, pattern: &str) -> Result<(), ProtectError> {
        self.executables.push(Pattern::new(meaningful(pattern)?));
        Ok(())
    }

    /// Protects a systemd unit and what is below it, with `*`.
    pub fn add_unit(&mut self, pattern: &str) -> Result<(), ProtectError> {
        if pattern.contains('/') {
            return Err(ProtectError::NotAUnit(pattern.to_owned()));
        }
        self.units.push(Pattern::new(meaningful(pattern)?));
        Ok(())
    }

    /// Protects a cgroup, what is below it, and what contains it.
    pub fn add_cgroup(&mut self, path: &str) -> Result<(), ProtectError> {
        if !path.starts_with('/') || components(path).any(|part| part == "..") {
            return Err(ProtectError::NotACgroup(path.to_owned()));
        }
        let path: Vec<&str> = components(path).collect();
        if path.is_empty() {
            return Err(ProtectError::Everything("/".to_owned()));
        }
        self.cgroups.push(path.join("/"));
        Ok(())
    }

    /// All rules, for people: the built-in ones first.
    pub fn rules(&self) -> Vec<String> {
        let own_pids = self
            .own_pids
            .iter()
            .map(|pid| format!("pid {pid} (the agent's line)"));
        let own_exe = self
            .own_exe
            .iter()
            .map(|exe| format!("exe {exe} (the agent's)"));
        let named = |sort: &'static str, names: &'static [&'static str]| {
            names
                .iter()
                .map(move |name| format!("{sort} {name} (built-in)"))
        };
        ["pid 1 (built-in)", "kernel threads (built-in)"]
            .into_iter()
            .map(ToOwned::to_owned)
            .chain(own_pids)
            .chain(own_exe)
            .chain(named("exe", DEFAULT_EXECUTABLES))
            .chain(named("unit", DEFAULT_UNITS))
            .chain(named("cgroup as a whole", DEFAULT_WHOLE_CGROUPS))
            .chain(
                self.executables
                    .iter()
                    .map(|pattern| format!("exe {}", pattern.text())),
            )
            .chain(
                self.units
                    .iter()
                    .map(|pattern| format!("unit {}", pattern.text())),
            )
            .chain(self.cgroups.iter().map(|path| format!("cgroup /{path}")))
            .collect()
    }

    /// The rule that protects the target, if any.
    pub fn check(&self, target: &Target, facts: &TargetFacts) -> Option<Protection> {
        let rule = match target {
            Target::Process(process) => self.pid_rule(process.pid),
            Target::Workload(_) => None,
        };
        rule.or_else(|| {
            facts
                .cgroup
                .as_deref()
                .and_then(|cgroup| self.cgroup_rule(cgroup))
        })
        .or_else(|| {
            facts
                .members
                .iter()
                .find_map(|member| self.member_rule(member))
        })
        .map(|rule| Protection { rule })
    }

    fn pid_rule(&self, pid: u32) -> Option<String> {
        if pid <= 1 {
            return Some(format!("pid {pid} is the system's first process"));
        }
        self.own_pids
            .contains(&pid)
            .then(|| format!("pid {pid} is the agent or an ancestor of it"))
    }

    fn member_rule(&self, member: &Member) -> Option<String> {
        let pid = member.process.pid;
        let exe = undeleted(&member.exe);
        if let Some(rule) = self.pid_rule(pid) {
            return Some(rule);
        }
        if member.kernel_thread {
            return Some(format!("pid {pid} is a kernel thread"));
        }
        if exe.is_empty() {
            return Some(format!("the executable of pid {pid} is unknown"));
        }
        if self.own_exe.as_deref() == Some(exe) {
            return Some(format!("pid {pid} runs the agent's executable"));
        }
        if let Some(name) = built_in(exe) {
            return Some(format!("pid {pid} runs {exe} (built-in rule {name})"));
        }
        self.executables
            .iter()
            .find(|pattern| pattern.matches_path(exe))
            .map(|pattern| format!("pid {pid} runs {exe} (configured rule {})", pattern.text()))
    }

    fn cgroup_rule(&self, cgroup: &str) -> Option<String> {
        let path: Vec<&str> = components(cgroup).collect();
        if path.contains(&"..") {
            return Some(format!("cgroup {cgroup} is outside the agent's namespace"));
        }
        let joined = path.join("/");
        if DEFAULT_WHOLE_CGROUPS
            .iter()
            .any(|whole| whole.trim_start_matches('/') == joined)
        {
            return Some(format!(
                "cgroup /{joined} is protected as a whole (built-in)"
            ));
        }
        if let Some(unit) = self.unit_rule(&path) {
            return Some(format!("cgroup /{joined} belongs to unit {unit}"));
        }
        self.cgroups
            .iter()
            .find(|protected| within(&joined, protected) || within(protected, &joined))
            .map(|protected| format!("cgroup /{joined}: /{protected} is protected (configured)"))
    }

    /// The first component that is not a slice is the unit; below it names are not systemd's.
    fn unit_rule<'a>(&self, path: &[&'a str]) -> Option<&'a str> {
        let unit = path.iter().copied().find(|part| !glob("*.slice", part));
        let slices = path
            .iter()
            .copied()
            .take_while(|part| glob("*.slice", part));
        let configured = |part: &&str| self.units.iter().any(|unit| glob(unit.text(), part));
        let default = |part: &&str| DEFAULT_UNITS.iter().any(|unit| glob(unit, part));
        unit.filter(|part| default(part) || configured(part))
            .or_else(|| slices.into_iter().find(configured))
    }
}

fn built_in(exe: &str) -> Option<&'static str> {
    let (directory, name) = exe.rsplit_once('/')?;
    if !SYSTEM_DIRECTORIES
        .iter()
        .any(|trusted| glob(trusted, directory))
    {
        return None;
    }
    DEFAULT_EXECUTABLES
        .iter()
        .copied()
        .find(|pattern| glob(pattern, name))
}

/// The path of an executable that was replaced while it runs: the kernel appends " (deleted)".
fn undeleted(exe: &str) -> &str {
    exe.strip_suffix(" (deleted)").unwrap_or(exe)
}

fn meaningful(pattern: &str) -> Result<&str, ProtectError> {
    if pattern
        .chars()
        .all(|letter| matches!(letter, '*' | '/') || letter.is_whitespace())
    {
        return Err(ProtectError::Everything(pattern.to_owned()));
    }
    Ok(pattern)
}

fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
}

fn within(path: &str, ancestor: &str) -> bool {
    path.strip_prefix(ancestor)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
