//! The demo's own cgroups: made, read and removed here, on v1, hybrid and v2 hosts.
//!
//! Invariants:
//! - Only directories that this value made are written to, and each of them is removed by it.
//! - CPU limits are read, never set: setting them is what the agent is to show.

use crate::identity::layout::{Flavour, Layout};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Begin of the names of demo cgroups; the demo's pid follows.
pub(super) const PREFIX: &str = "palisade-demo-";
/// How long a cgroup may take to become empty after its processes were ended.
const EMPTY_WITHIN: Duration = Duration::from_secs(3);

/// The demo's cgroups, below one of their own.
#[derive(Debug)]
pub(super) struct Cgroups {
    layout: Layout,
    /// `/palisade-demo-PID`.
    base: String,
    /// Top directory in each hierarchy.
    tops: Vec<PathBuf>,
    names: Vec<&'static str>,
    /// The demo let the root of the v2 tree hand out `cpu`, and takes that back.
    enabled_cpu: bool,
}

impl Cgroups {
    /// Makes `/palisade-demo-PID/NAME` for each name, in every hierarchy that matters.
    pub(super) fn create(layout: Layout, names: &[&'static str]) -> io::Result<Self> {
        let base = format!("/{PREFIX}{}", std::process::id());
        let mounts: BTreeSet<PathBuf> = match layout.flavour {
            Flavour::V2 => layout.unified.iter().cloned().collect(),
            // `cpuacct` measures, `freezer` is there for containments; `cpu` gives the ids.
            Flavour::V1 | Flavour::Hybrid => ["cpu", "cpuacct", "freezer"]
                .iter()
                .filter_map(|controller| layout.controllers.get(*controller).cloned())
                .collect(),
        };
        let tops = mounts.iter().map(|mount| mount.join(&base[1..])).collect();
        let mut cgroups = Self {
            layout,
            base,
            tops,
            names: names.to_vec(),
            enabled_cpu: false,
        };
        // On failure the value is dropped, which removes what was made so far.
        cgroups.make()?;
        Ok(cgroups)
    }

    fn make(&mut self) -> io::Result<()> {
        let v2 = self.layout.flavour == Flavour::V2;
        if v2 {
            let control = self.layout.id_root.join("cgroup.subtree_control");
            if !has_word(&read(&control)?, "cpu") {
                write(&control, "+cpu")?;
                self.enabled_cpu = true;
            }
        }
        for top in &self.tops {
            named(top, fs::create_dir(top))?;
            if v2 {
                write(&top.join("cgroup.subtree_control"), "+cpu")?;
            }
            for name in &self.names {
                let dir = top.join(name);
                named(&dir, fs::create_dir(&dir))?;
            }
        }
        // What else runs on this machine is not part of the demo: its share of the demo's CPU
        // becomes a tenth. Between the demo's own cgroups shares stay equal.
        let (file, weight) = if v2 {
            ("cpu.weight", "1000")
        } else {
            ("cpu.shares", "10240")
        };
        write(&self.layout.id_dir(&self.base).join(file), weight)
    }

    /// Path of the cgroup that holds the others, as the configuration has it.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// Path of one, as the audit log has it.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.base)
    }

    /// Its directory in each hierarchy: what a process must join.
    pub(super) fn dirs(&self, name: &str) -> Vec<PathBuf> {
        self.tops.iter().map(|top| top.join(name)).collect()
    }

    /// The file that holds its CPU ceiling.
    pub(super) fn quota_file(&self, name: &str) -> PathBuf {
        let file = match self.layout.flavour {
            Flavour::V2 => "cpu.max",
            Flavour::V1 | Flavour::Hybrid => "cpu.cfs_quota_us",
        };
        self.layout.id_dir(&self.path(name)).join(file)
    }

    /// Its CPU ceiling as the kernel has it now.
    pub(super) fn quota(&self, name: &str) -> io::Result<Quota> {
        let file = self.quota_file(name);
        let text = read(&file)?;
        let period = match self.layout.flavour {
            Flavour::V2 => None,
            Flavour::V1 | Flavour::Hybrid => Some(read(&file.with_file_name("cpu.cfs_period_us"))?),
        };
        Ok(Quota::parse(&text, period.as_deref()))
    }

    /// CPU time that it has used so far.
    pub(super) fn cpu_time(&self, name: &str) -> io::Result<Duration> {
        let path = self.path(name);
        if self.layout.flavour != Flavour::V2
            && let Some(dir) = self.layout.controllers.get("cpuacct")
        {
            let text = read(&dir.join(&path[1..]).join("cpuacct.usage"))?;
            return Ok(Duration::from_nanos(text.trim().parse().unwrap_or(0)));
        }
        let text = read(&self.layout.id_dir(&path).join("cpu.stat"))?;
        let usec = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        Ok(Duration::from_micros(usec.unwrap_or(0)))
    }

