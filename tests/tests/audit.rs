//! The audit log from outside: what is written can be verified, what is changed is found.

use palisade::audit::{
    self, Audit, AuditError, Entry, Filter, Follow, Head, Options, PolicyChange, Report, Status,
    VerifyOptions,
};
use palisade_core::{
    ActOutcome, Action, Decision, EffectId, Evidence, Knob, Lease, LeaseId, PolicyRef, ProcessId,
    Reason, Request, Severity, Target, Verdict, WorkloadId,
};
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn policy() -> PolicyRef {
    PolicyRef {
        name: "gpu-contention".into(),
        version: "0.1.0".into(),
        sha256: "ab".repeat(32),
        generation: 1,
    }
}

fn decision(id: u64, pid: u32, verdict: Verdict) -> Entry {
    Entry::Decision {
        decision: Decision {
            id,
            batch: id * 3,
            policy: policy(),
            request: Request {
                target: Target::Process(ProcessId { pid, start_ns: 123_456_789_012_345 }),
                action: Action::CpuQuota(200),
                lease_ms: 5000,
                severity: Severity::Warning,
                reason: "holds the driver 8 times as long as all others".into(),
                evidence: vec![Evidence { name: "hold".into(), value: 812.5, unit: "ms".into() }],
            },
            verdict,
        },
        who: audit::Identity {
            exe: Some("/usr/bin/hog\n\u{1b}[31m".into()),
            comm: Some("hog".into()),
            cgroup: Some(format!("/ml/job-{pid}")),
            container: None,
        },
    }
}

fn lease(id: u64) -> Lease {
    Lease {
        id: LeaseId(id),
        workload: WorkloadId(77),
        cgroup: "/ml/job-42".into(),
        knob: Knob::CpuQuota,
        value: 200,
        owners: vec!["gpu-contention".into()],
        until_ns: 99,
    }
}

fn done(observed: &str) -> ActOutcome {
    ActOutcome::Done { observed: observed.into(), original: Some("max 100000".into()) }
}

fn start() -> Entry {
    Entry::Start {
        agent: "0.1.0".into(),
        kernel: "6.18".into(),
        config_sha256: "cd".repeat(32),
        policies: vec![policy()],
        sensors: serde_json::json!({ "sched": { "attached": "tracepoint" } }),
        protected: vec!["pid 1".into()],
    }
}

fn incident(audit: &Audit, id: u64) {
    let effect = EffectId(id);
    audit.append(decision(id, 42, Verdict::Granted { effect, clamped: None }));
    audit.append(Entry::Intent {
        effect,
        decision: id,
        policy: "gpu-contention".into(),
        action: Action::CpuQuota(200),
        target: Target::Process(ProcessId { pid: 42, start_ns: 1 }),
        workload: Some(WorkloadId(77)),
        cgroup: Some("/ml/job-42".into()),
        lease: Some(lease(id)),
        alert: None,
    });
    audit.append(Entry::Outcome { effect, outcome: done("cpu.max 20000 100000") });
    audit.append(Entry::Renew { lease: LeaseId(id), until_ns: 500 });
    let undo = EffectId(id + 1_000_000);
    audit.append(Entry::UndoIntent { effect: undo, lease: lease(id), why: "expired".into() });
    audit.append(Entry::UndoOutcome {
        effect: undo,
        lease: LeaseId(id),
        outcome: done("cpu.max max 100000"),
    });
}

fn open(dir: &Path, options: Options) -> Audit {
    audit::open(dir, options).unwrap().0
}

fn small() -> Options {
    Options { segment_bytes: 4000, checkpoint_records: 8, reserve_bytes: 4096, ..Options::default() }
}

