//! Recordings of real runs: replayed they give the run's own decisions, byte for byte and each time; made beside an agent,
//! ended by a signal or by a crash.
#![allow(clippy::unwrap_used)] // a failed step ends the test

#[path = "replay/full.rs"]
mod full;
#[path = "replay/speed.rs"]
mod speed;

use palisade::recording::{Origin, Writer};
use palisade_core::Decision;
use palisade_tests::{Agent, TestCgroup, Ward, binaries, eventually, live_or_skip, policy};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::{Path, PathBuf};
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

/// Everything of the core's decisions and undos, in order, as the audit log has it. Of an audit record only what the log adds
/// is left out: its place in the chain, the time of writing, and who the target was in words.
fn decided(audit: &[Value]) -> Vec<String> {
    let decision = |record: &Value| {
        let decision: Decision = serde_json::from_value(record.clone()).unwrap();
        serde_json::to_string(&decision).unwrap()
    };
    audit
        .iter()
        .filter_map(|record| match record["kind"].as_str() {
            Some("decision") => Some(decision(record)),
            Some("undo_intent") => Some(format!(
                "undo {} {} {}",
                record["effect"], record["lease"], record["why"]
            )),
            _ => None,
        })
        .collect()
}

/// The same of a replay's lines.
fn replayed(lines: &str) -> Vec<String> {
    lines
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            match line["effect"].as_str() {
                Some("record") => {
                    let decision: Decision =
                        serde_json::from_value(line["decision"].clone()).unwrap();
                    serde_json::to_string(&decision).unwrap()
                }
                Some("undo") => format!("undo {} {} {}", line["id"], line["lease"], line["why"]),
                other => panic!("{other:?}: {line}"),
            }
        })
        .collect()
}

/// On an emulated processor a first call can use up the usual deadline; a policy that is struck for that is not followed.
const UNHURRIED: &str = "[limits]\npolicy-deadline = \"10s\"\n";

/// The configuration of the guest that asks for something at each driver call.
fn react(cgroup: &TestCgroup, mode: &str, action: &str) -> String {
    format!(
        "{UNHURRIED}[watch]\ncgroups = [{:?}]\n[[devices]]\nname = \"ptmx\"\npath = \"/dev/ptmx\"\nslow = \"0ms\"\n\
         [policies.react]\npath = {:?}\nmode = {mode:?}\npower = \"signal\"\ncooldown = \"0s\"\nactions-per-minute = 60\n\
         settings = {{ action = {action:?}, lease-ms = 500 }}\n",
        cgroup.path(),
        policy("guests/react"),
    )
}

/// A recorded run under that configuration, until `through`.
fn recorded_run(
    cgroup: &TestCgroup,
    config: &str,
    through: impl FnOnce(&Agent, &TestCgroup),
) -> (Agent, PathBuf) {
    let dir = tempfile::Builder::new()
        .prefix("palisade-test-")
        .tempdir()
        .unwrap();
    let recording = dir.path().join("run.arrows");
    let mut agent =
        Agent::start_in(dir, config, &["--record", recording.to_str().unwrap()]).unwrap();
    through(&agent, cgroup);
    assert_eq!(agent.end().unwrap(), Some(0), "{}", agent.log());
    (agent, recording)
}

fn burner(cgroup: &TestCgroup, ms: &str) -> Ward {
    let mut command = Command::new(binaries().join("target"));
    cgroup.enter(command.args(["burn", ms]));
    Ward::start(&mut command).unwrap()
}

