//! What this kernel and this process allow, for `palisade doctor`. A trial attaches every hook of the kernel's
//! with nobody watched and detaches it again; nothing else is changed.
//!
//! Invariant: no other process is touched. So CUDA's library is looked for, and no breakpoint is set in it: that could
//! end a process whose seccomp filter does not know the kernel's `uretprobe` call.

use super::{
    AttachReport, Preemption, Scope, SensorOptions, Sensors, Way, cuda, hooks,
    kernel_version::kernel_release, load::BTF_PATH, tracefs,
};
use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{is_map_supported, is_program_supported},
};
use palisade_abi::Kind;
use serde::Serialize;
use std::{fs, path::Path, time::Duration};

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// What sensing needs, one field a thing.
#[derive(Clone, Debug, Serialize)]
pub struct Capabilities {
    /// `uname -r`
    pub kernel: String,
    /// Machine, as `uname -m`.
    pub machine: String,
    /// Programs may be loaded: root, or `CAP_BPF` and `CAP_PERFMON`.
    pub privileged: bool,
    /// Whether the kernel preempts tasks inside of programs.
    pub preemption: Preemption,
    /// The kernel has type information.
    pub btf: bool,
    /// Where tracefs is mounted; `None`: nowhere (the agent would mount it).
    pub tracefs: Option<String>,
    /// The kernel has tracepoints for system calls; unknown without tracefs.
    pub syscall_tracepoints: Option<bool>,
    /// Ring buffers work; the error if not.
    pub ring_buffer: Result<(), String>,
    /// Tracepoint programs work; the error if not.
    pub tracepoints: Result<(), String>,
    /// Where CUDA's library is; the error if it cannot be watched.
    pub cuda_library: Result<String, String>,
    /// Outcome of attaching every hook of the kernel's for a moment; `None` without an eBPF object or privileges.
    pub trial: Option<Result<AttachReport, String>>,
    /// `kernel.unprivileged_bpf_disabled`, if the kernel has it.
    pub unprivileged_bpf_disabled: Option<u32>,
    /// `/sys/kernel/security/lockdown`, if the kernel has it: the mode in force.
    pub lockdown: Option<String>,
}

/// Looks at the kernel and at this process. With an eBPF object it also tries every hook; see
/// [`SensorOptions::cgroup_v2`], [`SensorOptions::avoid`] and [`SensorOptions::cuda_library`].
pub fn capabilities(
    object: Option<&[u8]>,
    cgroup_v2: bool,
    avoid: &[Way],
    cuda_library: Option<&Path>,
) -> Capabilities {
    let uname = rustix::system::uname();
    let tracefs = tracefs::find();
    Capabilities {
        kernel: kernel_release(),
        machine: uname.machine().to_string_lossy().into_owned(),
        privileged: may_load(),
        preemption: Preemption::detect(),
        btf: Path::new(BTF_PATH).exists(),
        syscall_tracepoints: tracefs
            .as_ref()
            .map(|place| place.join("events/syscalls/sys_enter_ioctl").is_dir()),
        tracefs: tracefs.map(|place| place.display().to_string()),
        ring_buffer: answer(
            is_map_supported(MapType::RingBuf).map_err(|e| super::attach::chain(&e)),
        ),
        tracepoints: answer(
            is_program_supported(ProgramType::TracePoint).map_err(|e| super::attach::chain(&e)),
        ),
        cuda_library: cuda::Library::find(cuda_library, hooks::CUDA_LAUNCHES)
            .map(|library| library.path().display().to_string())
            .map_err(|error| error.to_string()),
        trial: object
            .filter(|_| may_load())
            .map(|object| trial(object, cgroup_v2, avoid)),
        unprivileged_bpf_disabled: fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled")
            .ok()
            .and_then(|text| text.trim().parse().ok()),
        lockdown: fs::read_to_string("/sys/kernel/security/lockdown")
            .ok()
            .and_then(|text| bracketed(&text)),
    }
}

fn trial(object: &[u8], cgroup_v2: bool, avoid: &[Way]) -> Result<AttachReport, String> {
    let options = SensorOptions {
        scope: Scope::Cgroups(Vec::new()),
        devices: Vec::new(),
        kinds: Kind::ALL.iter().fold(0, |bits, kind| bits | kind.bit()) & !hooks::CUDA,
        window: Duration::from_secs(1),
        ring_bytes: 0,
        max_processes: 1,
        model_suffixes: Vec::new(),
        model_min_bytes: u64::MAX,
        cgroup_v2,
        nodes: None,
        pressure: Vec::new(),
        avoid: avoid.to_vec(),
        cuda_library: None,
    };
    // Dropping the sensors detaches everything.
    Sensors::load(object, options)
        .map(|sensors| sensors.report())
        .map_err(|error| error.to_string())
}

/// Whether this process may load programs.
pub(super) fn may_load() -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else {
        return nix::unistd::geteuid().is_root();
    };
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    let has = |capability: u32| effective >> capability & 1 == 1;
    has(CAP_SYS_ADMIN) || (has(CAP_BPF) && has(CAP_PERFMON))
}

fn answer(supported: Result<bool, String>) -> Result<(), String> {
    match supported {
        Ok(true) => Ok(()),
        Ok(false) => Err("not supported by this kernel, or not permitted".into()),
        Err(error) => Err(error),
    }
}

/// The word in brackets: `none [integrity] confidentiality`.
fn bracketed(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lockdown_mode_is_the_bracketed_word() {
        assert_eq!(
            bracketed("none [integrity] confidentiality").as_deref(),
            Some("integrity")
        );
        assert_eq!(bracketed("none"), None);
    }

    #[test]
    fn looking_never_fails() {
        let found = capabilities(None, false, &[], None);
        assert!(!found.kernel.is_empty());
        assert!(serde_json::to_string(&found).is_ok());
    }
}
