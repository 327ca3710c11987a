//! Where the cgroup hierarchies are mounted, and which of them gives workloads their ids.
//!
//! Invariant: the inode of `id_dir(cgroup)` is the number that the eBPF programs put into a
//! record as the workload id: the kernfs id in the v1 `cpu` hierarchy where one is mounted, in
//! the v2 hierarchy otherwise. This file only reads; it never creates, enables or moves a cgroup.

use palisade_core::WorkloadId;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// What kind of host it is, as far as the `cpu` controller goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// `cpu` is a v1 controller and there is no v2 tree.
    V1,
    /// `cpu` belongs to the v2 tree (v1 mounts without `cpu`, like `name=systemd`, do not matter).
    V2,
    /// `cpu` is a v1 controller, and there is a v2 tree too, with or without controllers.
    Hybrid,
}

/// Why the host's cgroups could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The mount table could not be read.
    #[error("reading /proc/self/mountinfo")]
    Read(#[source] io::Error),
    /// There is neither a whole cgroup v2 mount nor a whole v1 mount of `cpu`.
    #[error("neither cgroup v2 nor the v1 cpu controller is mounted with its root")]
    NoHierarchy,
}

/// The mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Kind of host.
    pub flavour: Flavour,
    /// The mount whose directory inodes are workload ids.
    pub id_root: PathBuf,
    /// v1 controller (or `name=…`) -> mount point.
    pub controllers: BTreeMap<String, PathBuf>,
    /// Mount point of the v2 tree.
    pub unified: Option<PathBuf>,
}

impl Layout {
    /// Of this host.
    pub fn detect() -> Result<Self, LayoutError> {
        let text = fs::read_to_string("/proc/self/mountinfo").map_err(LayoutError::Read)?;
        Self::from_mountinfo(&text)
    }

    /// From the text of a `/proc/PID/mountinfo`. Of several mounts of one hierarchy the first
    /// counts; bind mounts of a part of a hierarchy do not count, since the paths of
    /// `/proc/PID/cgroup` would not fit them.
    pub fn from_mountinfo(text: &str) -> Result<Self, LayoutError> {
        let mut controllers = BTreeMap::new();
        let mut unified = None;
        for mount in text.lines().filter_map(Mount::parse) {
            if mount.root != "/" {
                continue;
            }
            match mount.fs_type {
                "cgroup2" => {
                    unified.get_or_insert(mount.point);
                }
                "cgroup" => {
                    for option in mount.options.split(',').filter(|o| is_controller(o)) {
                        controllers
                            .entry(option.to_owned())
                            .or_insert_with(|| mount.point.clone());
                    }
                }
                _ => {}
            }
        }
        let (flavour, id_root) = match (controllers.get("cpu"), &unified) {
            (Some(cpu), None) => (Flavour::V1, cpu.clone()),
            (Some(cpu), Some(_)) => (Flavour::Hybrid, cpu.clone()),
            (None, Some(tree)) => (Flavour::V2, tree.clone()),
            (None, None) => return Err(LayoutError::NoHierarchy),
        };
        Ok(Self {
            flavour,
            id_root,
            controllers,
            unified,
        })
    }

    /// The directory whose inode is the workload id. `cgroup` starts with `/` and is relative to
    /// the mount; `..` components are dropped, so the answer never leaves the mount.
    pub fn id_dir(&self, cgroup: &str) -> PathBuf {
        below(&self.id_root, cgroup)
    }

    /// The directory of `cgroup` in the hierarchy that has `controller`: its v1 mount, else the
    /// v2 tree. `""` asks for the v2 tree. On v1 a workload may have another path in each
    /// hierarchy: take the path from [`Layout::paths_of_pid`].
    pub fn controller_dir(&self, controller: &str, cgroup: &str) -> Option<PathBuf> {
        let mount = self.controllers.get(controller).or(self.unified.as_ref())?;
        Some(below(mount, cgroup))
    }