/// A log of several segments and checkpoints, closed in order; its head.
fn sample(dir: &Path) -> Head {
    let audit = open(dir, small());
    audit.append(start());
    for id in 1..=4 {
        incident(&audit, id);
        audit.append(decision(100 + id, 7, Verdict::Refused { reason: Reason::OutOfScope }));
    }
    audit.append(Entry::Stop { why: "signal 15".into() });
    audit.close().unwrap()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    files.sort();
    files
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn put(path: &Path, lines: &[String]) {
    fs::write(path, lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
}

fn check(dir: &Path, head: Option<Head>) -> Report {
    audit::verify(dir, &VerifyOptions { head, ..VerifyOptions::default() }).unwrap()
}

fn broken(dir: &Path, head: Option<Head>) -> audit::Fault {
    let report = check(dir, head);
    assert_eq!(report.status, Status::Broken, "{report:#?}");
    report.faults[0].clone()
}

#[test]
fn untouched_log_is_intact_with_a_head_and_unanchored_without() {
    let dir = tempfile::tempdir().unwrap();
    let head = sample(dir.path());
    assert!(segments(dir.path()).len() > 2, "the sample rotates");
    assert_eq!(check(dir.path(), Some(head)).status, Status::Intact);
    let report = check(dir.path(), None);
    assert_eq!(report.status, Status::Unanchored { after_seq: head.seq });
    assert_eq!((report.head, report.records), (head, head.seq));
    assert_eq!(head.to_string().parse(), Ok(head));
    // Later records are vouched for by their checkpoints, not by the old head.
    let audit = open(dir.path(), small());
    audit.append(Entry::Note { text: "more".into() });
    let later = audit.close().unwrap();
    assert_eq!(check(dir.path(), Some(head)).status, Status::Unanchored { after_seq: later.seq });
    assert_eq!(check(dir.path(), Some(later)).status, Status::Intact);
}

#[test]
fn every_line_is_one_object_that_carries_the_hash_of_the_line_before() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let mut prev = audit::Hash::genesis().to_string();
    let mut seq = 0;
    for path in segments(dir.path()) {
        let lines = lines(&path);
        let first: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(first["kind"], "segment");
        assert!(path.ends_with(format!("audit-{:020}.jsonl", seq + 1)));
        for line in lines {
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            seq += 1;
            assert_eq!((&value["v"], &value["seq"]), (&1.into(), &seq.into()));
            assert_eq!(value["prev"], *prev);
            assert!(value["boot_ns"].is_u64() && value["kind"].is_string());
            assert_eq!(value["time"].as_str().map(str::len), Some(27));
            prev = audit::Hash::of(line.as_bytes()).to_string();
        }
    }
}

#[test]
fn entries_come_back_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let records = audit::read(dir.path(), &Filter::default()).unwrap();
    let known = records.iter().filter(|r| r.entry().is_some()).count();
    let checkpoints = records.iter().filter(|r| r.kind == "checkpoint").count();
    assert_eq!(known + checkpoints, records.len());
    let first = records.iter().find(|r| r.kind == "decision").unwrap();
    let effect = EffectId(1);
    assert_eq!(first.entry(), Some(decision(1, 42, Verdict::Granted { effect, clamped: None })));
    assert_eq!(records[1].entry(), Some(start()));
}

