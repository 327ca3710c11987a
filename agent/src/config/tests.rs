//! Configurations that are right: every key arrives, defaults are what the example shows, and any
//! text is answered.
//!
//! Invariant: a [`Bench`] has its own folder, and its own host with made-up cgroups and drivers.
#![allow(clippy::unwrap_used)]

mod faults;

use super::*;
use crate::identity::ScopeRoots;
use crate::sensors::WatchedProcesses;
use palisade_abi::{ANY_MINOR, DeviceKey};
use palisade_core::{Mode, Power};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// A folder with a policy file, and a host whose only cgroup besides the root is /ml.
struct Bench {
    dir: tempfile::TempDir,
    host: Host,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("cgroup/ml/train")).unwrap();
        fs::write(dir.path().join("p.wasm"), b"x").unwrap();
        let mount = dir.path().join("cgroup");
        let mountinfo = format!("1 2 0:9 / {} rw - cgroup2 cgroup2 rw\n", mount.display());
        let host = Host {
            layout: Layout::from_mountinfo(&mountinfo),
            devices: ProcDevices::parse("Character devices:\n 195 nvidia\n 507 nvidia-uvm\n"),
        };
        Self { dir, host }
    }

    fn load(&self, text: &str) -> Result<Config, ConfigErrors> {
        let file = self.dir.path().join("palisade.toml");
        fs::write(&file, text).unwrap();
        Config::load_for(&file, Some(&self.host))
    }

    fn faults(&self, text: &str) -> Vec<Fault> {
        self.load(text).expect_err(text).faults
    }
}

#[test]
fn every_key_arrives() {
    let bench = Bench::new();
    let config = bench
        .load(
            "state_dir = \"/s\"\nrun-dir = \"/r\"\n\
             [watch]\ncgroups = [\"/ml/\", \"/ml//train\"]\ncontainers = [\"4f1e\"]\n\
             executables = [\"/usr/bin/vllm\"]\ngpu_users = true\nwindow = \"50ms\"\n\
             model-suffixes = [\".gguf\", \"pt\"]\nmodel-min-size = \"1GiB\"\n\
             [[devices]]\nname = \"nvidia\"\nslow = \"250us\"\n\
             [[devices]]\nname = \"tty\"\npath = \"/dev/null\"\n\
             [[devices]]\nname = \"own\"\nmajor = 200\nminor = 3\n\
             [[devices]]\nname = \"kfd\"\n\
             [limits]\nring-buffer = \"1MiB\"\nprocesses = 100\npolicy-memory = \"8MiB\"\n\
             policy-deadline = \"5ms\"\npolicy-queue = 9\npolicy-strikes = 2\npolicy-strike-window = \"2m\"\npolicy-probation = \"10s\"\n\
             [budget]\nactions-per-minute = 7\nleases = 3\nloss-window = \"2s\"\n\
             driver-call-wait = \"1s\"\ndisarmed = true\n\
             [protect]\nexe = [\"/bin/a\"]\nunit = [\"b.service\"]\ncgroup = [\"/c/d/\"]\n\
             [alerts]\nwebhook = \"https://h/p\"\nfile = \"a.jsonl\"\n\
             [policies.p]\npath = \"./p.wasm\"\nmode = \"enforce\"\npower = \"freeze\"\n\
             cooldown = \"1s\"\nactions-per-minute = 2\nmax-lease = \"5s\"\nmin-quota = 0.25\n\
             limits = { queue = 5 }\nsettings = { share = 0.5, n = 3, names = [\"a\"] }\n",
        )
        .unwrap();
    let dir = bench.dir.path();
    assert_eq!(config.paths.socket(), PathBuf::from("/r/control.sock"));
    assert_eq!(config.paths.audit_dir(), PathBuf::from("/s/audit"));
    assert_eq!(config.paths.leases_dir(), PathBuf::from("/r/leases"));
    assert_eq!(
        config.watch,
        Watch {
            scope: ScopeRoots::Below(vec!["/ml".into(), "/ml/train".into()]),
            containers: vec!["4f1e".into()],
            processes: WatchedProcesses {
                executables: vec!["/usr/bin/vllm".into()],
                gpu_users: true,
            },
            window: Duration::from_millis(50),
            model_suffixes: vec!["gguf".into(), "pt".into()],
            model_min_bytes: 1 << 30,
        }
    );
    let keys: Vec<_> = config
        .devices
        .iter()
        .map(|class| class.keys.clone())
        .collect();
    let key = |major, minor| DeviceKey { major, minor };
    let present = [key(195, ANY_MINOR), key(1, 3), key(200, 3)];
    // The absent preset keeps its place: the index is the class.
    assert_eq!(keys[..3], present.map(|key| vec![key]));
    assert_eq!(keys[3], []);
    assert_eq!(config.devices[0].slow, Duration::from_micros(250));
    assert_eq!(config.warnings.len(), 1);
    assert!(
        config.warnings[0]
            .to_string()
            .contains("\"kfd\" is not in /proc/devices")
    );
    assert_eq!(config.limits.ring_buffer_bytes, 1 << 20);
    assert_eq!(config.core.max_leases, 3);
    assert_eq!(config.core.loss_window_ms, 2000);
    assert!(config.core.disarmed);
    assert_eq!(config.driver_call_wait, Duration::from_secs(1));
    assert_eq!(config.protect.cgroup, ["/c/d"]);
    assert_eq!(config.alerts.file, Some(dir.join("a.jsonl")));
    let policy = &config.policies[0];
    assert_eq!(policy.path, dir.join("p.wasm"));
    assert_eq!(policy.grant.mode, Mode::Enforce);
    assert_eq!(policy.grant.max_power, Power::Freeze);
    assert_eq!(policy.grant.min_quota_permille, 250);
    assert_eq!(policy.grant.max_lease_ms, 5000);
    assert_eq!(policy.limits.queue_batches, 5);
    assert_eq!(policy.limits.memory_bytes, 8 << 20);
    assert_eq!(policy.settings["share"].as_float(), Some(0.5));
    assert_eq!(policy.setting_lines["n"], policy.line + 9);
    assert_eq!(config.digest.len(), 64);
    assert_eq!(config.source, Some(dir.join("palisade.toml")));
}

