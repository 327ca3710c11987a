#![allow(clippy::unwrap_used)]
use super::*;
use palisade_core::WorkloadId;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;

fn alert(reason: &str) -> Alert<'_> {
    Alert {
        effect: Some(EffectId(1)),
        decision: Some(2),
        policy: "gpu-contention",
        target: Some(Target::Workload(WorkloadId(7))),
        cgroup: Some("/ml/a"),
        severity: Severity::Warning,
        reason,
        evidence: &[],
    }
}

/// Answers each POST with the next status and hands its body over.
fn server(statuses: Vec<u16>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (bodies, received) = channel();
    thread::spawn(move || {
        for status in statuses {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            write!(
                stream,
                "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            .unwrap();
            if bodies.send(String::from_utf8(body).unwrap()).is_err() {
                return;
            }
        }
    });
    (url, received)
}

#[test]
fn an_alert_is_written_as_one_line_of_json() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("alerts.jsonl");
    let mut alerts = Alerts::new(AlertOptions {
        file: Some(path.clone()),
        host: "h1".to_owned(),
        webhook: None,
    });
    for _ in 0..2 {
        let outcome = alerts.raise(&alert("line\nbreak"));
        assert!(matches!(outcome, ActOutcome::Done { .. }), "{outcome:?}");
    }
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().count(), 2);
    let value: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(value["format"], 1);
    assert_eq!(value["host"], "h1");
    assert_eq!(value["severity"], "warning");
    assert_eq!(value["target"]["workload"], 7);
    assert_eq!(value["reason"], "line\nbreak");
}

#[test]
fn a_file_that_cannot_be_written_is_a_failure_that_says_so() {
    let mut alerts = Alerts::new(AlertOptions {
        file: Some("/nonexistent/alerts".into()),
        ..AlertOptions::default()
    });
    match alerts.raise(&alert("x")) {
        ActOutcome::Failed { error } => {
            assert!(
                error.starts_with("logged, but /nonexistent/alerts"),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_webhook_gets_the_body_and_a_server_error_is_retried() {
    let (url, received) = server(vec![503, 200]);
    let mut alerts = Alerts::new(AlertOptions {
        webhook: Some(url),
        ..AlertOptions::default()
    });
    let counts = alerts.counts();
    assert!(matches!(
        alerts.raise(&alert("hot")),
        ActOutcome::Done { .. }
    ));
    let wait = Duration::from_secs(20);
    let first = received.recv_timeout(wait).unwrap();
    let second = received.recv_timeout(wait).unwrap();
    assert_eq!(first, second);
    assert!(first.contains("\"reason\":\"hot\""));
    drop(alerts); // waits for the answer
    assert_eq!(counts.sent.load(Ordering::Relaxed), 1);
    assert_eq!(counts.failed.load(Ordering::Relaxed), 0);
}

#[test]
fn a_refused_alert_is_not_sent_again() {
    let (url, received) = server(vec![400]);
    let mut alerts = Alerts::new(AlertOptions {
        webhook: Some(url),
        ..AlertOptions::default()
    });
    let counts = alerts.counts();
    alerts.raise(&alert("x"));
    received.recv_timeout(Duration::from_secs(20)).unwrap();
    drop(alerts);
    assert_eq!(counts.failed.load(Ordering::Relaxed), 1);
}

#[test]
fn a_full_queue_drops_counts_and_does_not_wait() {
    // Bound but never accepted: connections are made by the kernel, answers never come.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut alerts = Alerts::new(AlertOptions {
        webhook: Some(format!("http://{}/", listener.local_addr().unwrap())),
        ..AlertOptions::default()
    });
    let mut failed = 0;
    for _ in 0..QUEUE + 10 {
        if let ActOutcome::Failed { error } = alerts.raise(&alert("x")) {
            assert!(error.contains("queue is full"), "{error}");
            failed += 1;
        }
    }
    // One may be in the thread's hands.
    assert!((9..=10).contains(&failed), "{failed}");
    assert_eq!(alerts.counts().dropped.load(Ordering::Relaxed), failed);
}