#[test]
fn what_was_done_to_a_log_is_found_and_placed() {
    type Tamper = fn(&Path, &[PathBuf]);
    let cases: &[(&str, Tamper, &str)] = &[
        ("edited text", |_, s| {
            let mut l = lines(&s[1]);
            l[3] = l[3].replace("expired", "EXPIRED").replace("42", "43").replace("job", "jab");
            put(&s[1], &l);
        }, "edited"),
        ("edited number of a record", |_, s| {
            let mut l = lines(&s[1]);
            let at = l[2].find("\"seq\":").unwrap() + 6;
            l[2].insert(at, '9');
            put(&s[1], &l);
        }, "its number should be"),
        ("removed line", |_, s| {
            let mut l = lines(&s[1]);
            l.remove(2);
            put(&s[1], &l);
        }, "was removed before this line"),
        ("removed first line", |_, s| {
            let mut l = lines(&s[0]);
            l.remove(0);
            put(&s[0], &l);
        }, "the file's name says that record 1 begins it"),
        ("removed last line of a segment", |_, s| {
            let mut l = lines(&s[0]);
            l.pop();
            put(&s[0], &l);
        }, "are missing before this segment"),
        ("swapped lines", |_, s| {
            let mut l = lines(&s[1]);
            l.swap(2, 3);
            put(&s[1], &l);
        }, "out of order"),
        ("duplicate line", |_, s| {
            let mut l = lines(&s[1]);
            l.insert(3, l[2].clone());
            put(&s[1], &l);
        }, "duplicate or out of order"),
        ("no JSON", |_, s| {
            let mut l = lines(&s[1]);
            l[2] = "nonsense".into();
            put(&s[1], &l);
        }, "no record"),
        ("missing middle segment", |_, s| fs::remove_file(&s[1]).unwrap(), "are missing before this segment"),
        ("missing first segment", |_, s| fs::remove_file(&s[0]).unwrap(), "the log begins at record"),
        ("missing everything", |_, s| s.iter().for_each(|p| fs::remove_file(p).unwrap()), "cut short of the head"),
        ("truncated", |_, s| {
            let mut l = lines(s.last().unwrap());
            l.pop();
            put(s.last().unwrap(), &l);
        }, "cut short of the head"),
        ("last segment gone", |_, s| fs::remove_file(s.last().unwrap()).unwrap(), "cut short of the head"),
        ("renamed segment", |d, s| {
            fs::rename(&s[0], d.join(format!("audit-{:020}.jsonl", 0))).unwrap();
        }, "the file's name says that record 0 begins it"),
        ("forged checkpoint", |_, s| {
            let mut l = lines(s.last().unwrap());
            let last = l.last_mut().unwrap();
            let at = last.len() - 3;
            let digit = if last.as_bytes()[at] == b'0' { "1" } else { "0" };
            last.replace_range(at..=at, digit);
            put(s.last().unwrap(), &l);
        }, "signature is wrong"),
        ("edited time of the last checkpoint", |_, s| {
            let mut l = lines(s.last().unwrap());
            let last = l.last_mut().unwrap();
            *last = last.replacen("\"boot_ns\":", "\"boot_ns\":1", 1);
            put(s.last().unwrap(), &l);
        }, "signature is wrong"),
        ("no public key", |d, _| fs::remove_file(d.join("checkpoint.pub")).unwrap(), "--public-key"),
        ("last newline and more gone", |_, s| {
            let text = fs::read(s.last().unwrap()).unwrap();
            fs::write(s.last().unwrap(), &text[..text.len() - 10]).unwrap();
        }, "cut short of the head"),
        ("cut in the middle of an earlier segment", |_, s| {
            let text = fs::read(&s[0]).unwrap();
            fs::write(&s[0], &text[..text.len() - 10]).unwrap();
        }, "missing before this segment"),
    ];
    for (name, tamper, expect) in cases {
        let dir = tempfile::tempdir().unwrap();
        let head = sample(dir.path());
        tamper(dir.path(), &segments(dir.path()));
        let report = check(dir.path(), Some(head));
        assert_eq!(report.status, Status::Broken, "{name}");
        assert!(report.faults.iter().any(|f| f.what.contains(expect)), "{name}: {:#?}", report.faults);
    }
}

#[test]
fn the_place_of_a_fault_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let path = segments(dir.path())[1].clone();
    let mut edited = lines(&path);
    let seq: u64 = serde_json::from_str::<serde_json::Value>(&edited[2]).unwrap()["seq"].as_u64().unwrap();
    edited[2] = edited[2].replacen("\"boot_ns\":", "\"boot_ns\":9", 1);
    put(&path, &edited);
    let fault = broken(dir.path(), None);
    assert_eq!((fault.line, fault.seq), (3, seq));
    assert_eq!(fault.file, path.file_name().unwrap().to_string_lossy());
    assert_eq!(check(dir.path(), None).fault_count, 1, "one edit, one fault");
    // The carried hash instead of the content: still that line, not the one before.
    let mut edited = lines(&path);
    edited[2] = edited[2].replacen("\"boot_ns\":9", "\"boot_ns\":", 1);
    let at = edited[2].find("\"prev\":\"").unwrap() + 8;
    let digit = if edited[2].as_bytes()[at] == b'0' { "1" } else { "0" };
    edited[2].replace_range(at..=at, digit);
    put(&path, &edited);
    assert_eq!(broken(dir.path(), None).line, 3);
}

#[test]
fn pruned_log_verifies_only_when_that_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let head = sample(dir.path());
    fs::remove_file(&segments(dir.path())[0]).unwrap();
    let fault = broken(dir.path(), Some(head));
    assert!(fault.what.contains("--allow-pruned"), "{fault}");
    let options = VerifyOptions { head: Some(head), allow_pruned: true, ..Default::default() };
    let report = audit::verify(dir.path(), &options).unwrap();
    assert_eq!(report.status, Status::Intact, "{report:#?}");
    assert!(report.first_seq > 1);
}

