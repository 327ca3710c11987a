//! `palisade top` against a running agent: numbers by workload, a subscription that ends by itself, and a
//! terminal that is given back.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use palisade_tests::{Agent, TestCgroup, Ward, binaries, eventually, live_or_skip};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a look is kept after its last question (`LINGER` of the runtime), and something over.
const LINGER: Duration = Duration::from_secs(25);

fn config(cgroup: &TestCgroup) -> String {
    format!(
        "[watch]\ncgroups = [{:?}]\n\n[[devices]]\nname = \"ptmx\"\npath = \"/dev/ptmx\"\n",
        cgroup.path()
    )
}

fn subscribed(agent: &Agent) -> u64 {
    let status: Value = serde_json::from_str(&agent.call(&["status", "--json"]).unwrap()).unwrap();
    status["sensors"]["report"]["kinds"].as_u64().unwrap()
}

#[test]
fn a_look_shows_the_workload_and_is_over_by_itself() {
    live_or_skip!("a_look_shows_the_workload_and_is_over_by_itself");
    let cgroup = TestCgroup::new("top").unwrap();
    let agent = Agent::start(&config(&cgroup)).unwrap();
    let before = subscribed(&agent);
    let mut command = Command::new(binaries().join("target"));
    cgroup.enter(command.args(["burn", "60000"]));
    let _burner = Ward::start(&mut command).unwrap();

    let text = agent
        .call(&["top", "--once", "--json", "--interval", "2"])
        .unwrap();
    let snapshot: Value = serde_json::from_str(&text).unwrap();
    assert!(snapshot["window_s"].as_u64() >= Some(2), "{text}");
    let workloads = snapshot["workloads"].as_array().unwrap();
    let found = workloads.iter().find(|w| w["cgroup"] == cgroup.path());
    let workload = found.unwrap_or_else(|| panic!("no {} in {text}", cgroup.path()));
    // What it does: driver calls one after the other, on one CPU.
    assert!(
        workload["values"]["gpu_calls"].as_f64() > Some(0.0),
        "{workload}"
    );
    assert!(workload["values"]["maps"].is_number(), "{workload}");
    // No request was answered: absent, not 0.
    assert_eq!(workload["values"]["syscalls_per_inference"], Value::Null);
    assert_eq!(workload["graphs"]["gpu_time"].as_array().unwrap().len(), 60);
    assert_eq!(workload["commands"][0]["device"], "ptmx");
    assert!(
        workload["commands"][0]["name"]
            .as_str()
            .unwrap()
            .starts_with("0x")
    );
    assert_eq!(workload["processes"][0]["comm"], "target");
    assert_ne!(subscribed(&agent), before);
    let table = agent.call(&["top", "--once", "--interval", "1"]).unwrap();
    assert!(
        table.contains("WORKLOAD") && table.contains(cgroup.path()),
        "{table}"
    );

    let until = Instant::now() + LINGER;
    while subscribed(&agent) != before {
        assert!(Instant::now() < until, "the subscription outlasts the look");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn without_an_agent_the_next_command_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(binaries().join("palisade"))
        .args(["top", "--once", "--config", "/nowhere", "--run-dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(6));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("palisade run --config"), "{said}");
}

/// `palisade top` on a terminal of its own.
struct Screen {
    ward: Ward,
    keys: File,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Screen {
    fn open(agent: &Agent) -> Self {
        Self::sized(agent, 30)
    }

    fn sized(agent: &Agent, lines: u16) -> Self {
        let size = nix::pty::Winsize {
            ws_row: lines,
            ws_col: 120,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = nix::pty::openpty(Some(&size), None).unwrap();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = Command::new(binaries().join("palisade"));
        command
            .args(["top", "--config"])
            .arg(agent.dir.path().join("palisade.toml"))
            .env("TERM", "xterm")
            .stdin(slave())
            .stdout(slave())
            .stderr(slave());
        let ward = Ward::start(&mut command).unwrap();
        drop(command);
        let keys = File::from(pty.master);
        let seen = Arc::new(Mutex::new(Vec::new()));
        // Ends with the last holder of the other side.
        let (mut output, sink) = (keys.try_clone().unwrap(), Arc::clone(&seen));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                sink.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        Self { ward, keys, seen }
    }

    fn has(&self, text: &str) -> bool {
        let seen = self.seen.lock().unwrap();
        seen.windows(text.len()).any(|part| part == text.as_bytes())
    }

    fn wait_for(&self, text: &str) {
        eventually(text, || self.has(text).then_some(())).unwrap_or_else(|error| {
            let seen = self.seen.lock().unwrap().clone();
            panic!("{error}: {:?}", String::from_utf8_lossy(&seen))
        });
    }
}

/// What a terminal is told when its usual screen comes back.
const GIVEN_BACK: &str = "\u{1b}[?1049l";

#[test]
fn the_terminal_is_given_back_by_a_key_and_by_a_signal() {
    live_or_skip!("the_terminal_is_given_back_by_a_key_and_by_a_signal");
    let cgroup = TestCgroup::new("top-screen").unwrap();
    let agent = Agent::start(&config(&cgroup)).unwrap();

    let mut screen = Screen::open(&agent);
    screen.wait_for("\u{1b}[?1049h");
    screen.wait_for("WORKLOAD");
    screen.keys.write_all(b"?").unwrap();
    // A word: only the cells that differ are written, so a line does not come in one piece.
    screen.wait_for("gathers");
    screen.keys.write_all(b"q").unwrap();
    screen.wait_for(GIVEN_BACK);
    let status = screen.ward.0.wait().unwrap();
    assert_eq!(status.code(), Some(0));

    // Ten lines have no room for the help: its last line comes with the End key, the first page does not have it.
    let mut screen = Screen::sized(&agent, 10);
    screen.wait_for("WORKLOAD");
    screen.keys.write_all(b"?").unwrap();
    screen.wait_for("gathers");
    assert!(!screen.has("compute"));
    screen.keys.write_all(b"\x1b[6~\x1b[F").unwrap();
    screen.wait_for("compute");
    screen.keys.write_all(b"q").unwrap();
    assert_eq!(screen.ward.0.wait().unwrap().code(), Some(0));

    let mut screen = Screen::open(&agent);
    screen.wait_for("WORKLOAD");
    let pid = rustix::process::Pid::from_child(&screen.ward.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    screen.wait_for(GIVEN_BACK);
    let status = screen.ward.0.wait().unwrap();
    assert_eq!(status.signal(), Some(15), "{status}");
}