#[test]
fn whoever_names_processes_watches_no_cgroup() {
    let bench = Bench::new();
    for watch in [
        "gpu-users = true",
        "executables = [\"/a\"]\nall = false",
        "containers = [\"abcd\"]\ncgroups = []",
    ] {
        let config = bench.load(&format!("[watch]\n{watch}\n")).unwrap();
        assert_eq!(config.watch.scope, ScopeRoots::Below(Vec::new()), "{watch}");
    }
}

#[test]
fn a_new_installation_only_observes() {
    let bench = Bench::new();
    let config = bench.load("[policies.p]\npath = \"p.wasm\"\n").unwrap();
    assert_eq!(config.policies[0].grant, default_grant());
    assert_eq!(config.policies[0].grant.mode, Mode::Observe);
    assert_eq!(config.policies[0].grant.max_power, Power::Alert);
    assert_eq!(config.watch.scope, ScopeRoots::All);
    let names: Vec<_> = config
        .devices
        .iter()
        .map(|class| class.name.as_str())
        .collect();
    assert_eq!(names, ["nvidia", "nvidia-uvm", "drm"]);
    assert!(config.warnings.is_empty());
    let none = Config::default_with(Paths::default());
    assert!(none.policies.is_empty() && none.source.is_none());
    // SHA-256 of nothing.
    assert!(none.digest.starts_with("e3b0c44298fc1c14"));
}

