//! Processes that are watched whatever their cgroup: the agent's side.
//!
//! Invariants:
//! - The kernel finds new ones; those that are there already are looked up in /proc whenever the
//!   set of executables or of devices changes, with the hooks attached before: none is missed
//!   between the two.
//! - What /proc says about a process is trusted for being watched only.

use super::{
    SensorError, WatchedDevice, WatchedProcesses,
    load::{clear, map_error, take},
    offsets::{Group, Missing, Reader},
    pod::Plain,
};
use aya::{
    Ebpf,
    maps::{HashMap as KernelMap, MapData},
};
use nix::sys::stat::{SFlag, major, minor};
use palisade_abi::{
    ExecOffsets, ExecutablePath, FileKey, Kind, PATH_BYTES, WATCH_GPU_USERS, WATCH_PIDS, WatchedPid,
};
use std::{
    collections::{HashMap, HashSet},
    fs,
    os::{
        fd::AsRawFd as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{MetadataExt as _, OpenOptionsExt as _},
        },
    },
    path::{Path, PathBuf},
};

/// Watched executables, at most; half of the kernel's maps.
pub const MAX_EXECUTABLES: usize = 128;
/// Bytes of an executable's path, at most.
pub const MAX_EXECUTABLE_PATH: usize = PATH_BYTES - 1;
/// /proc is read again as long as that brings new processes to light, so many times at most: a
/// process may fork while it is read.
const PASSES: usize = 4;

/// Which processes are watched, and the kernel's maps about them.
pub(super) struct Pids {
    pids: KernelMap<MapData, u32, Plain<WatchedPid>>,
    files: KernelMap<MapData, Plain<FileKey>, u32>,
    paths: KernelMap<MapData, Plain<ExecutablePath>, u32>,
    processes: WatchedProcesses,
    devices: Vec<WatchedDevice>,
    own_pid: u32,
}

/// Reads the offsets; a member that was not found is 0 and listed.
pub(super) fn resolve_exec(btf: &super::btf::Btf) -> (ExecOffsets, Vec<Missing>) {
    let mut read = Reader::new(btf);
    let offsets = ExecOffsets {
        task_mm: read.member(Group::Executable, "task_struct", "mm"),
        mm_exe_file: read.member(Group::Executable, "mm_struct", "exe_file"),
        bprm_filename: read.member(Group::Executable, "linux_binprm", "filename"),
    };
    (offsets, read.missing)
}

/// Bits of the kinds whose hooks are needed for following the processes.
pub(super) fn kinds(processes: &WatchedProcesses) -> u64 {
    if processes.is_empty() {
        return 0;
    }
    let life = Kind::Exec.bit() | Kind::Fork.bit() | Kind::Exit.bit();
    if processes.gpu_users {
        life | Kind::SampleGpu.bit()
    } else {
        life
    }
}

impl Pids {
    pub(super) fn new(ebpf: &mut Ebpf, devices: &[WatchedDevice]) -> Result<Self, SensorError> {
        Ok(Self {
            pids: take(ebpf, "WATCHED_PIDS")?,
            files: take(ebpf, "EXECUTABLES")?,
            paths: take(ebpf, "EXECUTABLE_PATHS")?,
            processes: WatchedProcesses::default(),
            devices: devices.to_vec(),
            own_pid: std::process::id(),
        })
    }

    /// Bits of [`palisade_abi::Config::watch`].
    pub(super) fn switches(&self) -> u32 {
        let users = if self.processes.gpu_users {
            WATCH_GPU_USERS
        } else {
            0
        };
        if self.processes.is_empty() {
            0
        } else {
            WATCH_PIDS | users
        }
    }

    /// [`kinds`] of those that are watched now.
    pub(super) fn kinds(&self) -> u64 {
        kinds(&self.processes)
    }

    /// Changes who is watched; whether that is a change. Then the hooks are to be attached, and
    /// [`Pids::seed`] to be called.
    pub(super) fn set(&mut self, new: &WatchedProcesses) -> Result<bool, SensorError> {
        if *new == self.processes {
            return Ok(false);
        }
        check(new)?;
        clear(&mut self.files);
        clear(&mut self.paths);
        clear(&mut self.pids);
        for path in &new.executables {
            self.paths
                .insert(Plain(padded(path)), 1, 0)
                .map_err(|error| map_error("EXECUTABLE_PATHS", &error))?;
            // One that is not there, or only in a container, is known by its path.
            if let Some(key) = kernel_key(path) {
                self.files
                    .insert(Plain(key), 1, 0)
                    .map_err(|error| map_error("EXECUTABLES", &error))?;
            }
        }
        self.processes = new.clone();
        Ok(true)
    }

