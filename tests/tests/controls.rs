//! The stock policies on this kernel, with their own settings where that takes seconds: harmless loads that look
//! like harmful ones stay quiet, harmful ones are named, each within its stated time.
//!
//! The same loads with all their times are replayed in the policies' own tests; here the kernel makes the events.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use palisade_tests::{
    Agent, TestCgroup, Ward, binaries, eventually, live_or_skip, policy, value, within, workload_in,
};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Sparse, but its pages go through the page cache: larger than what `reload-loop` passes over.
const MODEL_BYTES: u64 = 128 << 20;
/// As large as it must be to be a model by its size alone (`model-min-size`).
const HASHED_BYTES: u64 = 256 << 20;
/// What `reload-loop` is set to where loads are to be told from a loop within seconds: loads half a second apart make
/// one, instead of half a minute.
const SHORT_GAPS: &str = "settings = { min_gap_ms = 500 }";
const GAP: Duration = Duration::from_millis(500);
/// How long the harmless loads run: a loop of three loads would be told long before, and `gpu-contention` is sure after
/// two seconds.
const CALM: Duration = Duration::from_secs(6);
const _: () = assert!(CALM.as_millis() > 9 * GAP.as_millis());
/// Two contended windows of 1 s in a row, of which the first begins with the load; and a window in which it starts.
const HOG_NAMED_WITHIN: Duration = Duration::from_secs(5);
/// Three loads, 600 ms after each other, with the time that they take themselves on a busy machine.
const LOADER_NAMED_WITHIN: Duration = Duration::from_secs(10);

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

fn sparse(folder: &Path, name: &str, bytes: u64) -> PathBuf {
    let path = folder.join(name);
    std::fs::File::create(&path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
    path
}

fn model(folder: &Path) -> PathBuf {
    sparse(folder, "model.safetensors", MODEL_BYTES)
}

/// Why `O_DIRECT` cannot be had for a file, if it cannot (overlay and tmpfs before Linux 6.6).
fn no_direct(path: &Path) -> Option<nix::errno::Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_DIRECT;
    nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty()).err()
}

