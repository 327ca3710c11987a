//! Recordings of real runs: replayed twice they give the same decisions, byte for byte; made beside an agent, ended
//! by a signal or by a crash.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use palisade::recording::{Origin, Writer};
use palisade_tests::{Agent, TestCgroup, Ward, binaries, eventually, live_or_skip, policy};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

/// `palisade replay FILE --summary --json`.
fn summary(recording: &Path) -> Value {
    let output = Command::new(binaries().join("palisade"))
        .arg("replay")
        .arg(recording)
        .args(["--summary", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// `palisade record` of one cgroup, started and sensing.
fn record(cgroup: &TestCgroup, output: &Path) -> Ward {
    let mut command = Command::new(binaries().join("palisade"));
    command
        .args(["record", "--json", "--kinds", "exec,exit,sample-sched"])
        .args(["--cgroup", cgroup.path()])
        .arg("--output")
        .arg(output)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let ward = Ward::start(&mut command).unwrap();
    // The file is made when the probes are attached.
    eventually("the recording", || output.exists().then_some(())).unwrap();
    ward
}

/// Runs as many programs in the cgroup, one after another.
fn run(cgroup: &TestCgroup, programs: u64) {
    for _ in 0..programs {
        let mut command = Command::new("/bin/true");
        cgroup.enter(&mut command);
        assert!(command.status().unwrap().success());
    }
}

#[test]
fn a_recording_beside_an_agent_has_every_program_and_ends_at_a_signal() {
    live_or_skip!("a_recording_beside_an_agent_has_every_program_and_ends_at_a_signal");
    let cgroup = TestCgroup::new("record").unwrap();
    let config = format!("[watch]\ncgroups = [{:?}]\n", cgroup.path());
    let mut agent = Agent::start(&config).unwrap();
    let output = agent.dir.path().join("beside.arrows");
    let ward = record(&cgroup, &output);
    run(&cgroup, 20);
    kill_process(Pid::from_child(&ward.0), Signal::INT).unwrap();
    let said = wait_for(ward);
    assert_eq!(said["kinds"]["exec"], 20, "{said}");
    assert_eq!(said["kinds"]["exit"], 20, "{said}");
    assert_eq!(said["lost_to_recording"], 0, "{said}");
    let summary = summary(&output);
    assert_eq!(summary["ended"], true, "{summary}");
    for same in ["kinds", "batches", "records", "bytes", "lost_in_kernel"] {
        assert_eq!(summary[same], said[same], "{same}: {summary}");
    }
    assert!(summary["processes"].as_u64() >= Some(20), "{summary}");
    // The agent was neither kept from its lock nor stopped.
    agent.call(&["status"]).unwrap();
    assert_eq!(agent.end().unwrap(), Some(0));
}

#[test]
fn a_recording_that_was_killed_keeps_its_whole_chunks() {
    live_or_skip!("a_recording_that_was_killed_keeps_its_whole_chunks");
    let cgroup = TestCgroup::new("killed").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("killed.arrows");
    let ward = record(&cgroup, &output);
    run(&cgroup, 5);
    // A chunk is a second of the sensors' time; the second from here on has all of it for certain.
    let size = || std::fs::metadata(&output).map_or(0, |file| file.len());
    for _ in 0..2 {
        let before = size();
        eventually("a chunk", || (size() > before).then_some(())).unwrap();
    }
    drop(ward);
    let summary = summary(&output);
    assert_eq!(summary["ended"], false, "{summary}");
    assert!(summary["chunks"].as_u64() >= Some(1), "{summary}");
    assert_eq!(summary["kinds"]["exec"], 5, "{summary}");
}

/// Waits for its end, which is in order, and reads what it prints.
fn wait_for(mut ward: Ward) -> Value {
    let out = ward.0.stdout.take().unwrap();
    let said = serde_json::from_reader(out).unwrap();
    assert!(ward.0.wait().unwrap().success());
    said
}

#[test]
fn a_recorded_run_replays_to_the_same_decisions_twice() {
    live_or_skip!("a_recorded_run_replays_to_the_same_decisions_twice");
    let cgroup = TestCgroup::new("replay").unwrap();
    let dir = tempfile::Builder::new()
        .prefix("palisade-test-")
        .tempdir()
        .unwrap();
    let recording = dir.path().join("run.arrows");
    let config = format!(
        "[watch]\ncgroups = [{:?}]\n[[devices]]\nname = \"ptmx\"\npath = \"/dev/ptmx\"\nslow = \"0ms\"\n\
         [policies.react]\npath = {:?}\nmode = \"enforce\"\npower = \"signal\"\ncooldown = \"0s\"\nactions-per-minute = 60\n\
         settings = {{ action = \"quota\", lease-ms = 500 }}\n",
        cgroup.path(),
        policy("guests/react"),
    );
    let mut agent =
        Agent::start_in(dir, &config, &["--record", recording.to_str().unwrap()]).unwrap();
    let mut command = Command::new(binaries().join("target"));
    cgroup.enter(command.args(["burn", "700"]));
    let burner = Ward::start(&mut command).unwrap();
    agent
        .wait_for("the undo", |record| record["kind"] == "undo_outcome")
        .unwrap();
    drop(burner);
    assert_eq!(agent.end().unwrap(), Some(0), "{}", agent.log());

    let replay = || {
        agent
            .call(&["replay", recording.to_str().unwrap(), "--json"])
            .unwrap()
    };
    let (first, second) = (replay(), replay());
    assert_eq!(first, second);
    let summary = summary(&recording);
    assert_eq!(summary["ended"], true);
    assert_eq!(summary["origin"]["policies"], serde_json::json!(["react"]));
    assert!(summary["orders"].as_u64() >= Some(1), "{summary}");
    assert!(summary["ticks"].as_u64() >= Some(1), "{summary}");
    let lines: Vec<serde_json::Value> = first
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let granted = lines
        .iter()
        .filter(|line| line["decision"]["verdict"] == "granted")
        .count();
    let undone = lines.iter().filter(|line| line["effect"] == "undo").count();
    assert!(
        granted >= 1 && undone >= 1,
        "{granted} granted, {undone} undone in:\n{first}"
    );

    // The live run granted what the replay grants: the first decision is the same.
    let live = agent
        .audit()
        .into_iter()
        .find(|record| record["kind"] == "decision")
        .unwrap();
    assert_eq!(
        live["request"]["action"],
        lines[0]["decision"]["request"]["action"]
    );
    assert_eq!(
        live["request"]["target"],
        lines[0]["decision"]["request"]["target"]
    );
    assert_eq!(live["verdict"], lines[0]["decision"]["verdict"]);

    // A torn tail loses the last chunk only, and says so.
    let bytes = std::fs::read(&recording).unwrap();
    std::fs::write(&recording, &bytes[..bytes.len() - 20]).unwrap();
    let config = agent.dir.path().join("palisade.toml");
    let torn = Command::new(binaries().join("palisade"))
        .arg("replay")
        .arg(&recording)
        .arg("--config")
        .arg(config)
        .output()
        .unwrap();
    assert!(torn.status.success());
    assert!(
        String::from_utf8_lossy(&torn.stderr).contains("cut off"),
        "{torn:?}"
    );
}

#[test]
fn other_files_and_versions_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.arrows");
    let writer = Writer::create(&path, &Origin::default()).unwrap();
    drop(writer.finish().unwrap());
    let whole = std::fs::read(&path).unwrap();
    // In the metadata the version is a string of one byte: its length, the digit, NUL.
    let version = b"\x01\0\0\x001\0";
    let at = whole.windows(6).position(|bytes| bytes == version).unwrap() + 4;
    let mut later = whole.clone();
    later[at] = b'2';
    for (bytes, said) in [
        (&later[..], "format version 2; this program reads version 1"),
        (b"PALREC\0\x01\0\0\0", "no Palisade recording"),
        (b"", "no Palisade recording"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        for arguments in [&["--summary"][..], &["--config", "/dev/null"]] {
            let output = Command::new(binaries().join("palisade"))
                .arg("replay")
                .arg(&path)
                .args(arguments)
                .output()
                .unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{errors}");
            assert!(errors.contains(said), "{errors}");
            assert_eq!(errors.trim().lines().count(), 1, "{errors}");
        }
    }
}
