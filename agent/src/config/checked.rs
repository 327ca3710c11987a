//! The configuration as the agent uses it: types that cannot be wrong.
//!
//! Invariant: whoever holds a [`Config`] need not check it again. Numbers are in range, names are
//! unique, files and cgroups existed when the file was read. No environment variable has a say.

use super::faults::Warning;
use crate::identity::ScopeRoots;
use crate::sensors::{WatchedProcesses, Way};
use palisade_abi::DeviceKey;
use palisade_core::{CoreConfig, Grant, Mode, Power};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a container's id that are to be given at least.
pub const MIN_CONTAINER: usize = 4;
/// State that outlives a reboot.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/palisade";
/// State that does not.
pub const DEFAULT_RUN_DIR: &str = "/run/palisade";
/// Where the configuration is looked for unless another file is named.
pub const DEFAULT_CONFIG_FILE: &str = "/etc/palisade/palisade.toml";
/// How often counters become `Sample` records.
pub const DEFAULT_WINDOW: Duration = Duration::from_millis(100);
/// Files from this size on are model files whatever their name (hub caches use hashed names).
pub const DEFAULT_MODEL_MIN_BYTES: u64 = 256 << 20;
/// Endings of model files, without the dot.
pub const DEFAULT_MODEL_SUFFIXES: &[&str] =
    &["safetensors", "gguf", "pt", "pth", "bin", "onnx", "engine"];
/// Driver calls at least this long become raw `GPU_EXIT` records.
pub const DEFAULT_SLOW_CALL: Duration = Duration::from_millis(5);
/// Device presets that are watched when the file has no `[[devices]]`.
pub const DEFAULT_DEVICES: &[&str] = &["nvidia", "nvidia-uvm", "kfd", "drm"];
/// Actions of all policies a minute.
pub const DEFAULT_HOST_ACTIONS_PER_MINUTE: u32 = 30;
/// Leases at once on the whole host.
pub const DEFAULT_MAX_LEASES: u32 = 64;
/// Irreversible actions are refused for this long after a loss.
pub const DEFAULT_LOSS_WINDOW: Duration = Duration::from_secs(10);
/// How long an action waits for its target to leave a watched driver call.
pub const DEFAULT_DRIVER_CALL_WAIT: Duration = Duration::from_millis(250);

/// Everything that the operator says.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file, absolute; `None` for the built-in defaults.
    pub source: Option<PathBuf>,
    /// SHA-256 of the file's bytes, lower-case hex; of nothing for the defaults.
    pub digest: String,
    /// Where things are kept.
    pub paths: Paths,
    /// What is watched.
    pub watch: Watch,
    /// How the kernel is asked.
    pub sensors: Sensors,
    /// Watched devices; the index is the device class in records.
    pub devices: Vec<DeviceClass>,
    /// Bounds on the agent's own use of memory and time.
    pub limits: Limits,
    /// Budgets of the decision core.
    pub core: CoreConfig,
    /// How long an action waits for its target to leave a watched driver call.
    pub driver_call_wait: Duration,
    /// What the operator protects in addition to the built-in list.
    pub protect: Protect,
    /// Where alerts go.
    pub alerts: Alerts,
    /// The policies, in the order of the file.
    pub policies: Vec<PolicyConfig>,
    /// What is not wrong but worth knowing.
    pub warnings: Vec<Warning>,
}

/// Where things are kept. Both folders are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Audit log and policy checkpoints: outlives a reboot.
    pub state_dir: PathBuf,
    /// Socket, lock, lease journal: does not outlive a reboot.
    pub run_dir: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state_dir: DEFAULT_STATE_DIR.into(),
            run_dir: DEFAULT_RUN_DIR.into(),
        }
    }
}

impl Paths {
    /// Folder of the audit log.
    pub fn audit_dir(&self) -> PathBuf {
        self.state_dir.join("audit")
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }

    /// Folder of the lease journal.
    pub fn leases_dir(&self) -> PathBuf {
        self.run_dir.join("leases")
    }
}

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Which cgroups. Only what runs in them is ever acted on.
    pub scope: ScopeRoots,
    /// Beginnings of the ids (or names, where those name the cgroup) of containers whose cgroups
    /// are watched as well; at least [`MIN_CONTAINER`] bytes each.
    pub containers: Vec<String>,
    /// Processes that are watched wherever they are.
    pub processes: WatchedProcesses,
    /// How often counters become `Sample` records.
    pub window: Duration,
    /// Endings of model files, without the dot, at most 15 bytes each.
    pub model_suffixes: Vec<String>,
    /// Files from this size on are model files whatever their name, bytes.
    pub model_min_bytes: u64,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            scope: ScopeRoots::All,
            containers: Vec::new(),
            processes: WatchedProcesses::default(),
            window: DEFAULT_WINDOW,
            model_suffixes: DEFAULT_MODEL_SUFFIXES
                .iter()
                .map(|&s| s.to_owned())
                .collect(),
            model_min_bytes: DEFAULT_MODEL_MIN_BYTES,
        }
    }
}

