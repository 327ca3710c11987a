//! A recorded run, replayed twice, gives the same decisions, byte for byte.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use palisade_tests::{Agent, TestCgroup, Ward, binaries, live_or_skip, policy};
use std::process::Command;

#[test]
fn a_recorded_run_replays_to_the_same_decisions_twice() {
    live_or_skip!("a_recorded_run_replays_to_the_same_decisions_twice");
    let cgroup = TestCgroup::new("replay").unwrap();
    let dir = tempfile::Builder::new()
        .prefix("palisade-test-")
        .tempdir()
        .unwrap();
    let recording = dir.path().join("run.pal");
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

    // A torn tail loses the last frame only, and says so.
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