    /// Adds the processes that are there already.
    pub(super) fn seed(&mut self) {
        if self.processes.is_empty() {
            return;
        }
        let files: HashSet<FileKey> = self
            .processes
            .executables
            .iter()
            .filter_map(|path| key_of(path))
            .collect();
        let mut known = HashSet::new();
        for _ in 0..PASSES {
            let all = all_processes();
            let mut found: HashSet<u32> = all
                .keys()
                .filter(|pid| self.is_watched(**pid, &files))
                .copied()
                .collect();
            with_children(&all, &mut found);
            found.remove(&self.own_pid);
            let before = known.len();
            for pid in found {
                let Some(process) = all.get(&pid) else {
                    continue;
                };
                if known.insert((pid, process.ticks)) {
                    // Without room, the least used gives way.
                    let _ = self.pids.insert(pid, Plain(process.entry()), 0);
                }
            }
            if known.len() == before {
                return;
            }
        }
    }

    fn is_watched(&self, pid: u32, files: &HashSet<FileKey>) -> bool {
        let of = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
        let paths = &self.processes.executables;
        let is_one = |path: &Path| paths.iter().any(|watched| watched == path);
        (!paths.is_empty()
            && (key_of(&of("exe")).is_some_and(|key| files.contains(&key))
                || fs::read_link(of("exe")).is_ok_and(|path| is_one(&path))
                || fs::read(of("cmdline")).is_ok_and(|line| script_of(&line, is_one))))
            || (self.processes.gpu_users && self.uses_device(&of("fd")))
    }

    fn uses_device(&self, fds: &Path) -> bool {
        let Ok(fds) = fs::read_dir(fds) else {
            return false;
        };
        fds.flatten().any(|fd| {
            fs::metadata(fd.path()).is_ok_and(|file| {
                let character = SFlag::from_bits_truncate(file.mode()).contains(SFlag::S_IFCHR)
                    && file.mode() & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits();
                character
                    && self.devices.iter().any(|device| {
                        u64::from(device.major) == major(file.rdev())
                            && device
                                .minor
                                .is_none_or(|wanted| u64::from(wanted) == minor(file.rdev()))
                    })
            })
        })
    }

    /// A process ended.
    pub(super) fn ended(&mut self, pid: u32, start_ns: u64) {
        if self.processes.is_empty() {
            return;
        }
        if let Ok(Plain(entry)) = self.pids.get(&pid, 0)
            && start_ns.wrapping_sub(entry.start_ns) < entry.within_ns
        {
            // Already gone is just as good.
            let _ = self.pids.remove(&pid);
        }
    }
}

/// Whether the options can be met.
pub(super) fn check(processes: &WatchedProcesses) -> Result<(), SensorError> {
    if processes.executables.len() > MAX_EXECUTABLES {
        return Err(SensorError::Options(format!(
            "{} executables to watch, at most {MAX_EXECUTABLES} are possible",
            processes.executables.len()
        )));
    }
    let fits =
        |path: &&PathBuf| path.is_absolute() && path.as_os_str().len() <= MAX_EXECUTABLE_PATH;
    match processes.executables.iter().find(|path| !fits(path)) {
        Some(path) => Err(SensorError::Options(format!(
            "executable {}: an absolute path of at most {MAX_EXECUTABLE_PATH} bytes is possible",
            path.display()
        ))),
        None => Ok(()),
    }
}

fn padded(path: &Path) -> ExecutablePath {
    let mut bytes = [0; PATH_BYTES];
    let text = path.as_os_str().as_bytes();
    let length = text.len().min(MAX_EXECUTABLE_PATH);
    bytes[..length].copy_from_slice(&text[..length]);
    ExecutablePath { bytes }
}

/// The file as the kernel names it: the number of its inode, and the device of its mount, which is
/// another one than `stat` answers on btrfs and overlays.
fn kernel_key(path: &Path) -> Option<FileKey> {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_PATH | nix::libc::O_CLOEXEC)
        .open(path)
        .ok()?;
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // The table leaves out a mount of which the agent's root is a folder (`chroot`): then what `stat`
    // says has to do.
    key_from(&about, &mounts).or_else(|| key_of(path))
}

/// From a descriptor's `fdinfo` and the table of mounts.
fn key_from(about: &str, mounts: &str) -> Option<FileKey> {
    let value = |name: &str| about.lines().find_map(|line| line.strip_prefix(name));
    let (mount, inode) = (value("mnt_id:")?.trim(), value("ino:")?.trim());
    let device = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        (words.next() == Some(mount)).then(|| words.nth(1))?
    })?;
    let (major, minor) = device.split_once(':')?;
    Some(FileKey {
        inode: inode.parse().ok()?,
        device: (major.parse::<u32>().ok()? << 20) | minor.parse::<u32>().ok()?,
        pad: 0,
    })
}

/// The file as `stat` names it.
fn key_of(path: &Path) -> Option<FileKey> {
    let file = fs::metadata(path).ok()?;
    Some(FileKey {
        inode: file.ino(),
        device: ((major(file.dev()) << 20) | minor(file.dev())) as u32,
        pad: 0,
    })
}

