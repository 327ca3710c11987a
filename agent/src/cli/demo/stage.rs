//! Everything that the demo puts on the machine, and takes away again.
//!
//! Invariants:
//! - One folder, one cgroup (with three below), one pseudo-terminal, and child processes: nothing
//!   else is made, and [`Stage::leave`] (at the latest drop) removes all of it, in the right order.
//! - The agent gets folders of its own: a real agent's state, log and socket are not touched. (Its
//!   configuration watches the demo's cgroups and the demo's terminal alone.)

use super::cgroups::{self, Cgroups, PREFIX};
use super::children::{Offspring, Said};
use super::settings::{Shortened, configuration};
use super::{HOG, LOADER, SERVICE, Unable};
use crate::identity::layout::Layout;
use anyhow::{Context, Result, anyhow};
use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use rustix::thread::sched_getaffinity;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// Temporary files go here: a disk on most machines, where /tmp may be memory.
const PARENT: &str = "/var/tmp";
/// Size of the model file: sparse, but its pages go through the page cache.
const MODEL_BYTES: u64 = 256 << 20;
/// Its name, which the policy is to name.
pub(super) const MODEL_NAME: &str = "demo-model.safetensors";
/// Between two lines of the service.
pub(super) const REPORT_EVERY: Duration = Duration::from_millis(500);
/// CPU burnt and device held in turn by the hog, milliseconds. Alone it holds the device some
/// 40 % of the time; at a CPU ceiling of 5 % some 3 %.
const HOG_BURN_MS: u64 = 60;
const HOG_HOLD_MS: u64 = 40;
/// Pause of the loader between two loads, milliseconds. A load of a file that is in the page
/// cache takes 3 ms or more; short ones matter, because a ceiling on CPU time cannot interrupt
/// a system call (since Linux 6.18), and a long one would leave a debt of many seconds.
const LOADER_GAP_MS: u64 = 2;
/// How long the agent may take to end in order, which includes undoing its leases.
const AGENT_ENDS_WITHIN: Duration = Duration::from_secs(5);
const WORKLOAD_ENDS_WITHIN: Duration = Duration::from_secs(2);

/// Programs that the demo starts.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    agent: PathBuf,
    workload: PathBuf,
}

impl Programs {
    /// This executable, and the workloads beside it.
    pub(super) fn find() -> Result<Self> {
        let agent = std::env::current_exe().context("own executable")?;
        let workload = agent.with_file_name("palisade-workload");
        if !workload.is_file() {
            return Err(anyhow!(
                "{} is missing: build it with ./x build",
                workload.display()
            ));
        }
        Ok(Self { agent, workload })
    }
}

/// What is kept of a demo.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    /// The folder stays.
    pub(super) keep: bool,
    /// The agent records its events into this file.
    pub(super) record: Option<PathBuf>,
}

/// The machine while the demo runs.
#[derive(Debug)]
pub(super) struct Stage {
    programs: Programs,
    dir: PathBuf,
    options: Options,
    pub(super) cgroups: Cgroups,
    /// Kept open: the device is there as long as its other end is.
    device: Option<PtyMaster>,
    device_path: PathBuf,
    cpu: usize,
    pub(super) workloads: Vec<Offspring>,
    pub(super) agent: Option<Offspring>,
}

