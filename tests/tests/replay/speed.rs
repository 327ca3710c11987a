//! How fast a recording is played has no say in what is decided.

use crate::{burner, react, recorded_run, replay, summary};
use palisade_tests::{TestCgroup, binaries, live_or_skip};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// How much longer the run goes on after its first decision.
const GOES_ON: Duration = Duration::from_secs(2);

#[test]
fn a_replay_in_real_time_gives_the_same_lines_and_takes_no_less_than_the_run() {
    live_or_skip!("a_replay_in_real_time_gives_the_same_lines_and_takes_no_less_than_the_run");
    let cgroup = TestCgroup::new("speed").unwrap();
    let config = react(&cgroup, "observe", "quota");
    let (agent, recording) = recorded_run(&cgroup, &config, |agent, cgroup| {
        let _burner = burner(cgroup, "60000");
        let decided = |record: &serde_json::Value| record["kind"] == "decision";
        agent.wait_for("a decision", decided).unwrap();
        thread::sleep(GOES_ON);
    });
    let of = |summary: &serde_json::Value, name: &str| summary[name].as_u64().unwrap();
    let summary = summary(&recording);
    let span = Duration::from_nanos(of(&summary, "last_ns") - of(&summary, "first_ns"));
    assert!(span >= GOES_ON / 2, "{summary}");

    let config = agent.dir.path().join("palisade.toml");
    let (at_most, _) = replay(&recording, &config);
    assert!(!at_most.is_empty());
    let begun = Instant::now();
    let output = Command::new(binaries().join("palisade"))
        .args(["replay", "--json", "--speed", "1x", "--config"])
        .args([&config, &recording])
        .output()
        .unwrap();
    let took = begun.elapsed();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), at_most);
    // A lower bound only: how much longer a busy machine takes says nothing.
    assert!(took >= span, "{took:?} for {span:?}");
}