#[test]
fn another_log_in_its_place_is_found() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let head = sample(dir.path());
    sample(other.path());
    let key = dir.path().join("mine.pub");
    fs::copy(dir.path().join("checkpoint.pub"), &key).unwrap();
    let options = VerifyOptions { public_key: Some(key), ..Default::default() };
    let report = audit::verify(other.path(), &options).unwrap();
    assert_eq!(report.status, Status::Broken);
    assert!(report.faults[0].what.contains("another key"), "{:#?}", report.faults);
    assert!(broken(other.path(), Some(head)).what.contains("another log"));
    // One segment of another log among one's own.
    fs::copy(&segments(other.path())[1], &segments(dir.path())[1]).unwrap();
    broken(dir.path(), Some(head));
}

#[test]
fn rewritten_tail_without_checkpoints_is_not_called_anchored() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let path = segments(dir.path()).last().unwrap().clone();
    let text = lines(&path);
    let sealed: u64 = {
        let report = check(dir.path(), None);
        report.sealed_seq
    };
    // An attacker without the key goes on with a right chain, but cannot sign.
    let last = text.last().unwrap();
    let mut out = text.clone();
    let mut prev = audit::Hash::of(last.as_bytes());
    for seq in sealed + 1..sealed + 600 {
        let line = format!(
            "{{\"v\":1,\"seq\":{seq},\"time\":\"2026-01-01T00:00:00.000000Z\",\"boot_ns\":1,\"prev\":\"{prev}\",\"kind\":\"note\",\"text\":\"mine\"}}"
        );
        prev = audit::Hash::of(line.as_bytes());
        out.push(line);
        if seq == sealed + 5 {
            put(&path, &out);
            assert_eq!(check(dir.path(), None).status, Status::Unanchored { after_seq: sealed });
        }
    }
    put(&path, &out);
    assert!(broken(dir.path(), None).what.contains("no checkpoint among"));
}

#[test]
fn log_verifies_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path(), Options { segment_bytes: 20_000, ..small() });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Bounded, so that a failure below ends the test.
            for id in 1..20_000 {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                incident(&audit, id);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        audit.append_durable(Entry::Note { text: "there is a log".into() }).unwrap();
        for _ in 0..40 {
            let head = audit.append_durable(Entry::Note { text: "now".into() }).unwrap();
            let report = check(dir.path(), None);
            assert!(matches!(report.status, Status::Unanchored { .. }), "{report:#?}");
            assert!(report.head.seq >= head);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let head = audit.close().unwrap();
    assert_eq!(check(dir.path(), Some(head)).status, Status::Intact);
}

#[test]
fn durable_record_is_readable_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path(), small());
    for i in 0..20 {
        let seq = audit.append_durable(Entry::Note { text: format!("{i}") }).unwrap();
        assert_eq!(audit::find(dir.path(), seq).unwrap().text(&["text"]), Some(&*format!("{i}")));
    }
}

#[test]
fn torn_tail_is_moved_aside_and_the_chain_goes_on() {
    for torn in [&b"{\"v\":1,\"seq\":99,\"ti"[..], b"\0\0\0\0\0\0\0\0", b"{\"v\":1}\n", b"\n", b"x\n\0\0"] {
        let dir = tempfile::tempdir().unwrap();
        let head = sample(dir.path());
        let last = segments(dir.path()).last().unwrap().clone();
        let mut bytes = fs::read(&last).unwrap();
        bytes.extend_from_slice(torn);
        fs::write(&last, &bytes).unwrap();
        let (audit, recovery) = audit::open(dir.path(), small()).unwrap();
        assert_eq!((recovery.head, &recovery.damaged), (head, &None));
        let aside = recovery.torn.unwrap();
        assert_eq!(fs::read(&aside.moved_to).unwrap(), torn);
        assert!(aside.moved_to.to_string_lossy().ends_with(".torn"));
        let end = audit.close().unwrap();
        assert_eq!(check(dir.path(), Some(end)).status, Status::Intact);
        let records = audit::read(dir.path(), &Filter::default()).unwrap();
        assert!(records.iter().any(|r| r.line.contains("unfinished record")));
    }
}