    /// Id of a cgroup of the id hierarchy.
    pub fn workload_id(&self, cgroup: &str) -> io::Result<WorkloadId> {
        let meta = fs::metadata(self.id_dir(cgroup))?;
        if !meta.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        Ok(WorkloadId(meta.ino()))
    }

    /// Where a process is in the id hierarchy. The path of a removed cgroup ends in
    /// ` (deleted)`, as the kernel writes it.
    pub fn cgroup_of_pid(&self, pid: u32) -> io::Result<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        self.cgroup_from(&text).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("/proc/{pid}/cgroup has no line for the id hierarchy"),
            )
        })
    }

    /// The same from the text of a `/proc/PID/cgroup`.
    pub fn cgroup_from(&self, text: &str) -> Option<String> {
        let key = match self.flavour {
            Flavour::V2 => "",
            Flavour::V1 | Flavour::Hybrid => "cpu",
        };
        parse_paths(text).remove(key)
    }

    /// Where a process is in every hierarchy: controller -> path, `""` for the v2 tree.
    pub fn paths_of_pid(&self, pid: u32) -> io::Result<BTreeMap<String, String>> {
        Ok(parse_paths(&fs::read_to_string(format!(
            "/proc/{pid}/cgroup"
        ))?))
    }
}

fn parse_paths(text: &str) -> BTreeMap<String, String> {
    let mut paths = BTreeMap::new();
    for line in text.lines() {
        // A path may hold colons, a controller list may not (`name=` is refused them).
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(list), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        for controller in list.split(',') {
            paths.insert(controller.to_owned(), path.to_owned());
        }
    }
    paths
}

fn below(mount: &Path, cgroup: &str) -> PathBuf {
    let mut path = mount.to_owned();
    for part in Path::new(cgroup).components() {
        if let Component::Normal(name) = part {
            path.push(name);
        }
    }
    path
}

/// Whether a v1 super block option names a hierarchy's controller rather than a mount option.
fn is_controller(option: &str) -> bool {
    option.starts_with("name=")
        || !(option.is_empty()
            || option.contains('=')
            || matches!(
                option,
                "rw" | "ro"
                    | "none"
                    | "noprefix"
                    | "xattr"
                    | "clone_children"
                    | "cpuset_v2_mode"
                    | "favordynmods"
            ))
}

struct Mount<'a> {
    root: String,
    point: PathBuf,
    fs_type: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    /// `36 35 98:0 /root /point rw,opts optional… - type source super,opts` (proc(5)).
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let (fs_type, _source, options) = (right.next()?, right.next()?, right.next()?);
        Some(Self {
            root: unescape(root),
            point: PathBuf::from(unescape(point)),
            fs_type,
            options,
        })
    }
}

