//! The stock policies on this kernel, with their own settings where that takes seconds: harmless loads that look
//! like harmful ones stay quiet, harmful ones are named.
//!
//! The same loads with all their times are replayed in the policies' own tests; here the kernel makes the events.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use palisade_tests::{Agent, TestCgroup, Ward, binaries, live_or_skip, policy};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Sparse, but its pages go through the page cache: larger than what `reload-loop` passes over.
const MODEL_BYTES: u64 = 128 << 20;
/// How long the harmless loads run. `gpu-contention` is sure after two seconds.
const CALM: Duration = Duration::from_secs(5);

/// A pseudo-terminal in the place of a GPU. There as long as its other end is open.
struct Device {
    _other_end: PtyMaster,
    path: PathBuf,
}

impl Device {
    fn new() -> Self {
        let other_end = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&other_end).unwrap();
        unlockpt(&other_end).unwrap();
        let path = ptsname_r(&other_end).unwrap().into();
        Self {
            _other_end: other_end,
            path,
        }
    }
}

fn model(folder: &Path) -> PathBuf {
    let path = folder.join("model.safetensors");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(MODEL_BYTES)
        .unwrap();
    path
}

fn agent(cgroups: &[&TestCgroup], device: &Device, reload_settings: &str) -> Agent {
    let paths: Vec<&str> = cgroups.iter().map(|cgroup| cgroup.path()).collect();
    Agent::start(&format!(
        "[watch]\ncgroups = {paths:?}\n[[devices]]\nname = \"pty\"\npath = {:?}\n\
         [policies.gpu-contention]\npath = {:?}\npower = \"throttle\"\n\
         [policies.reload-loop]\npath = {:?}\npower = \"throttle\"\n{reload_settings}\n",
        device.path,
        policy("gpu-contention"),
        policy("reload-loop"),
    ))
    .unwrap()
}