#[test]
fn unfinished_last_line_is_told_apart_from_tampering() {
    let dir = tempfile::tempdir().unwrap();
    let head = sample(dir.path());
    let last = segments(dir.path()).last().unwrap().clone();
    let mut bytes = fs::read(&last).unwrap();
    bytes.extend_from_slice(b"{\"v\":1,\"seq\":");
    fs::write(&last, &bytes).unwrap();
    let report = check(dir.path(), Some(head));
    assert_eq!((report.status, report.unfinished_bytes), (Status::Intact, 13));
}

#[test]
fn damage_before_the_tail_stays_for_verify_to_find() {
    let dir = tempfile::tempdir().unwrap();
    let head = sample(dir.path());
    let last = segments(dir.path()).last().unwrap().clone();
    let mut edited = lines(&last);
    edited[0] = edited[0].replacen("\"boot_ns\":", "\"boot_ns\":1", 1);
    put(&last, &edited);
    let (audit, recovery) = audit::open(dir.path(), small()).unwrap();
    assert!(recovery.damaged.is_some() && recovery.torn.is_none());
    assert_eq!(recovery.head, head);
    drop(audit);
    broken(dir.path(), Some(head));
}

#[test]
fn crash_right_after_rotation_leaves_an_empty_segment_that_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let head = sample(dir.path());
    fs::write(dir.path().join(format!("audit-{:020}.jsonl", head.seq + 1)), b"").unwrap();
    assert_eq!(check(dir.path(), Some(head)).status, Status::Intact);
    let (audit, recovery) = audit::open(dir.path(), small()).unwrap();
    assert_eq!(recovery.head, head);
    let end = audit.close().unwrap();
    assert_eq!(check(dir.path(), Some(end)).status, Status::Intact);
}

#[test]
fn second_writer_is_refused_and_a_lost_key_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path(), small());
    let second = audit::open(dir.path(), small());
    assert!(matches!(second, Err(AuditError::Locked { .. })));
    audit.append(start());
    drop(audit);
    fs::remove_file(dir.path().join("checkpoint.key")).unwrap();
    let error = audit::open(dir.path(), small()).err().unwrap();
    assert!(error.to_string().contains("restore it"), "{error}");
}

#[test]
fn secrets_and_segments_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let audit_dir = dir.path().join("state/audit");
    let head = sample(&audit_dir);
    assert!(head.seq > 0);
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&audit_dir), 0o700);
    assert_eq!(mode(&audit_dir.join("checkpoint.key")), 0o600);
    for segment in segments(&audit_dir) {
        assert_eq!(mode(&segment), 0o600);
    }
}

#[test]
fn idle_log_is_sealed_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { checkpoint_every: Duration::from_millis(20), ..small() };
    let audit = open(dir.path(), options);
    let seq = audit.append_durable(start()).unwrap();
    let sealed = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        check(dir.path(), None).sealed_seq > seq + 2
    });
    assert!(sealed);
}

#[test]
fn filters_pick_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let count = |filter: Filter| audit::read(dir.path(), &filter).unwrap().len();
    let all = Filter::default();
    assert_eq!(count(Filter { outcome: Some("refused".into()), ..all.clone() }), 4);
    assert_eq!(count(Filter { kinds: vec!["undo-intent".into()], ..all.clone() }), 4);
    assert_eq!(count(Filter { policy: Some("gpu-contention".into()), ..all.clone() }), 12);
    assert_eq!(count(Filter { target: Some("7".into()), ..all.clone() }), 4);
    assert_eq!(count(Filter { target: Some("job-7".into()), ..all.clone() }), 4);
    assert_eq!(count(Filter { action: Some("cpu_quota".into()), ..all.clone() }), 16);
    assert_eq!(count(Filter { action: Some("kill".into()), ..all.clone() }), 0);
    assert_eq!(count(Filter { until_ns: Some(1), ..all.clone() }), 0);
    assert_eq!(count(Filter { since_ns: Some(1), limit: Some(5), ..all.clone() }), 5);
    let newest = audit::read(dir.path(), &Filter { reverse: true, limit: Some(20), ..all.clone() }).unwrap();
    let mut every = audit::read(dir.path(), &all).unwrap();
    every.reverse();
    every.truncate(20);
    assert_eq!(newest, every);
}