/// Why no load can be made to take its time in the device, if none can.
fn no_slow_calls() -> Option<String> {
    let probe = Command::new(binaries().join("palisade-workload"))
        .arg("probe")
        .output()
        .unwrap();
    let why = String::from_utf8_lossy(&probe.stderr).trim().to_owned();
    (!probe.status.success()).then_some(why)
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

/// By how many processes of that workload the file was mapped or read, and how many bytes of it in all.
fn loaded(top: &serde_json::Value, cgroup: &TestCgroup, file: &Path) -> (u64, u64) {
    let inode = std::fs::metadata(file).unwrap().ino();
    let mut models = workload_in(top, cgroup)
        .and_then(|workload| workload["models"].as_array())
        .into_iter()
        .flatten();
    let Some(model) = models.find(|model| model["inode"] == inode) else {
        return (0, 0);
    };
    let number = |name: &str| model[name].as_u64().unwrap();
    (number("processes"), number("bytes"))
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
    let mapped = model(folder.path());
    let read = sparse(folder.path(), "read.safetensors", MODEL_BYTES);
    let cgroups: Vec<TestCgroup> = [
        "spinner", "monitor", "service", "loaders", "readers", "compile",
    ]
    .iter()
    .map(|name| TestCgroup::new(name).unwrap())
    .collect();
    let [spinner, monitor, service, loaders, readers, compiler] = &cgroups[..] else {
        unreachable!("six were made");
    };
    let agent = agent(&cgroups.iter().collect::<Vec<_>>(), &device, SHORT_GAPS);
    // Model files are counted from the first look on, as long as each next one comes within 15 s.
    agent.look().unwrap();
    let compiling = compile(compiler, folder.path());
    if compiling.is_none() {
        eprintln!("SKIPPED harmless_loads_stay_quiet(compile): there is no C compiler");
    }
    let (map_path, read_path) = (mapped.to_str().unwrap(), read.to_str().unwrap());
    let four = ["loaders", "--workers", "4", "--model"];
    // The device has a well-behaved user besides, so that someone could be kept waiting.
    let _others = [
        spinner.start(&["yield-spinner"]).unwrap(),
        spinner.start(&["yield-spinner"]).unwrap(),
        monitor
            .start(&["poller", "--every-ms", "1000", "--device", path])
            .unwrap(),
        monitor
            .start(&["poller", "--every-ms", "25", "--device", path])
            .unwrap(),
        service.start(&["service", "--device", path]).unwrap(),
        // Further apart than a loop's loads; the others at the same time.
        loaders
            .start(&[&four[..], &[map_path, "--stagger-ms", "600"]].concat())
            .unwrap(),
        readers
            .start(&[&four[..], &[read_path, "--how", "read"]].concat())
            .unwrap(),
    ];
    let begun = Instant::now();
    while begun.elapsed() < CALM {
        // Takes a second.
        agent.look().unwrap();
    }
    // They saw what happened, and it did not bother them.
    for (name, records) in given(&agent) {
        assert!(records > 0, "{name} saw nothing");
    }
    // All loads were seen: four workers with a whole file each.
    let loads = eventually("four workers' loads", || {
        let top = agent.look().unwrap();
        let all = [loaded(&top, loaders, &mapped), loaded(&top, readers, &read)];
        all.iter().all(|it| it.0 == 4).then_some(all)
    });
    assert_eq!(loads.unwrap(), [(4, 4 * MODEL_BYTES); 2]);
    let decisions = decisions(&agent);
    assert!(decisions.is_empty(), "{decisions:#?}");
    drop(compiling);
    // `sh` was ended; a compiler that it had started ends by itself.
}

#[test]
fn calls_that_wait_by_design_stay_quiet() {
    live_or_skip!("calls_that_wait_by_design_stay_quiet");
    if let Some(why) = no_slow_calls() {
        eprintln!("SKIPPED calls_that_wait_by_design_stay_quiet: {why}");
        return;
    }
    let device = Device::new();
    let path = device.path.to_str().unwrap();
    let (many, one) = (
        TestCgroup::new("waits-4").unwrap(),
        TestCgroup::new("waits-1").unwrap(),
    );
    let agent = agent(&[&many, &one], &device, "");
    // Every call waits for 160 ms and holds nothing. But of the five that are under way at a time, four are of one
    // workload: to a queue of one server it is the one that is served, and the other waits for it.
    // So long that a busy machine's own delays are a small part of it.
    let waiter = |threads| {
        let calls = ["--threads", threads, "--wait-ms", "160"];
        [&["waiter", "--device", path][..], &calls].concat()
    };
    let _waiters = [
        many.start(&waiter("4")).unwrap(),
        one.start(&waiter("1")).unwrap(),
    ];
    std::thread::sleep(CALM);
    let top = agent.look().unwrap();
    let time_of = |cgroup| value(&top, cgroup, "gpu_time");
    assert!(
        time_of(&many) > Some(1.0) && time_of(&one) > Some(0.2),
        "they call: {top}"
    );
    let decisions = decisions(&agent);
    assert!(decisions.is_empty(), "{decisions:#?}");
}

#[test]
fn whoever_holds_the_driver_is_named_with_the_stock_settings() {
    live_or_skip!("whoever_holds_the_driver_is_named_with_the_stock_settings");
    if let Some(why) = no_slow_calls() {
        eprintln!("SKIPPED whoever_holds_the_driver_is_named_with_the_stock_settings: {why}");
        return;
    }
    let device = Device::new();
    let path = device.path.to_str().unwrap();
    let (hog, service) = (
        TestCgroup::new("hog").unwrap(),
        TestCgroup::new("service").unwrap(),
    );
    let agent = agent(&[&hog, &service], &device, "");
    let _service = service.start(&["service", "--device", path]).unwrap();
    let begun = Instant::now();
    let load = ["device-hog", "--burn-ms", "60", "--hold-ms", "40"];
    let _hog = hog
        .start(&[&load[..], &["--device", path]].concat())
        .unwrap();
    let decision = agent
        .wait_for("a decision about the hog", |record| {
            record["kind"] == "decision" && record["policy"]["name"] == "gpu-contention"
        })
        .unwrap();
    within("the hog was named", begun.elapsed(), HOG_NAMED_WITHIN);
    assert_eq!(
        decision["request"]["target"]["workload"],
        hog.id(),
        "{decision}"
    );
}

/// The loader is named at its third load. With the stock settings that would take a minute: three loads at least 30 s
/// apart.
fn loader_is_named(model: &Path, how: &str) {
    let device = Device::new();
    let looping = TestCgroup::new("loop").unwrap();
    let agent = agent(&[&looping], &device, SHORT_GAPS);
    let begun = Instant::now();
    let load = ["reload-loop", "--gap-ms", "600", "--how", how, "--model"];
    let _loader = looping
        .start(&[&load[..], &[model.to_str().unwrap()]].concat())
        .unwrap();
    let decision = agent
        .wait_for("a decision about the loader", |record| {
            record["kind"] == "decision" && record["policy"]["name"] == "reload-loop"
        })
        .unwrap();
    let what = format!("the loader ({how}) was named");
    within(&what, begun.elapsed(), LOADER_NAMED_WITHIN);
    assert_eq!(
        decision["request"]["target"]["workload"],
        looping.id(),
        "{decision}"
    );
    let reason = decision["request"]["reason"].as_str().unwrap();
    let name = model.file_name().unwrap().to_str().unwrap();
    assert!(reason.contains(name), "{reason}");
}

#[test]
fn whoever_maps_again_and_again_is_named_with_its_file() {
    live_or_skip!("whoever_maps_again_and_again_is_named_with_its_file");
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    loader_is_named(&model(folder.path()), "map");
}

#[test]
fn whoever_reads_again_and_again_is_named_with_its_file() {
    live_or_skip!("whoever_reads_again_and_again_is_named_with_its_file");
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    loader_is_named(&model(folder.path()), "read");
    // As a hub's cache names it: no ending says that it is a model.
    let hashed = sparse(
        folder.path(),
        "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
        HASHED_BYTES,
    );
    if let Some(why) = no_direct(&hashed) {
        eprintln!("SKIPPED whoever_reads_again_and_again_is_named_with_its_file(O_DIRECT): {why}");
        return;
    }
    loader_is_named(&hashed, "direct");
}