/// How the kernel is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sensors {
    /// Ways of attaching that are left out where a hook has another one.
    pub avoid: Vec<Way>,
    /// CUDA's driver library, absolute; `None`: looked for in the usual places.
    pub cuda_library: Option<PathBuf>,
}

/// Devices that share one driver lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceClass {
    /// Name, unique.
    pub name: String,
    /// Device numbers, perhaps with every minor; empty if this host has no such device.
    pub keys: Vec<DeviceKey>,
    /// Calls at least this long become raw records.
    pub slow: Duration,
}

/// Bounds on the agent's own use of memory and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Ring buffer for rare events, bytes; a power of two.
    pub ring_buffer_bytes: u32,
    /// Entries in the kernel's per-process counters and in the process table.
    pub processes: u32,
    /// Bounds on each policy that does not set its own.
    pub policy: PolicyLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ring_buffer_bytes: 4 << 20,
            processes: 4096,
            policy: PolicyLimits::default(),
        }
    }
}

/// Bounds on one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyLimits {
    /// Guest memory, bytes.
    pub memory_bytes: u64,
    /// CPU time of one call into the guest.
    pub deadline: Duration,
    /// Batches that may wait; beyond it they are counted as lost.
    pub queue_batches: u32,
    /// Strikes within the strike window that are forgiven; one more ejects the policy.
    pub strikes: u32,
    /// Time after which a strike is forgotten.
    pub strike_window: Duration,
    /// Time after a reload in which a crash brings the old version back.
    pub probation: Duration,
}

impl Default for PolicyLimits {
    fn default() -> Self {
        Self {
            memory_bytes: 16 << 20,
            deadline: Duration::from_millis(20),
            queue_batches: 1024,
            strikes: 3,
            strike_window: Duration::from_mins(1),
            probation: Duration::from_secs(10),
        }
    }
}

/// What must never be acted on, in addition to the built-in list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protect {
    /// Executables: absolute paths or their last components, with `*` and `**`.
    pub exe: Vec<String>,
    /// systemd units with suffix, with `*`.
    pub unit: Vec<String>,
    /// cgroups with everything below them.
    pub cgroup: Vec<String>,
}

/// Where alerts go besides the log and the audit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alerts {
    /// POSTed to as JSON.
    pub webhook: Option<String>,
    /// Appended to as JSON lines; absolute.
    pub file: Option<PathBuf>,
}

/// One policy as the operator wants it.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyConfig {
    /// Name, unique; `a-z`, `0-9` and `-`.
    pub name: String,
    /// The component, absolute.
    pub path: PathBuf,
    /// What it may do.
    pub grant: Grant,
    /// Bounds on it.
    pub limits: PolicyLimits,
    /// Its settings, to be checked against the manifest's schema.
    pub settings: toml::Table,
    /// Line of its section in the file, from 1.
    pub line: usize,
    /// Line of each setting in the file, from 1.
    pub setting_lines: BTreeMap<String, usize>,
}

/// What a policy is granted unless the file says more: to watch and to speak.
pub fn default_grant() -> Grant {
    Grant {
        mode: Mode::Observe,
        max_power: Power::Alert,
        cooldown_ms: 15_000,
        actions_per_minute: 4,
        max_lease_ms: 60_000,
        min_quota_permille: 50,
    }
}

/// Budgets unless the file says otherwise.
pub fn default_core() -> CoreConfig {
    CoreConfig {
        host_actions_per_minute: DEFAULT_HOST_ACTIONS_PER_MINUTE,
        loss_window_ms: DEFAULT_LOSS_WINDOW.as_millis() as u64,
        max_leases: DEFAULT_MAX_LEASES,
        disarmed: false,
    }
}

/// `path` taken from `base`, without `.` components. Keeps `..`: the kernel resolves it.
pub(super) fn absolute(base: &Path, path: &str) -> PathBuf {
    base.join(path).components().collect()
}