    /// Ends what still runs in them and removes them. Answers with what could not be removed.
    pub(super) fn remove(&mut self) -> Vec<PathBuf> {
        let deadline = Instant::now() + EMPTY_WITHIN;
        let mut left;
        loop {
            left = Vec::new();
            for top in &self.tops {
                for dir in self
                    .names
                    .iter()
                    .map(|name| top.join(name))
                    .chain([top.clone()])
                {
                    if dir.exists() && fs::remove_dir(&dir).is_err() {
                        end_members(&dir);
                        left.push(dir);
                    }
                }
            }
            if left.is_empty() || Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.enabled_cpu && left.is_empty() {
            // Refused while somebody else came to need it: then it is theirs now.
            let _ = write(&self.layout.id_root.join("cgroup.subtree_control"), "-cpu");
            self.enabled_cpu = false;
        }
        left
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes empty cgroups of demos that were killed before they could clean up.
pub(super) fn sweep(layout: &Layout) {
    let mounts: BTreeSet<&PathBuf> = layout
        .controllers
        .values()
        .chain(layout.unified.as_ref())
        .collect();
    for mount in mounts {
        let Ok(entries) = fs::read_dir(mount) else {
            continue;
        };
        for top in entries
            .flatten()
            .filter(|entry| abandoned(&entry.file_name().to_string_lossy()))
        {
            let inner = fs::read_dir(top.path()).into_iter().flatten().flatten();
            for dir in inner.filter(|entry| entry.path().is_dir()) {
                // Only empty ones go; a refusal means that somebody lives there.
                let _ = fs::remove_dir(dir.path());
            }
            let _ = fs::remove_dir(top.path());
        }
    }
}

/// The name is of a demo whose process is gone.
pub(super) fn abandoned(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .and_then(|pid| pid.parse::<u32>().ok())
        .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// A ceiling on CPU time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Quota {
    /// As the file has it.
    pub(super) text: String,
    /// Thousandths of one CPU; `None`: no ceiling.
    pub(super) permille: Option<u32>,
}

impl Quota {
    /// From `cpu.max` ("5000 100000"), or `cpu.cfs_quota_us` with its period.
    fn parse(text: &str, period: Option<&str>) -> Self {
        let text = text.trim();
        let mut words = text.split_whitespace().chain(period.map(str::trim));
        let quota = words.next().and_then(|word| word.parse::<u64>().ok());
        let period = words
            .next()
            .and_then(|word| word.parse::<u64>().ok())
            .filter(|p| *p > 0);
        let permille = quota
            .zip(period)
            .map(|(quota, period)| (quota * 1000 / period) as u32);
        Self {
            text: text.to_owned(),
            permille,
        }
    }
}

/// SIGKILL to each process of a cgroup of ours, pinned before it is checked.
fn end_members(dir: &Path) {
    let members = || read(&dir.join("cgroup.procs")).unwrap_or_default();
    for pid in members()
        .lines()
        .filter_map(|line| line.parse::<i32>().ok())
    {
        let Some(pinned) =
            Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        else {
            continue;
        };
        if members().lines().any(|line| line.parse() == Ok(pid)) {
            // It fails only if the process has just ended.
            let _ = pidfd_send_signal(&pinned, Signal::KILL);
        }
    }
}

fn has_word(text: &str, word: &str) -> bool {
    text.split_whitespace().any(|other| other == word)
}

fn read(path: &Path) -> io::Result<String> {
    named(path, fs::read_to_string(path))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    // Never created: a missing file is a kernel that lacks the knob.
    let file = fs::OpenOptions::new().write(true).open(path);
    named(
        path,
        file.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes())),
    )
}

fn named<T>(path: &Path, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_read_in_thousandths_of_a_cpu() {
        let table = [
            ("5000 100000\n", None, Some(50)),
            ("max 100000\n", None, None),
            ("5000\n", Some("100000\n"), Some(50)),
            ("-1\n", Some("100000\n"), None),
            ("20000\n", Some("50000\n"), Some(400)),
            ("1\n", Some("0\n"), None),
            ("", None, None),
        ];
        for (text, period, permille) in table {
            assert_eq!(
                Quota::parse(text, period).permille,
                permille,
                "{text:?} {period:?}"
            );
        }
    }

    #[test]
    fn only_dead_demos_are_abandoned() {
        assert!(!abandoned(&format!("{PREFIX}{}", std::process::id())));
        // Above the largest pid that a kernel can give out (PID_MAX_LIMIT, 4 Mi).
        assert!(abandoned(&format!("{PREFIX}4194305")));
        assert!(!abandoned(&format!("{PREFIX}kept-4194305")));
        assert!(!abandoned("ml-4194305"));
    }
}