/// Undoes the kernel's `\040` for blank, tab, newline and backslash.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        if let Some(byte) = code.filter(u8::is_ascii) {
            out.push(byte as char);
            rest = &rest[at + 4..];
        } else {
            out.push('\\');
            rest = &rest[at + 1..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const V1: &str = "\
25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw
31 25 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
33 31 0:29 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
36 31 0:32 / /sys/fs/cgroup/cpu,cpuacct rw shared:15 - cgroup cgroup rw,cpu,cpuacct
40 31 0:36 / /sys/fs/cgroup/freezer rw shared:19 - cgroup cgroup rw,freezer
";
    const V2: &str = "\
29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
90 23 0:50 / /run/my\\040dir rw - tmpfs tmpfs rw
";

    #[test]
    fn v1_takes_ids_from_the_cpu_mount() {
        let layout = Layout::from_mountinfo(V1).unwrap();
        assert_eq!(layout.flavour, Flavour::V1);
        assert_eq!(layout.id_root, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        let names: Vec<_> = layout.controllers.keys().map(String::as_str).collect();
        assert_eq!(names, ["cpu", "cpuacct", "freezer", "name=systemd"]);
        assert_eq!(layout.unified, None);
        assert_eq!(
            layout.controller_dir("freezer", "/ml/a").unwrap(),
            Path::new("/sys/fs/cgroup/freezer/ml/a")
        );
        assert_eq!(layout.controller_dir("memory", "/ml/a"), None);
    }

    #[test]
    fn v2_takes_ids_from_the_unified_mount() {
        let layout = Layout::from_mountinfo(V2).unwrap();
        assert_eq!(layout.flavour, Flavour::V2);
        assert_eq!(
            layout.id_dir("/system.slice/a b"),
            Path::new("/sys/fs/cgroup/system.slice/a b")
        );
        assert_eq!(
            layout.controller_dir("cpu", "/x").unwrap(),
            Path::new("/sys/fs/cgroup/x")
        );
    }

    #[test]
    fn hybrid_takes_ids_from_the_cpu_mount() {
        let text = format!("{V1}50 31 0:40 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
        let layout = Layout::from_mountinfo(&text).unwrap();
        assert_eq!(layout.flavour, Flavour::Hybrid);
        assert_eq!(layout.id_root, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(
            layout.unified.as_deref(),
            Some(Path::new("/sys/fs/cgroup/unified"))
        );
        assert_eq!(
            layout.controller_dir("", "/x").unwrap(),
            Path::new("/sys/fs/cgroup/unified/x")
        );
    }

    #[test]
    fn v2_with_a_named_v1_hierarchy_is_v2() {
        let text = format!(
            "{V2}33 31 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
        );
        assert_eq!(Layout::from_mountinfo(&text).unwrap().flavour, Flavour::V2);
    }

    #[test]
    fn bind_mounts_of_a_part_and_garbage_do_not_count() {
        let text = "x\n - \n33 31 0:29 /docker/1 /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert!(matches!(
            Layout::from_mountinfo(text),
            Err(LayoutError::NoHierarchy)
        ));
        assert!(matches!(
            Layout::from_mountinfo(""),
            Err(LayoutError::NoHierarchy)
        ));
    }

    #[test]
    fn the_first_mount_of_a_hierarchy_counts_and_escapes_are_undone() {
        let text = "\
1 2 0:9 / /my\\040cg rw - cgroup2 cgroup2 rw
3 2 0:9 / /second rw - cgroup2 cgroup2 rw
";
        assert_eq!(
            Layout::from_mountinfo(text).unwrap().id_root,
            Path::new("/my cg")
        );
        assert_eq!(unescape("a\\134b\\\\0x\\"), "a\\b\\\\0x\\");
    }

    #[test]
    fn no_path_leaves_the_mount() {
        let layout = Layout::from_mountinfo(V2).unwrap();
        assert_eq!(layout.id_dir("/../../etc"), Path::new("/sys/fs/cgroup/etc"));
        assert_eq!(layout.id_dir("/"), Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn paths_are_told_per_controller() {
        let text = "5:cpu,cpuacct:/ml/a:b\n1:name=systemd:/init\n0::/x (deleted)\nbroken\n";
        let paths = parse_paths(text);
        assert_eq!(paths["cpu"], "/ml/a:b");
        assert_eq!(paths["cpuacct"], "/ml/a:b");
        assert_eq!(paths["name=systemd"], "/init");
        assert_eq!(paths[""], "/x (deleted)");
        let v1 = Layout::from_mountinfo(V1).unwrap();
        assert_eq!(v1.cgroup_from(text).as_deref(), Some("/ml/a:b"));
        let v2 = Layout::from_mountinfo(V2).unwrap();
        assert_eq!(v2.cgroup_from(text).as_deref(), Some("/x (deleted)"));
    }

    #[test]
    fn this_process_has_a_workload_id() {
        let layout = match Layout::detect() {
            Ok(layout) => layout,
            Err(error) => {
                eprintln!("SKIPPED this_process_has_a_workload_id: {error}");
                return;
            }
        };
        let cgroup = layout.cgroup_of_pid(std::process::id()).unwrap();
        let id = layout.workload_id(&cgroup).unwrap();
        assert_eq!(id.0, fs::metadata(layout.id_dir(&cgroup)).unwrap().ino());
        assert!(layout.workload_id("/palisade-no-such-cgroup").is_err());
    }
}