#[test]
fn story_is_the_same_from_each_of_its_records_and_ends_at_the_run() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    // A later run uses the same numbers for something else, but leases are per boot.
    let audit = open(dir.path(), small());
    audit.append(start());
    audit.append(decision(2, 9, Verdict::Observed));
    audit.append(Entry::Outcome { effect: EffectId(2), outcome: ActOutcome::Gone });
    audit.append(Entry::UndoIntent { effect: EffectId(5), lease: lease(3), why: "orphaned".into() });
    drop(audit);
    let records = audit::read(dir.path(), &Filter::default()).unwrap();
    let of = |n: u64| -> Vec<u64> {
        audit::story(dir.path(), n).unwrap().records.iter().map(|r| r.seq).collect()
    };
    let decision = records.iter().find(|r| r.at(&["id"]) == Some(&2.into())).unwrap().seq;
    let story = of(decision);
    assert_eq!(story.len(), 6);
    for seq in &story {
        assert_eq!(of(*seq), story);
    }
    let third = records.iter().find(|r| r.at(&["id"]) == Some(&3.into())).unwrap().seq;
    assert_eq!(of(third).len(), 7, "the orphan's undo belongs to it");
    assert!(matches!(audit::story(dir.path(), 9999), Err(AuditError::NoRecord { .. })));
}

#[test]
fn unknown_kinds_and_fields_are_kept() {
    let line = br#"{"v":1,"seq":5,"time":"2027-01-01T00:00:00.000000Z","boot_ns":1,"prev":"00","kind":"prophecy","policy":{"name":"p"},"new":[1]}"#;
    let record = audit::Record::parse(line).unwrap();
    assert_eq!((record.kind.as_str(), record.entry()), ("prophecy", None));
    assert_eq!(record.policy(), Some("p"));
    assert_eq!(record.at(&["new"]), Some(&serde_json::json!([1])));
    let known = br#"{"v":1,"seq":5,"time":"t","boot_ns":1,"prev":"00","kind":"note","text":"x","colour":"red"}"#;
    assert_eq!(audit::Record::parse(known).unwrap().entry(), Some(Entry::Note { text: "x".into() }));
}

#[test]
fn following_sees_every_record_once_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut follow = Follow::after(dir.path(), 0);
    assert_eq!(follow.poll().unwrap(), vec![]);
    let audit = open(dir.path(), small());
    let mut seen = Vec::new();
    for id in 1..30 {
        incident(&audit, id);
        if id % 7 == 0 {
            audit.append_durable(Entry::Note { text: "flush".into() }).unwrap();
        }
        seen.extend(follow.poll().unwrap().iter().map(|r| r.seq));
    }
    let head = audit.close().unwrap();
    seen.extend(follow.poll().unwrap().iter().map(|r| r.seq));
    assert_eq!(seen, (1..=head.seq).collect::<Vec<u64>>());
    let mut rest = Follow::after(dir.path(), head.seq - 3);
    assert_eq!(rest.poll().unwrap().len(), 3);
}

#[test]
fn oversized_entry_becomes_a_note() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path(), Options::default());
    let seq = audit.append(Entry::Note { text: "x".repeat(audit::MAX_LINE) }).unwrap();
    let policy_change = Entry::Policy { what: PolicyChange::Strike, policy: policy(), detail: "trap".into() };
    audit.append_durable(policy_change).unwrap();
    assert!(audit::find(dir.path(), seq).unwrap().line.contains("is too large"));
    let head = audit.close().unwrap();
    assert_eq!(check(dir.path(), Some(head)).status, Status::Intact);
}

/// The files of one sample log, made once for all cases of a property.
struct Files(Vec<(String, Vec<u8>)>, Head);

fn files() -> &'static Files {
    static FILES: std::sync::OnceLock<Files> = std::sync::OnceLock::new();
    FILES.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let head = sample(dir.path());
        let all = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap())
            .filter(|e| e.file_name() != "reserve" && e.file_name() != "writer.lock")
            .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
            .collect();
        Files(all, head)
    })
}

