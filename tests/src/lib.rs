//! What the live tests and benchmarks share: cgroups of their own, children of their own, an agent of their own.
//!
//! Invariants: a test acts on nothing that it did not start; everything here cleans up when it is dropped, also on a panic;
//! a test that cannot run says so in a line that begins with `SKIPPED`.

pub mod bench;

use anyhow::{Context, Result, bail};
use palisade::identity::layout::Layout;
use palisade::sensors;
use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a test waits for something that should take milliseconds. On an emulated processor (`./x vm`) an
/// agent compiles its policies for 20 s.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Returns from the test, saying why, if live eBPF cannot be had here.
#[macro_export]
macro_rules! live_or_skip {
    ($name:literal) => {
        if let Some(why) = $crate::cannot_run_live() {
            eprintln!("SKIPPED {}: {why}", $name);
            return;
        }
    };
}

/// Why live tests cannot run here, if they cannot. In a guest of `./x vm` they can, or it fails: there
/// nothing may be skipped for want of privileges.
pub fn cannot_run_live() -> Option<String> {
    let why = why_not_live();
    assert!(
        why.is_none() || std::env::var_os("PALISADE_VM").is_none(),
        "eBPF cannot be had in this guest: {why:?}"
    );
    why
}

fn why_not_live() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".into());
    }
    if palisade::ebpf_object::embedded().is_none() {
        assert!(
            std::env::var_os("PALISADE_BUILT").is_none(),
            "./x test built the eBPF object, but it is not in this program"
        );
        return Some("built without the eBPF object (run ./x test)".into());
    }
    let capabilities = sensors::capabilities(None, false, &[], None);
    let refused = capabilities
        .ring_buffer
        .err()
        .or(capabilities.tracepoints.err());
    match refused {
        Some(what) => Some(format!("this kernel does not permit eBPF: {what}")),
        None if !capabilities.btf => Some("this kernel has no BTF".into()),
        None => None,
    }
}

/// A numbers-larger switch: `./x soak`.
pub fn soak() -> bool {
    std::env::var_os("PALISADE_SOAK").is_some()
}

/// Folder of the workspace's binaries of this build profile.
pub fn binaries() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let folder = exe.parent().unwrap_or(Path::new("/"));
    // Tests are target/PROFILE/deps/NAME-HASH, programs target/PROFILE/NAME.
    if folder.ends_with("deps") {
        folder.parent().unwrap_or(folder).to_path_buf()
    } else {
        folder.to_path_buf()
    }
}

/// A component that `./x` built: `policy("gpu-contention")`, `policy("guests/spin")`.
pub fn policy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/policies")
        .join(format!("{name}.wasm"))
}

/// A cgroup of this test's own, in every hierarchy that actions need.
#[derive(Debug)]
pub struct TestCgroup {
    layout: Layout,
    path: String,
}

