//! The audit log from outside: what is written can be verified, what is changed is found.
#![allow(clippy::unwrap_used)]

#[path = "audit/properties.rs"]
mod properties;
#[path = "audit/query.rs"]
mod query;
#[path = "audit/support.rs"]
mod support;
#[path = "audit/tamper.rs"]
mod tamper;

use palisade::audit::{self, AuditError, Entry, Filter, Options, PolicyChange, Status};
use palisade_core::{EffectId, Verdict};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::*;

#[test]
fn untouched_log_is_intact_with_a_head_and_unanchored_without() {
    let dir = tempfile::tempdir().unwrap();
    let head = sample(dir.path());
    assert!(segments(dir.path()).len() > 2, "the sample rotates");
    assert_eq!(check(dir.path(), Some(head)).status, Status::Intact);
    let report = check(dir.path(), None);
    assert_eq!(
        report.status,
        Status::Unanchored {
            after_seq: head.seq
        }
    );
    assert_eq!((report.head, report.records), (head, head.seq));
    assert_eq!(head.to_string().parse(), Ok(head));
    // Later records are vouched for by their checkpoints, not by the old head.
    let audit = open(dir.path(), small());
    audit.append(Entry::Note {
        text: "more".into(),
    });
    let later = audit.close().unwrap();
    assert_eq!(
        check(dir.path(), Some(head)).status,
        Status::Unanchored {
            after_seq: later.seq
        }
    );
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
    assert_eq!(
        first.entry(),
        Some(decision(
            1,
            42,
            Verdict::Granted {
                effect,
                clamped: None
            }
        ))
    );
    assert_eq!(records[1].entry(), Some(start()));
}

#[test]
fn log_verifies_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(
        dir.path(),
        Options {
            segment_bytes: 20_000,
            ..small()
        },
    );
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
        audit
            .append_durable(Entry::Note {
                text: "there is a log".into(),
            })
            .unwrap();
        for _ in 0..40 {
            let head = audit
                .append_durable(Entry::Note { text: "now".into() })
                .unwrap();
            let report = check(dir.path(), None);
            assert!(
                matches!(report.status, Status::Unanchored { .. }),
                "{report:#?}"
            );
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
        let seq = audit
            .append_durable(Entry::Note {
                text: format!("{i}"),
            })
            .unwrap();
        assert_eq!(
            audit::find(dir.path(), seq).unwrap().text(&["text"]),
            Some(&*format!("{i}"))
        );
    }
}

#[test]
fn torn_tail_is_moved_aside_and_the_chain_goes_on() {
    for torn in [
        &b"{\"v\":1,\"seq\":99,\"ti"[..],
        b"\0\0\0\0\0\0\0\0",
        b"{\"v\":1}\n",
        b"\n",
        b"x\n\0\0",
    ] {
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
    assert_eq!(
        (report.status, report.unfinished_bytes),
        (Status::Intact, 13)
    );
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
    fs::write(
        dir.path().join(format!("audit-{:020}.jsonl", head.seq + 1)),
        b"",
    )
    .unwrap();
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
    let options = Options {
        checkpoint_every: Duration::from_millis(20),
        ..small()
    };
    let audit = open(dir.path(), options);
    let seq = audit.append_durable(start()).unwrap();
    let sealed = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        check(dir.path(), None).sealed_seq > seq + 2
    });
    assert!(sealed);
}

#[test]
fn oversized_entry_becomes_a_note() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path(), Options::default());
    let seq = audit
        .append(Entry::Note {
            text: "x".repeat(audit::MAX_LINE),
        })
        .unwrap();
    let policy_change = Entry::Policy {
        what: PolicyChange::Strike,
        policy: policy(),
        detail: "trap".into(),
    };
    audit.append_durable(policy_change).unwrap();
    assert!(
        audit::find(dir.path(), seq)
            .unwrap()
            .line
            .contains("is too large")
    );
    let head = audit.close().unwrap();
    assert_eq!(check(dir.path(), Some(head)).status, Status::Intact);
}