/// The sample's lines, in order, put back into its segments after `change`.
fn changed(change: impl FnOnce(&mut Vec<Vec<u8>>)) -> tempfile::TempDir {
    let Files(files, _) = files();
    let dir = tempfile::tempdir().unwrap();
    let mut segments: Vec<&(String, Vec<u8>)> =
        files.iter().filter(|f| f.0.ends_with(".jsonl")).collect();
    segments.sort();
    let counts: Vec<usize> =
        segments.iter().map(|s| s.1.iter().filter(|b| **b == b'\n').count()).collect();
    let all: Vec<u8> = segments.iter().flat_map(|s| s.1.clone()).collect();
    let mut lines: Vec<Vec<u8>> = all.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    change(&mut lines);
    let mut rest = lines.into_iter();
    for (i, segment) in segments.iter().enumerate() {
        let count = if i + 1 == counts.len() { usize::MAX } else { counts[i] };
        let bytes: Vec<u8> = rest.by_ref().take(count).flatten().collect();
        if !bytes.is_empty() {
            fs::write(dir.path().join(&segment.0), bytes).unwrap();
        }
    }
    for (name, bytes) in files.iter().filter(|f| f.0.ends_with(".pub")) {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn record_count() -> usize {
    files().1.seq as usize
}

/// That a fault is placed at record `seq` or at a neighbour that tells of it.
fn placed(report: &Report, seq: usize) -> Result<(), TestCaseError> {
    prop_assert_eq!(report.status, Status::Broken);
    let near = report.faults.iter().any(|f| f.seq.abs_diff(seq as u64) <= 1);
    prop_assert!(near, "record {} of {:#?}", seq, report.faults);
    Ok(())
}

fn anchored_before(report: &Report, seq: u64) -> bool {
    matches!(report.status, Status::Unanchored { after_seq } if after_seq < seq)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_edited_byte_is_found(at in any::<prop::sample::Index>(), offset in any::<prop::sample::Index>(), flip in 1u8..) {
        let index = at.index(record_count());
        let mut unfinished = false;
        let dir = changed(|lines| {
            let byte = offset.index(lines[index].len());
            // The very last newline gone is a line that was not finished.
            unfinished = index + 1 == lines.len() && byte + 1 == lines[index].len();
            lines[index][byte] ^= flip;
        });
        let report = check(dir.path(), None);
        if unfinished {
            prop_assert!(report.unfinished_bytes > 0);
            prop_assert!(anchored_before(&report, files().1.seq));
            prop_assert_eq!(check(dir.path(), Some(files().1)).status, Status::Broken);
        } else {
            placed(&report, index + 1)?;
        }
    }

    #[test]
    fn any_removed_line_is_found(at in any::<prop::sample::Index>()) {
        let index = at.index(record_count());
        let dir = changed(|lines| { lines.remove(index); });
        let report = check(dir.path(), None);
        if index + 1 == record_count() {
            prop_assert!(anchored_before(&report, files().1.seq));
        } else {
            placed(&report, index + 1)?;
        }
        prop_assert_eq!(check(dir.path(), Some(files().1)).status, Status::Broken);
    }

    #[test]
    fn any_two_swapped_lines_are_found(a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let (a, b) = (a.index(record_count()), b.index(record_count()));
        prop_assume!(a != b);
        let dir = changed(|lines| lines.swap(a, b));
        placed(&check(dir.path(), None), a.min(b) + 1)?;
    }

    #[test]
    fn any_truncation_is_cut_short_of_the_head(keep in any::<prop::sample::Index>()) {
        let keep = keep.index(record_count());
        let dir = changed(|lines| lines.truncate(keep));
        let report = check(dir.path(), Some(files().1));
        prop_assert_eq!(report.status, Status::Broken);
        prop_assert!(report.faults.iter().any(|f| f.what.contains("cut short of the head")));
        if keep > 0 {
            prop_assert!(anchored_before(&check(dir.path(), None), keep as u64 + 1));
        }
    }

    #[test]
    fn arbitrary_bytes_are_broken_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 1..600)) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(format!("audit-{:020}.jsonl", 1)), &bytes).unwrap();
        prop_assert_eq!(check(dir.path(), None).status, Status::Broken);
        let _ = audit::read(dir.path(), &Filter::default());
        let (audit, _) = audit::open(dir.path(), Options { reserve_bytes: 0, ..small() }).unwrap();
        audit.append_durable(Entry::Note { text: "goes on".into() }).unwrap();
    }
}