impl TestCgroup {
    /// Makes it. `name` only helps people who look.
    pub fn new(name: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let layout = Layout::detect()?;
        let path = format!(
            "/palisade-test-{}-{}-{name}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let this = Self { layout, path };
        for dir in this.dirs() {
            std::fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(this)
    }

    /// Path below the mount points.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its kernfs id, as in records.
    pub fn id(&self) -> u64 {
        self.layout.workload_id(&self.path).map_or(0, |id| id.0)
    }

    /// Removes it (nobody may be in it) and makes it again, as a restarted service's cgroup is: the
    /// same path, another id.
    pub fn make_again(&self) -> Result<()> {
        for dir in self.dirs() {
            std::fs::remove_dir(&dir)
                .with_context(|| format!("cannot remove {}", dir.display()))?;
            std::fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(())
    }

    /// One directory a hierarchy.
    pub fn dirs(&self) -> Vec<PathBuf> {
        let mut dirs = vec![self.layout.id_dir(&self.path)];
        for controller in ["cpuacct", "freezer", "memory", "pids"] {
            if let Some(dir) = self.layout.controller_dir(controller, &self.path)
                && !dirs.contains(&dir)
            {
                dirs.push(dir);
            }
        }
        dirs
    }

    /// A file of its cpu controller.
    pub fn cpu_file(&self, name: &str) -> PathBuf {
        self.layout.id_dir(&self.path).join(name)
    }

    /// CPU quota in thousandths of a CPU; `None` without one.
    pub fn quota_permille(&self) -> Option<u64> {
        let read = |name| std::fs::read_to_string(self.cpu_file(name)).ok();
        let (quota, period) = match read("cpu.max") {
            Some(text) => {
                let mut words = text.split_whitespace().map(str::to_owned);
                (words.next()?, words.next()?)
            }
            None => (read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?),
        };
        let quota: u64 = quota.trim().parse().ok()?;
        Some(quota * 1000 / period.trim().parse::<u64>().ok()?.max(1))
    }

    /// Has a command start inside of it.
    pub fn enter(&self, command: &mut Command) {
        let files: Vec<std::ffi::CString> = self
            .dirs()
            .iter()
            .filter_map(|dir| {
                std::ffi::CString::new(
                    dir.join("cgroup.procs")
                        .into_os_string()
                        .into_encoded_bytes(),
                )
                .ok()
            })
            .collect();
        let join = move || {
            for file in &files {
                let fd = rustix::fs::open(
                    file.as_c_str(),
                    rustix::fs::OFlags::WRONLY,
                    rustix::fs::Mode::empty(),
                )?;
                rustix::io::write(&fd, b"0")?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec only async-signal-safe calls may be made; `join` opens, writes and
        // closes descriptors by direct system calls and allocates nothing.
        unsafe { command.pre_exec(join) };
    }

    /// `palisade-workload`, from its start on inside of it; what it prints goes nowhere.
    pub fn workload(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binaries().join("palisade-workload"));
        for dir in self.dirs() {
            command.arg("--join").arg(dir);
        }
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Starts that.
    pub fn start(&self, arguments: &[&str]) -> Result<Ward> {
        Ward::start(&mut self.workload(arguments))
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        for dir in self.dirs() {
            let until = Instant::now() + PATIENCE;
            // A just-ended child leaves its cgroup a moment later.
            while std::fs::remove_dir(&dir).is_err() && dir.exists() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// A child that is killed and waited for when it is dropped.
#[derive(Debug)]
pub struct Ward(pub Child);

impl Ward {
    /// Starts it.
    pub fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(
            command
                .spawn()
                .with_context(|| format!("cannot start {command:?}"))?,
        ))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Ward {
    fn drop(&mut self) {
        // By handle and not yet waited for: the pid cannot have been reused.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running agent with folders of its own.
#[derive(Debug)]
pub struct Agent {
    /// The process.
    pub ward: Ward,
    /// Its folders; removed at the end.
    pub dir: tempfile::TempDir,
}

impl Agent {
    /// Writes the configuration (`state_dir` and `run_dir` are added) and starts `palisade run`.
    pub fn start(config: &str) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("palisade-test-")
            .tempdir()?;
        Self::start_in(dir, config, &[])
    }

    /// The same in a folder that may hold an earlier run's state, with further arguments.
    pub fn start_in(dir: tempfile::TempDir, config: &str, arguments: &[&str]) -> Result<Self> {
        let mut text = String::new();
        writeln!(text, "state_dir = {:?}", dir.path().join("state"))?;
        writeln!(text, "run_dir = {:?}", dir.path().join("run"))?;
        text.push_str(config);
        std::fs::write(dir.path().join("palisade.toml"), text)?;
        let log = std::fs::File::create(dir.path().join("agent.log"))?;
        let mut command = Command::new(binaries().join("palisade"));
        command
            .arg("run")
            .arg("--config")
            .arg(dir.path().join("palisade.toml"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut agent = Self {
            ward: Ward::start(&mut command)?,
            dir,
        };
        let until = Instant::now() + PATIENCE;
        while agent.call(&["status", "--json"]).is_err() {
            if let Some(status) = agent.ward.0.try_wait()? {
                bail!("the agent ended with {status}:\n{}", agent.log());
            }
            if Instant::now() > until {
                bail!("the agent does not answer:\n{}", agent.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(agent)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    /// Folder of its audit log.
    pub fn audit_dir(&self) -> PathBuf {
        self.dir.path().join("state/audit")
    }

    /// Runs another `palisade` command on it; its standard output if it succeeds.
    pub fn call(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(binaries().join("palisade"))
            .args(arguments)
            .arg("--config")
            .arg(self.dir.path().join("palisade.toml"))
            .stdin(Stdio::null())
            .output()?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!(
                "palisade {arguments:?}: {}: {}{}",
                output.status,
                text(&output.stdout),
                text(&output.stderr)
            );
        }
        Ok(text(&output.stdout))
    }

    /// What `palisade top` tells of one second more.
    pub fn look(&self) -> Result<serde_json::Value> {
        let arguments = ["top", "--once", "--json", "--interval", "1"];
        // It gives up after ten seconds, in which a busy machine may not have attached everything.
        let answer = eventually("an answer", || self.call(&arguments).ok())?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// The audit log's records, whole lines only.
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let mut files: Vec<_> = std::fs::read_dir(self.audit_dir())
            .map(|entries| {
                entries
                    .flatten()
                    .map(|entry| entry.path())
                    .filter(|path| path.extension().is_some_and(|end| end == "jsonl"))
                    .collect()
            })
            .unwrap_or_default();
        files.sort();
        files
            .iter()
            .filter_map(|file| std::fs::read_to_string(file).ok())
            .flat_map(|text| {
                text.lines()
                    .filter_map(|line| serde_json::from_str(line).ok())
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// Waits until a record of the audit log satisfies `wanted`.
    pub fn wait_for(
        &self,
        what: &str,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<serde_json::Value> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = self.audit().into_iter().find(&wanted) {
                return Ok(found);
            }
            if Instant::now() > until {
                bail!(
                    "{what} never came; the agent says:\n{}\naudit:\n{:#?}",
                    self.log(),
                    self.audit()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it with SIGTERM and waits; its exit code.
    pub fn end(&mut self) -> Result<Option<i32>> {
        let pid = rustix::process::Pid::from_child(&self.ward.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.ward.0.try_wait()? {
                return Ok(status.code());
            }
            if Instant::now() > until {
                bail!("the agent does not end:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What a look tells of that cgroup's workload; `None` if it is absent.
pub fn workload_in<'a>(
    top: &'a serde_json::Value,
    cgroup: &TestCgroup,
) -> Option<&'a serde_json::Value> {
    let mut workloads = top["workloads"].as_array()?.iter();
    workloads.find(|workload| workload["cgroup"] == cgroup.path())
}

/// A metric of it; `None` if it is absent.
pub fn value(top: &serde_json::Value, cgroup: &TestCgroup, metric: &str) -> Option<f64> {
    workload_in(top, cgroup)?["values"][metric].as_f64()
}

/// Says how long something took, which must not be more than stated. On an emulated processor nothing takes the
/// time that it should: in a guest of `./x vm` it is only said.
pub fn within(what: &str, took: Duration, stated: Duration) {
    eprintln!(
        "MEASURED {what} after {:.1} s; stated: {:.0} s at most",
        took.as_secs_f64(),
        stated.as_secs_f64()
    );
    assert!(
        took <= stated || std::env::var_os("PALISADE_VM").is_some(),
        "{what} after {took:?}"
    );
}

/// Waits until `done` answers something.
pub fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done() {
            return Ok(value);
        }
        if Instant::now() > until {
            bail!("{what} did not happen in {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
