//! The example policy on this kernel: of two services the slow one is named, by its time to the first byte.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use palisade_tests::{Agent, TestCgroup, Ward, binaries, live_or_skip, policy, within};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const REQUESTS_FOR: Duration = Duration::from_secs(4);
/// Two slow windows of 1 s in a row, of which the first begins with the first answer; the rest is for a busy machine.
const SLOW_NAMED_WITHIN: Duration = Duration::from_secs(6);
/// Connections to the slow service, so that a window has requests enough.
const CLIENTS: usize = 8;

/// A service in that cgroup and its port.
fn service(cgroup: &TestCgroup, delay_ms: &str) -> (Ward, u16) {
    let mut command = Command::new(binaries().join("target"));
    cgroup.enter(
        command
            .args(["serve", delay_ms])
            .stdin(Stdio::null())
            .stdout(Stdio::piped()),
    );
    let mut ward = Ward::start(&mut command).unwrap();
    let mut line = String::new();
    BufReader::new(ward.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    (ward, line.trim().parse().unwrap())
}

/// Asks and waits for the answer, over and over.
fn ask(port: u16) -> u32 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (until, mut answers) = (Instant::now() + REQUESTS_FOR, 0);
    while Instant::now() < until {
        stream.write_all(b"question").unwrap();
        let mut answer = [0; 64];
        assert!(stream.read(&mut answer).unwrap() > 0);
        answers += 1;
        // The quick one need not be asked as fast as it can answer.
        thread::sleep(Duration::from_millis(5));
    }
    answers
}

#[test]
fn the_slow_service_is_named_and_the_quick_one_is_not() {
    live_or_skip!("the_slow_service_is_named_and_the_quick_one_is_not");
    let (slow, quick) = (
        TestCgroup::new("slow").unwrap(),
        TestCgroup::new("quick").unwrap(),
    );
    // 600 ms lie in the bucket from 524 to 1049 ms; the quick one stays far below on a busy machine, too.
    let agent = Agent::start(&format!(
        "[watch]\ncgroups = [{:?}, {:?}]\n[policies.slow-first-byte]\npath = {:?}\n\
         settings = {{ limit_ms = 500, window_ms = 1000, min_requests = 5 }}\n",
        slow.path(),
        quick.path(),
        policy("slow-first-byte"),
    ))
    .unwrap();
    let (_slow, slow_port) = service(&slow, "600");
    let (_quick, quick_port) = service(&quick, "1");
    let begun = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| thread::spawn(move || ask(slow_port)))
        .collect();
    let quick_client = thread::spawn(move || ask(quick_port));
    let decision = agent
        .wait_for("an alert about the slow service", |record| {
            record["kind"] == "decision"
        })
        .unwrap();
    within(
        "the slow service was named",
        begun.elapsed(),
        SLOW_NAMED_WITHIN,
    );
    for client in clients {
        assert!(client.join().unwrap() > 2);
    }
    assert!(quick_client.join().unwrap() > 5);
    let request = &decision["request"];
    assert_eq!(request["target"]["workload"], slow.id(), "{decision}");
    let about = |record: &serde_json::Value, cgroup: &TestCgroup| {
        record["kind"] == "decision" && record["request"]["target"]["workload"] == cgroup.id()
    };
    let all = agent.audit();
    assert_eq!(all.iter().filter(|record| about(record, &slow)).count(), 1);
    assert!(!all.iter().any(|record| about(record, &quick)), "{all:#?}");
}