#[test]
fn the_example_has_every_key_and_shows_the_defaults() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/palisade.toml");
    let text = fs::read_to_string(&example).unwrap();
    let bench = Bench::new();
    for name in ["gpu-contention", "reload-loop"] {
        fs::write(bench.dir.path().join(format!("{name}.wasm")), b"x").unwrap();
    }
    let config = bench.load(&text).unwrap();
    assert_eq!(config.policies.len(), 2);
    // Every commented default, put in force, is the default.
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if is_default(rest) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let spelled = bench.load(&uncommented).unwrap();
    assert_eq!(spelled.paths, Paths::default());
    assert_eq!(spelled.watch, Watch::default());
    assert_eq!(spelled.sensors, Sensors::default());
    assert_eq!(spelled.limits, Limits::default());
    assert_eq!(spelled.core, default_core());
    assert_eq!(spelled.driver_call_wait, DEFAULT_DRIVER_CALL_WAIT);
    assert_eq!(spelled.devices[0].slow, DEFAULT_SLOW_CALL);
    let grant = &spelled.policies[0].grant;
    assert_eq!(
        *grant,
        palisade_core::Grant {
            max_power: Power::Throttle,
            ..default_grant()
        }
    );
}

/// `key = value` whose value is the default: not a second example of a key that is set below or
/// that has no default, and not a section.
fn is_default(line: &str) -> bool {
    let Some((key, _)) = line.split_once(" = ") else {
        return false;
    };
    let no_default = [
        "cgroups",
        "containers",
        "executables",
        "webhook",
        "file",
        "power",
        "exe",
        "unit",
        "memory",
        "cgroup",
        "cuda-library",
    ];
    !key.contains(' ') && !no_default.contains(&key)
}

#[test]
fn the_folders_are_found_in_a_file_with_other_faults() {
    let bench = Bench::new();
    let file = bench.dir.path().join("c.toml");
    fs::write(
        &file,
        "run_dir = \"/r\"\nbogus = 1\n[policies.p]\npath = \"gone\"\n",
    )
    .unwrap();
    assert_eq!(Paths::load(&file).unwrap().run_dir, PathBuf::from("/r"));
    fs::write(&file, "run_dir = 5\n").unwrap();
    assert_eq!(Paths::load(&file).unwrap_err().faults[0].line, 1);
}

#[test]
fn without_a_host_nothing_outside_the_file_is_looked_for() {
    let bench = Bench::new();
    let file = bench.dir.path().join("c.toml");
    fs::write(
        &file,
        "[watch]\ncgroups = [\"/none\"]\n[policies.p]\npath = \"gone\"\n",
    )
    .unwrap();
    assert!(Config::load_for(&file, None).is_ok());
    assert_eq!(
        Config::load_for(&file, Some(&bench.host))
            .unwrap_err()
            .faults
            .len(),
        2
    );
}

#[test]
fn any_text_is_answered_and_never_a_panic() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/palisade.toml");
    let text: Vec<char> = fs::read_to_string(&example).unwrap().chars().collect();
    let bench = Bench::new();
    let context = sections::Context {
        base: Path::new("/"),
        host: Some(&bench.host),
    };
    let mut state = 7_u64;
    let mut random = |below: usize| {
        // Numerical Recipes' generator: the same texts in every run.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let alphabet: Vec<char> = "[]{}=\"'.,#\n -_0aé\u{1F600}".chars().collect();
    for _ in 0..300 {
        let mut mutant = text.clone();
        for _ in 0..=random(20) {
            let at = random(mutant.len());
            match random(3) {
                0 => drop(mutant.drain(at..(at + random(40)).min(mutant.len()))),
                1 => mutant.insert(at, alphabet[random(alphabet.len())]),
                _ => mutant[at] = alphabet[random(alphabet.len())],
            }
        }
        let mutant: String = mutant.into_iter().collect();
        let mut faults = Faults::new(&mutant);
        with_document(&mutant, &mut faults, |root, faults| {
            sections::document(root, context, faults)
        });
        for fault in &faults.faults {
            assert!(fault.line >= 1 && !fault.message.is_empty());
        }
    }
}