/// Whether a command line is that of a script's interpreter: the script stands behind it and at
/// most one option.
fn script_of(command_line: &[u8], is_one: impl Fn(&Path) -> bool) -> bool {
    command_line
        .split(|byte| *byte == 0)
        .skip(1)
        .take(2)
        .any(|argument| is_one(Path::new(std::ffi::OsStr::from_bytes(argument))))
}

struct Process {
    parent: u32,
    /// Start in clock ticks.
    ticks: u64,
}

impl Process {
    fn entry(&self) -> WatchedPid {
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
        let tick_ns = match per_second {
            Ok(Some(hz)) if hz > 0 => 1_000_000_000 / hz as u64,
            _ => 10_000_000,
        };
        WatchedPid {
            start_ns: self.ticks.saturating_mul(tick_ns),
            within_ns: tick_ns,
        }
    }

    /// From /proc/PID/stat: the fields behind the name, which may hold anything.
    fn parse(stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            ticks: fields.get(19)?.parse().ok()?,
        })
    }
}

/// When this process started, `CLOCK_BOOTTIME` nanoseconds, rounded down to a clock tick.
pub(super) fn own_start_ns() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    Some(Process::parse(&stat)?.entry().start_ns)
}

fn all_processes() -> HashMap<u32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return HashMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read(entry.path().join("stat")).ok()?;
            Some((pid, Process::parse(&String::from_utf8_lossy(&stat))?))
        })
        .collect()
}

/// Adds the children of those found, and theirs.
fn with_children(all: &HashMap<u32, Process>, found: &mut HashSet<u32>) {
    loop {
        let more: Vec<u32> = all
            .iter()
            .filter(|(pid, process)| !found.contains(*pid) && found.contains(&process.parent))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return;
        }
        found.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_found_behind_its_interpreter_and_one_option() {
        let is_one = |path: &Path| path == Path::new("/usr/bin/vllm");
        assert!(script_of(
            b"/usr/bin/python3\0/usr/bin/vllm\0serve\0",
            is_one
        ));
        assert!(script_of(b"/usr/bin/python3\0-E\0/usr/bin/vllm\0", is_one));
        assert!(!script_of(b"/usr/bin/vi\0a\0b\0/usr/bin/vllm\0", is_one));
        assert!(!script_of(b"/usr/bin/vllm\0serve\0", is_one));
        assert!(!script_of(b"", is_one));
    }

    #[test]
    fn a_file_is_named_by_its_inode_and_its_mount_s_device() {
        let about = "pos:\t0\nflags:\t012000000\nmnt_id:\t36\nino:\t4711\n";
        let mounts = "3 1 8:1 / / rw - ext4 x rw\n36 3 0:45 / /m rw - overlay o rw\n";
        let key = key_from(about, mounts).expect("both are there");
        assert_eq!((key.inode, key.device), (4711, 45));
        assert_eq!(key_from("mnt_id:\t36\n", mounts), None);
        assert_eq!(key_from(about, "3 1 8:1 / / rw\n"), None);
        let own = Path::new("/proc/self/exe");
        assert_eq!(
            kernel_key(own).map(|key| key.inode),
            key_of(own).map(|key| key.inode)
        );
    }

    #[test]
    fn children_are_found_with_their_parents() {
        let process = |parent| Process { parent, ticks: 0 };
        let all = HashMap::from([
            (1, process(0)),
            (5, process(1)),
            (6, process(5)),
            (7, process(6)),
            (8, process(1)),
        ]);
        let mut found = HashSet::from([5]);
        with_children(&all, &mut found);
        assert_eq!(found, HashSet::from([5, 6, 7]));
    }

    #[test]
    fn a_name_with_anything_in_it_does_not_move_the_fields() {
        let stat = "77 (a) b ) R 12 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        let process = Process::parse(stat).expect("well-formed");
        assert_eq!((process.parent, process.ticks), (12, 4242));
        assert!(Process::parse("77 (a").is_none());
    }

    #[test]
    fn paths_that_cannot_be_compared_are_refused() {
        let of = |path: String| WatchedProcesses {
            executables: vec![path.into()],
            gpu_users: false,
        };
        assert!(check(&of("/usr/bin/vllm".into())).is_ok());
        assert!(check(&of("vllm".into())).is_err());
        assert!(check(&of(format!("/{}", "x".repeat(MAX_EXECUTABLE_PATH)))).is_err());
        let most = padded(Path::new(&format!(
            "/{}",
            "x".repeat(MAX_EXECUTABLE_PATH - 1)
        )));
        assert_eq!(most.bytes[PATH_BYTES - 1], 0);
        assert_eq!(most.bytes[PATH_BYTES - 2], b'x');
    }
}
