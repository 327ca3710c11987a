//! Recordings that end before the run: their disk is full or not there, or they have reached their largest size.

use crate::{any, burner, decided, react, replay, replayed, run, summary};
use palisade_tests::{Agent, TestCgroup, Ward, binaries, eventually, live_or_skip};
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// The least that a recording may be at most.
const LEAST: (&str, u64) = ("64KiB", 64 << 10);

/// A file system of a few pages, in a folder of this test's own.
struct Small(tempfile::TempDir);

impl Small {
    fn new(bytes: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"])
            .arg(dir.path())
            .status();
        assert!(mount.unwrap().success());
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// An agent that records into that file.
fn recording_into(cgroup: &TestCgroup, recording: &Path, arguments: &[&str]) -> Agent {
    let config = react(cgroup, "observe", "quota");
    let dir = tempfile::Builder::new()
        .prefix("palisade-test-")
        .tempdir()
        .unwrap();
    let record = ["--record", recording.to_str().unwrap()];
    Agent::start_in(dir, &config, &[&record, arguments].concat()).unwrap()
}

/// What its status says of the recording, as soon as that is so.
fn recording_when(agent: &Agent, what: &str, so: impl Fn(&Value) -> bool) -> Value {
    let status = || {
        let status: Value =
            serde_json::from_str(&agent.call(&["status", "--json"]).unwrap()).unwrap();
        so(&status["recording"]).then(|| status["recording"].clone())
    };
    eventually(what, status).unwrap()
}

/// An agent that records into that file, and what its status says when the recording has failed.
fn recording_that_fails(cgroup: &TestCgroup, recording: &Path) -> (Agent, Value) {
    let agent = recording_into(cgroup, recording, &[]);
    let status = recording_when(&agent, "the failure", |recording| recording["ok"] == false);
    (agent, status)
}

/// The agent guards on, and what became of its recording is where people look.
fn assert_it_goes_on(agent: &mut Agent, state: &str, why: &str) {
    let said = agent.call(&["status"]).unwrap();
    let line = said.lines().find(|line| line.starts_with("record "));
    assert!(
        line.is_some_and(|line| line.contains(state) && line.contains(why)),
        "{said}"
    );
    let noted = agent.wait_for("the note", |record| {
        let text = record["text"].as_str().unwrap_or_default();
        record["kind"] == "note" && text.contains("recording") && text.contains(why)
    });
    let seq = noted.unwrap()["seq"].as_u64();
    agent
        .wait_for("a later decision", |record| {
            record["kind"] == "decision" && record["seq"].as_u64() > seq
        })
        .unwrap();
    assert_eq!(agent.end().unwrap(), Some(0), "{}", agent.log());
}

#[test]
fn a_recording_whose_disk_is_full_is_told_and_the_agent_guards_on() {
    live_or_skip!("a_recording_whose_disk_is_full_is_told_and_the_agent_guards_on");
    let cgroup = TestCgroup::new("full").unwrap();
    let disk = Small::new(32 << 10);
    let _burner = burner(&cgroup, "60000");
    let recording = disk.0.path().join("run.arrows");
    let (mut agent, status) = recording_that_fails(&cgroup, &recording);
    assert!(
        status["error"].as_str().unwrap().contains("No space left"),
        "{status}"
    );
    // What is not kept any more is counted.
    recording_when(&agent, "the count", |recording| {
        let progress = &recording["progress"];
        progress["lost"].as_u64() > Some(0) && progress["notes_lost"].as_u64() > Some(0)
    });
    assert_it_goes_on(&mut agent, "FAILED", "No space left");
    // What was written before is good.
    let summary = summary(&recording);
    assert!(summary["batches"].as_u64() > Some(0), "{summary}");
    assert_eq!(summary["ended"], false, "{summary}");
}

#[test]
fn a_recording_that_cannot_be_begun_is_told_and_the_agent_guards() {
    live_or_skip!("a_recording_that_cannot_be_begun_is_told_and_the_agent_guards");
    let cgroup = TestCgroup::new("unwritable").unwrap();
    let _burner = burner(&cgroup, "60000");
    let nowhere = Path::new("/nonexistent/run.arrows");
    let (mut agent, status) = recording_that_fails(&cgroup, nowhere);
    assert_eq!(status["path"], "/nonexistent/run.arrows", "{status}");
    assert_it_goes_on(&mut agent, "FAILED", "No such file");
}

/// Some programs a second and not all at once: a chunk of a second is to be much smaller than the file.
fn a_little(cgroup: &TestCgroup) {
    run(cgroup, 10);
    thread::sleep(Duration::from_millis(100));
}

/// The file ended in order when it was full, with something in it.
fn assert_it_is_full_and_whole(recording: &Path) {
    let (_, max_bytes) = LEAST;
    let summary = summary(recording);
    assert_eq!(summary["ended"], true, "{summary}");
    assert_eq!(summary["torn"], Value::Null, "{summary}");
    assert_eq!(summary["full"], max_bytes, "{summary}");
    assert!(summary["batches"].as_u64() > Some(0), "{summary}");
    let bytes = std::fs::metadata(recording).unwrap().len();
    assert_eq!(summary["bytes"], bytes, "{summary}");
    assert!(bytes <= max_bytes, "{bytes}");
}

#[test]
fn an_agent_whose_recording_is_full_guards_on_and_the_file_replays_as_far_as_it_goes() {
    live_or_skip!(
        "an_agent_whose_recording_is_full_guards_on_and_the_file_replays_as_far_as_it_goes"
    );
    let cgroup = TestCgroup::new("largest").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let recording = dir.path().join("run.arrows");
    let mut agent = recording_into(&cgroup, &recording, &["--max-size", LEAST.0]);
    let _burner = burner(&cgroup, "60000");
    let status = recording_when(&agent, "a full file", |recording| {
        a_little(&cgroup);
        recording["full"] == true
    });
    assert_eq!(status["ok"], true, "{status}");
    assert_eq!(status["error"], Value::Null, "{status}");
    let bytes = std::fs::metadata(&recording).unwrap().len();
    assert_it_goes_on(&mut agent, "FULL", "64KiB");
    assert_eq!(std::fs::metadata(&recording).unwrap().len(), bytes);
    assert_it_is_full_and_whole(&recording);

    let (lines, said) = replay(&recording, &agent.dir.path().join("palisade.toml"));
    let whole = "the decisions are those of the recorded run, as far as the recording goes";
    assert!(said.contains(whole) && said.contains("64KiB"), "{said}");
    let (until, live) = (replayed(&lines), decided(&agent.audit()));
    assert!(any(&until, "\"observed\""), "{lines}");
    assert!(until.len() < live.len(), "{} decisions", live.len());
    assert_eq!(until, live[..until.len()]);
}

#[test]
fn palisade_record_ends_well_when_its_file_is_full_and_says_so_in_one_line() {
    live_or_skip!("palisade_record_ends_well_when_its_file_is_full_and_says_so_in_one_line");
    let cgroup = TestCgroup::new("record-full").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("full.arrows");
    let mut command = Command::new(binaries().join("palisade"));
    command
        .args(["record", "--json", "--kinds", "exec,exit,sample-sched"])
        .args(["--max-size", LEAST.0, "--cgroup", cgroup.path(), "--output"])
        .arg(&output)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut ward = Ward::start(&mut command).unwrap();
    let ended = || {
        a_little(&cgroup);
        ward.0.try_wait().unwrap()
    };
    let ended = eventually("the end of the recording", ended).unwrap();
    let (mut said, mut errors) = (String::new(), String::new());
    let (out, err) = (ward.0.stdout.take(), ward.0.stderr.take());
    out.unwrap().read_to_string(&mut said).unwrap();
    err.unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(ended.code(), Some(0), "{errors}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["full"], true, "{said}");
    assert_eq!(said["lost_to_recording"], 0, "{said}");
    let told = errors.lines().filter(|line| line.contains("full"));
    let told: Vec<&str> = told.collect();
    assert_eq!(told.len(), 1, "{errors}");
    assert!(
        told[0].contains("is full at 64KiB") && told[0].contains("--max-size 128KiB"),
        "{errors}"
    );
    assert_it_is_full_and_whole(&output);
}