impl Stage {
    /// Makes folder, cgroups, device and configuration. Nothing runs yet.
    pub(super) fn build(
        programs: Programs,
        policies: &Path,
        shortened: &[Shortened],
        options: Options,
    ) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Err(Unable("root is needed: sensors, cgroups and their limits".into()).into());
        }
        let probe = Command::new(&programs.workload)
            .arg("probe")
            .output()
            .context("starting palisade-workload")?;
        if !probe.status.success() {
            let text = String::from_utf8_lossy(&probe.stderr).trim().to_owned();
            return Err(Unable(format!("the device hog needs userfaultfd: {text}")).into());
        }
        let layout = Layout::detect().map_err(|error| Unable(error.to_string()))?;
        cgroups::sweep(&layout);
        sweep_folders();

        let folder = Folder::create()?;
        let dir = folder.path().to_owned();
        let cgroups = Cgroups::create(layout, &[SERVICE, HOG, LOADER])
            .map_err(|error| Unable(format!("cgroups of its own: {error}")))?;
        let (device, device_path) = open_device()?;
        let cpu = last_cpu()?;
        File::create(dir.join(MODEL_NAME))
            .and_then(|file| file.set_len(MODEL_BYTES))
            .context("making the model file")?;
        let text = configuration(&dir, cgroups.base(), &device_path, policies, shortened)?;
        fs::write(dir.join("palisade.toml"), text).context("writing the configuration")?;
        folder.kept();
        Ok(Self {
            programs,
            dir,
            options,
            cgroups,
            device: Some(device),
            device_path,
            cpu,
            workloads: Vec::new(),
            agent: None,
        })
    }

    /// The demo's folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The audit log of the demo's agent.
    pub(super) fn audit_dir(&self) -> PathBuf {
        self.dir.join("state/audit")
    }

    /// The CPU that service and culprits share.
    pub(super) fn cpu(&self) -> usize {
        self.cpu
    }

    /// The watched device.
    pub(super) fn device_path(&self) -> &Path {
        &self.device_path
    }

    /// Starts the agent; its output goes to a file in the demo's folder.
    pub(super) fn start_agent(&mut self) -> Result<()> {
        let log = File::create(self.agent_log()).context("making the agent's log file")?;
        // The workload binary ties the agent to us, so that it ends even if we are killed.
        let mut command = Command::new(&self.programs.workload);
        command.args(["exec", "--"]).arg(&self.programs.agent);
        command
            .arg("run")
            .arg("--config")
            .arg(self.dir.join("palisade.toml"));
        if let Some(file) = &self.options.record {
            command.arg("--record").arg(file);
        }
        command
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log));
        self.agent = Some(Offspring::start("agent", command, None).context("starting the agent")?);
        Ok(())
    }

    /// What the agent printed, for when it goes wrong: the last lines.
    pub(super) fn agent_said(&self, lines: usize) -> String {
        let text = fs::read_to_string(self.agent_log()).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn agent_log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// Starts the service, or a culprit, in its cgroup and on the shared CPU.
    pub(super) fn start(&mut self, name: &'static str, lines: &Sender<Said>) -> Result<()> {
        let mut command = Command::new(&self.programs.workload);
        for dir in self.cgroups.dirs(name) {
            command.arg("--join").arg(dir);
        }
        command.arg("--cpu").arg(self.cpu.to_string());
        match name {
            SERVICE => command
                .args([
                    "service",
                    "--report-ms",
                    &REPORT_EVERY.as_millis().to_string(),
                    "--device",
                ])
                .arg(&self.device_path),
            HOG => command
                .args(["device-hog", "--burn-ms", &HOG_BURN_MS.to_string()])
                .args(["--hold-ms", &HOG_HOLD_MS.to_string(), "--device"])
                .arg(&self.device_path),
            _ => command
                .args([
                    "reload-loop",
                    "--gap-ms",
                    &LOADER_GAP_MS.to_string(),
                    "--model",
                ])
                .arg(self.dir.join(MODEL_NAME)),
        };
        let child = Offspring::start(name, command, Some(lines.clone()))
            .with_context(|| format!("starting the {name}"))?;
        self.workloads.push(child);
        Ok(())
    }

    /// Asks one workload to end.
    pub(super) fn stop(&mut self, name: &str) {
        for child in self
            .workloads
            .iter_mut()
            .filter(|child| child.name() == name)
        {
            child.ask_to_end();
        }
    }

    /// Ends the agent in order. Answers with what went wrong.
    pub(super) fn stop_agent(&mut self) -> Result<(), String> {
        let status = self
            .agent
            .as_mut()
            .and_then(|agent| agent.end(AGENT_ENDS_WITHIN));
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("the agent ended with {status}")),
            None => Err("the agent was not running".into()),
        }
    }

    /// Takes everything away. Answers with what is left although it should not be.
    pub(super) fn leave(&mut self) -> Vec<String> {
        // The agent first: it undoes its leases, and must not watch the others die.
        if let Some(mut agent) = self.agent.take() {
            agent.end(AGENT_ENDS_WITHIN);
        }
        for child in &mut self.workloads {
            child.end(WORKLOAD_ENDS_WITHIN);
        }
        self.workloads.clear();
        let mut left: Vec<String> = self
            .cgroups
            .remove()
            .iter()
            .map(|dir| format!("cgroup {}", dir.display()))
            .collect();
        left.extend(processes_naming(&self.dir, Duration::from_secs(2)));
        self.device = None;
        if self.device_path.exists() {
            left.push(format!("device {}", self.device_path.display()));
        }
        if self.options.keep {
            let kept = self
                .dir
                .with_file_name(format!("{PREFIX}kept-{}", std::process::id()));
            if self.dir.exists() && fs::rename(&self.dir, &kept).is_ok() {
                self.dir = kept;
            }
        } else if self.dir.exists() && fs::remove_dir_all(&self.dir).is_err() {
            left.push(format!("folder {}", self.dir.display()));
        }
        left
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The demo's folder. It goes with this value, unless a stage takes it over.
#[derive(Debug)]
pub(super) struct Folder(Option<PathBuf>);

impl Folder {
    /// Makes it, for root alone.
    pub(super) fn create() -> Result<Self> {
        let dir = Path::new(PARENT).join(format!("{PREFIX}{}", std::process::id()));
        // Fails if it exists: in a folder that all may write to, it would not be ours.
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("making {}", dir.display()))?;
        Ok(Self(Some(dir)))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(PARENT))
    }

    fn kept(mut self) {
        self.0 = None;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            // Nothing more can be done about it; the next demo sweeps it.
            let _ = fs::remove_dir_all(dir);
        }
    }
}

fn open_device() -> Result<(PtyMaster, PathBuf)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags).context("posix_openpt")?;
    grantpt(&master).context("grantpt")?;
    unlockpt(&master).context("unlockpt")?;
    let path = ptsname_r(&master).context("ptsname")?;
    Ok((master, path.into()))
}

/// The last CPU that we may use: the first ones serve more interrupts.
fn last_cpu() -> Result<usize> {
    let set = sched_getaffinity(None).context("sched_getaffinity")?;
    (0..rustix::thread::CpuSet::MAX_CPU)
        .rev()
        .find(|cpu| set.is_set(*cpu))
        .context("no CPU may be used")
}

/// Processes, other than this one, that have the demo's folder on their command line; they get
/// some time to go (the keeper ends a moment after its agent).
fn processes_naming(dir: &Path, within: Duration) -> Vec<String> {
    let needle = dir.as_os_str().as_encoded_bytes();
    let deadline = Instant::now() + within;
    loop {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if pid != std::process::id() && line.windows(needle.len()).any(|part| part == needle) {
                let words = String::from_utf8_lossy(&line).replace('\0', " ");
                found.push(format!("process {pid} ({})", words.trim()));
            }
        }
        if found.is_empty() || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes folders of demos that were killed before they could clean up.
fn sweep_folders() {
    let entries = fs::read_dir(PARENT).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| cgroups::abandoned(&entry.file_name().to_string_lossy())) {
        // Anybody may put things there: only a folder (no link) of root's is a demo's.
        if entry
            .metadata()
            .is_ok_and(|meta| meta.is_dir() && meta.uid() == 0)
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