/// Standard output and error of `palisade replay`, as JSON lines.
fn replay(recording: &Path, config: &Path) -> (String, String) {
    let output = Command::new(binaries().join("palisade"))
        .args(["replay", "--json", "--config"])
        .arg(config)
        .arg(recording)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (lines, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    (lines, said)
}

/// The replay gives what the run decided, twice, and says so.
fn assert_the_same(agent: &Agent, recording: &Path) -> Vec<String> {
    let config = agent.dir.path().join("palisade.toml");
    let (first, said) = replay(recording, &config);
    let live = decided(&agent.audit());
    assert_eq!(replayed(&first), live, "{said}\n{}", agent.log());
    assert!(
        said.contains("the decisions are those of the recorded run"),
        "{said}"
    );
    assert_eq!(first, replay(recording, &config).0);
    live
}

/// Whether one of them holds the text.
fn any(decided: &[String], text: &str) -> bool {
    decided.iter().any(|line| line.contains(text))
}

#[test]
fn a_run_that_acts_replays_to_its_own_decisions() {
    live_or_skip!("a_run_that_acts_replays_to_its_own_decisions");
    let cgroup = TestCgroup::new("replay").unwrap();
    let (agent, recording) = recorded_run(
        &cgroup,
        &react(&cgroup, "enforce", "quota"),
        |agent, cgroup| {
            let verdict = |what: &str, name: &str, beyond: usize| {
                let seen = || {
                    let records = agent.audit();
                    let named = records.iter().filter(|record| {
                        record["verdict"] == name || record["reason"]["gate"] == name
                    });
                    (named.count() > beyond).then_some(())
                };
                eventually(what, seen).unwrap();
            };
            let burner = burner(cgroup, "60000");
            verdict("a renewal", "renewed", 0);
            agent.call(&["disarm"]).unwrap();
            verdict("a refusal", "disarmed", 0);
            agent.call(&["arm"]).unwrap();
            verdict("another grant", "granted", 1);
            agent.call(&["leases", "release"]).unwrap();
            verdict("a third grant", "granted", 2);
            drop(burner);
            let undone =
                |record: &Value| record["kind"] == "undo_intent" && record["why"] == "expired";
            agent.wait_for("the end of the lease", undone).unwrap();
        },
    );
    let live = assert_the_same(&agent, &recording);
    for text in [
        "granted", "renewed", "disarmed", "released", "expired", "undo",
    ] {
        assert!(any(&live, text), "{text}: {live:#?}");
    }

    // Under other limits it is another story, which is said.
    let config = agent.dir.path().join("palisade.toml");
    let other = agent.dir.path().join("other.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &other,
        text.replace("cooldown", "min-quota = 0.5\ncooldown"),
    )
    .unwrap();
    let (lines, said) = replay(&recording, &other);
    assert!(
        said.contains("may not be those of the recorded run: the configuration"),
        "{said}"
    );
    assert!(any(&replayed(&lines), "quota 100 to 500"), "{lines}");

    // A torn tail loses the last chunk only, and says so.
    let bytes = std::fs::read(&recording).unwrap();
    std::fs::write(&recording, &bytes[..bytes.len() - 20]).unwrap();
    let (lines, said) = replay(&recording, &config);
    assert!(said.contains("cut off"), "{said}");
    let torn = replayed(&lines);
    assert_eq!(torn, live[..torn.len()]);
}

#[test]
fn a_run_that_observes_replays_to_its_own_decisions() {
    live_or_skip!("a_run_that_observes_replays_to_its_own_decisions");
    let cgroup = TestCgroup::new("watched").unwrap();
    let (agent, recording) = recorded_run(
        &cgroup,
        &react(&cgroup, "observe", "terminate"),
        |agent, cgroup| {
            let observed = |record: &Value| record["verdict"] == "observed";
            let first = burner(cgroup, "60000");
            agent.wait_for("a decision", observed).unwrap();
            // Its last requests find it gone, or not: the recording knows.
            drop(first);
            let second = burner(cgroup, "60000");
            let pid = second.pid();
            let of_second = |record: &Value| {
                observed(record) && record["request"]["target"]["process"]["pid"] == pid
            };
            agent
                .wait_for("a decision about the second", of_second)
                .unwrap();
        },
    );
    let live = assert_the_same(&agent, &recording);
    assert!(any(&live, "\"observed\""), "{live:#?}");
    let summary = summary(&recording);
    assert!(summary["facts"].as_u64() >= Some(2), "{summary}");
    assert_eq!(summary["notes_lost"], 0, "{summary}");
}

#[test]
fn a_run_that_ends_its_target_replays_to_its_own_decisions() {
    live_or_skip!("a_run_that_ends_its_target_replays_to_its_own_decisions");
    let cgroup = TestCgroup::new("ended").unwrap();
    let (agent, recording) = recorded_run(
        &cgroup,
        &react(&cgroup, "enforce", "terminate"),
        |agent, cgroup| {
            let mut burner = burner(cgroup, "60000");
            burner.0.wait().unwrap();
            agent
                .wait_for("the outcome", |record| record["kind"] == "outcome")
                .unwrap();
        },
    );
    let live = assert_the_same(&agent, &recording);
    assert!(any(&live, "granted"), "{live:#?}");
}

#[test]
fn a_policy_that_asks_who_is_who_is_answered_as_in_the_run() {
    live_or_skip!("a_policy_that_asks_who_is_who_is_answered_as_in_the_run");
    let cgroup = TestCgroup::new("asks").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("again.gguf");
    std::fs::write(&model, vec![7; 8192]).unwrap();
    let config = format!(
        "{UNHURRIED}[watch]\ncgroups = [{:?}]\n[policies.reload-loop]\npath = {:?}\nmode = \"enforce\"\npower = \"throttle\"\n\
         cooldown = \"0s\"\nactions-per-minute = 60\n\
         settings = {{ epochs = 2, min_gap_ms = 1, min_file_mib = 0, count_opens = true, lease_ms = 1000 }}\n",
        cgroup.path(),
        policy("reload-loop"),
    );
    let (agent, recording) = recorded_run(&cgroup, &config, |agent, cgroup| {
        let mut command = Command::new("sh");
        command
            .args(["-c", "while :; do cat \"$0\" >/dev/null; sleep 0.1; done"])
            .arg(&model);
        cgroup.enter(&mut command);
        let _loader = Ward::start(&mut command).unwrap();
        agent
            .wait_for("a renewal", |record| record["verdict"] == "renewed")
            .unwrap();
    });
    let live = assert_the_same(&agent, &recording);
    // Both names are answers: the policy knows numbers only.
    assert!(
        any(&live, "again.gguf") && any(&live, cgroup.path()),
        "{live:#?}"
    );
    let summary = summary(&recording);
    assert!(summary["answers"].as_u64() >= Some(2), "{summary}");
}

#[test]
fn other_files_and_versions_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.arrows");
    let writer = Writer::create(&path, &Origin::default()).unwrap();
    drop(writer.finish().unwrap());
    let whole = std::fs::read(&path).unwrap();
    // In the metadata the version is a string of one byte: its length, the digit, NUL.
    let version = b"\x01\0\0\x003\0";
    let at = whole.windows(6).position(|bytes| bytes == version).unwrap() + 4;
    let mut later = whole.clone();
    later[at] = b'4';
    for (bytes, said) in [
        (
            &later[..],
            "format version 4; this program reads versions 1 to 3",
        ),
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