/// `palisade-workload`, from its start on in the cgroup.
fn workload(cgroup: &TestCgroup, arguments: &[&str]) -> Command {
    let mut command = Command::new(binaries().join("palisade-workload"));
    for dir in cgroup.dirs() {
        command.arg("--join").arg(dir);
    }
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn start(cgroup: &TestCgroup, arguments: &[&str]) -> Ward {
    Ward::start(&mut workload(cgroup, arguments)).unwrap()
}

/// Decisions so far, whatever they were.
fn decisions(agent: &Agent) -> Vec<serde_json::Value> {
    let mut records = agent.audit();
    records.retain(|record| record["kind"] == "decision");
    records
}

/// Records that each policy has been given.
fn given(agent: &Agent) -> Vec<(String, u64)> {
    let status: serde_json::Value =
        serde_json::from_str(&agent.call(&["status", "--json"]).unwrap()).unwrap();
    let policies = status["policies"].as_array().unwrap().iter();
    policies
        .map(|policy| {
            (
                policy["name"].as_str().unwrap().to_owned(),
                policy["records"].as_u64().unwrap(),
            )
        })
        .collect()
}

/// Compiles something short over and over until it is dropped; `None` without a compiler.
fn compile(cgroup: &TestCgroup, folder: &Path) -> Option<Ward> {
    use std::fmt::Write as _;
    let mut source = String::new();
    for n in 0..200 {
        let _ = writeln!(
            source,
            "int f{n}(int a) {{ int s = {n}; for (int i = 0; i < a; i++) s += i * s ^ a; return s; }}"
        );
    }
    std::fs::write(folder.join("source.c"), source).unwrap();
    Command::new("cc").arg("--version").output().ok()?;
    let mut command = Command::new("sh");
    command
        .args(["-c", "while cc -O2 -c source.c -o object.o; do :; done"])
        .current_dir(folder)
        .stdin(Stdio::null());
    cgroup.enter(&mut command);
    Some(Ward::start(&mut command).unwrap())
}

#[test]
fn harmless_loads_stay_quiet() {
    live_or_skip!("harmless_loads_stay_quiet");
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let device = Device::new();
    let path = device.path.to_str().unwrap();
    let model = model(folder.path());
    let cgroups: Vec<TestCgroup> = ["spinner", "monitor", "service", "loaders", "compile"]
        .iter()
        .map(|name| TestCgroup::new(name).unwrap())
        .collect();
    let [spinner, monitor, service, loaders, compiler] = &cgroups[..] else {
        unreachable!("five were made");
    };
    let agent = agent(&cgroups.iter().collect::<Vec<_>>(), &device, "");
    let compiling = compile(compiler, folder.path());
    if compiling.is_none() {
        eprintln!("SKIPPED harmless_loads_stay_quiet(compile): there is no C compiler");
    }
    // The device has a well-behaved user besides, so that someone could be kept waiting.
    let _others = [
        start(spinner, &["yield-spinner"]),
        start(spinner, &["yield-spinner"]),
        start(monitor, &["poller", "--every-ms", "1000", "--device", path]),
        start(service, &["service", "--device", path]),
        start(
            loaders,
            &[
                "loaders",
                "--workers",
                "4",
                "--model",
                model.to_str().unwrap(),
            ],
        ),
    ];
    std::thread::sleep(CALM);
    // They saw what happened, and it did not bother them.
    for (name, records) in given(&agent) {
        assert!(records > 0, "{name} saw nothing");
    }
    let decisions = decisions(&agent);
    assert!(decisions.is_empty(), "{decisions:#?}");
    drop(compiling);
    // `sh` was ended; a compiler that it had started ends by itself.
}

#[test]
fn whoever_holds_the_driver_is_named_with_the_stock_settings() {
    live_or_skip!("whoever_holds_the_driver_is_named_with_the_stock_settings");
    let probe = Command::new(binaries().join("palisade-workload"))
        .arg("probe")
        .output()
        .unwrap();
    if !probe.status.success() {
        eprintln!(
            "SKIPPED whoever_holds_the_driver_is_named_with_the_stock_settings: {}",
            String::from_utf8_lossy(&probe.stderr).trim()
        );
        return;
    }
    let device = Device::new();
    let path = device.path.to_str().unwrap();
    let (hog, service) = (
        TestCgroup::new("hog").unwrap(),
        TestCgroup::new("service").unwrap(),
    );
    let agent = agent(&[&hog, &service], &device, "");
    let _service = start(&service, &["service", "--device", path]);
    let begun = Instant::now();
    let mut command = workload(
        &hog,
        &[
            "device-hog",
            "--burn-ms",
            "60",
            "--hold-ms",
            "40",
            "--device",
            path,
        ],
    );
    let _hog = Ward::start(&mut command).unwrap();
    let decision = agent
        .wait_for("a decision about the hog", |record| {
            record["kind"] == "decision" && record["policy"]["name"] == "gpu-contention"
        })
        .unwrap();
    eprintln!(
        "MEASURED the hog was named after {:.1} s; stated: two windows of 1 s in a row, of which the first begins with it",
        begun.elapsed().as_secs_f64()
    );
    assert_eq!(
        decision["request"]["target"]["workload"],
        hog.id(),
        "{decision}"
    );
}

#[test]
fn whoever_loads_again_and_again_is_named_with_its_file() {
    live_or_skip!("whoever_loads_again_and_again_is_named_with_its_file");
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let device = Device::new();
    let model = model(folder.path());
    let looping = TestCgroup::new("loop").unwrap();
    // Stock settings would take a minute: three loads at least 30 s apart.
    let agent = agent(&[&looping], &device, "settings = { min_gap_ms = 500 }");
    let begun = Instant::now();
    let _loader = start(
        &looping,
        &[
            "reload-loop",
            "--gap-ms",
            "600",
            "--model",
            model.to_str().unwrap(),
        ],
    );
    let decision = agent
        .wait_for("a decision about the loader", |record| {
            record["kind"] == "decision" && record["policy"]["name"] == "reload-loop"
        })
        .unwrap();
    eprintln!(
        "MEASURED the loader was named after {:.1} s; stated: at its third load, 500 ms or more apart",
        begun.elapsed().as_secs_f64()
    );
    assert_eq!(
        decision["request"]["target"]["workload"],
        looping.id(),
        "{decision}"
    );
    let reason = decision["request"]["reason"].as_str().unwrap();
    assert!(reason.contains("model.safetensors"), "{reason}");
}
