//! Everything that can be done to a log is found, and its place is named.

use crate::support::*;
use palisade::audit::{self, Status, VerifyOptions};
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn what_was_done_to_a_log_is_found_and_placed() {
    type Tamper = fn(&Path, &[PathBuf]);
    let cases: &[(&str, Tamper, &str)] = &[
        (
            "edited text",
            |_, s| {
                let mut l = lines(&s[1]);
                l[3] = l[3]
                    .replace("expired", "EXPIRED")
                    .replace("42", "43")
                    .replace("job", "jab");
                put(&s[1], &l);
            },
            "edited",
        ),
        (
            "edited number of a record",
            |_, s| {
                let mut l = lines(&s[1]);
                let at = l[2].find("\"seq\":").unwrap() + 6;
                l[2].insert(at, '9');
                put(&s[1], &l);
            },
            "its number should be",
        ),
        (
            "removed line",
            |_, s| {
                let mut l = lines(&s[1]);
                l.remove(2);
                put(&s[1], &l);
            },
            "was removed before this line",
        ),
        (
            "removed first line",
            |_, s| {
                let mut l = lines(&s[0]);
                l.remove(0);
                put(&s[0], &l);
            },
            "the file's name says that record 1 begins it",
        ),
        (
            "removed last line of a segment",
            |_, s| {
                let mut l = lines(&s[0]);
                l.pop();
                put(&s[0], &l);
            },
            "are missing before this segment",
        ),
        (
            "swapped lines",
            |_, s| {
                let mut l = lines(&s[1]);
                l.swap(2, 3);
                put(&s[1], &l);
            },
            "out of order",
        ),
        (
            "duplicate line",
            |_, s| {
                let mut l = lines(&s[1]);
                l.insert(3, l[2].clone());
                put(&s[1], &l);
            },
            "duplicate or out of order",
        ),
        (
            "no JSON",
            |_, s| {
                let mut l = lines(&s[1]);
                l[2] = "nonsense".into();
                put(&s[1], &l);
            },
            "no record",
        ),
        (
            "missing middle segment",
            |_, s| fs::remove_file(&s[1]).unwrap(),
            "are missing before this segment",
        ),
        (
            "missing first segment",
            |_, s| fs::remove_file(&s[0]).unwrap(),
            "the log begins at record",
        ),
        (
            "missing everything",
            |_, s| s.iter().for_each(|p| fs::remove_file(p).unwrap()),
            "cut short of the head",
        ),
        (
            "truncated",
            |_, s| {
                let mut l = lines(s.last().unwrap());
                l.pop();
                put(s.last().unwrap(), &l);
            },
            "cut short of the head",
        ),
        (
            "last segment gone",
            |_, s| fs::remove_file(s.last().unwrap()).unwrap(),
            "cut short of the head",
        ),
        (
            "renamed segment",
            |d, s| {
                fs::rename(&s[0], d.join(format!("audit-{:020}.jsonl", 0))).unwrap();
            },
            "the file's name says that record 0 begins it",
        ),
        (
            "forged checkpoint",
            |_, s| {
                let mut l = lines(s.last().unwrap());
                let last = l.last_mut().unwrap();
                let at = last.len() - 3;
                let digit = if last.as_bytes()[at] == b'0' {
                    "1"
                } else {
                    "0"
                };
                last.replace_range(at..=at, digit);
                put(s.last().unwrap(), &l);
            },
            "signature is wrong",
        ),
        (
            "edited time of the last checkpoint",
            |_, s| {
                let mut l = lines(s.last().unwrap());
                let last = l.last_mut().unwrap();
                *last = last.replacen("\"boot_ns\":", "\"boot_ns\":1", 1);
                put(s.last().unwrap(), &l);
            },
            "signature is wrong",
        ),
        (
            "no public key",
            |d, _| fs::remove_file(d.join("checkpoint.pub")).unwrap(),
            "--public-key",
        ),
        (
            "last newline and more gone",
            |_, s| {
                let text = fs::read(s.last().unwrap()).unwrap();
                fs::write(s.last().unwrap(), &text[..text.len() - 10]).unwrap();
            },
            "cut short of the head",
        ),
        (
            "cut in the middle of an earlier segment",
            |_, s| {
                let text = fs::read(&s[0]).unwrap();
                fs::write(&s[0], &text[..text.len() - 10]).unwrap();
            },
            "missing before this segment",
        ),
    ];
    for (name, tamper, expect) in cases {
        let dir = tempfile::tempdir().unwrap();
        let head = sample(dir.path());
        tamper(dir.path(), &segments(dir.path()));
        let report = check(dir.path(), Some(head));
        assert_eq!(report.status, Status::Broken, "{name}");
        assert!(
            report.faults.iter().any(|f| f.what.contains(expect)),
            "{name}: {:#?}",
            report.faults
        );
    }
}

#[test]
fn the_place_of_a_fault_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let path = segments(dir.path())[1].clone();
    let mut edited = lines(&path);
    let seq: u64 = serde_json::from_str::<serde_json::Value>(&edited[2]).unwrap()["seq"]
        .as_u64()
        .unwrap();
    edited[2] = edited[2].replacen("\"boot_ns\":", "\"boot_ns\":9", 1);
    put(&path, &edited);
    let fault = broken(dir.path(), None);
    assert_eq!((fault.line, fault.seq), (3, seq));
    assert_eq!(fault.file, path.file_name().unwrap().to_string_lossy());
    assert_eq!(
        check(dir.path(), None).fault_count,
        1,
        "one edit, one fault"
    );
    // The carried hash instead of the content: still that line, not the one before.
    let mut edited = lines(&path);
    edited[2] = edited[2].replacen("\"boot_ns\":9", "\"boot_ns\":", 1);
    let at = edited[2].find("\"prev\":\"").unwrap() + 8;
    let digit = if edited[2].as_bytes()[at] == b'0' {
        "1"
    } else {
        "0"
    };
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
    let options = VerifyOptions {
        head: Some(head),
        allow_pruned: true,
        ..Default::default()
    };
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
    let options = VerifyOptions {
        public_key: Some(key),
        ..Default::default()
    };
    let report = audit::verify(other.path(), &options).unwrap();
    assert_eq!(report.status, Status::Broken);
    assert!(
        report.faults[0].what.contains("another key"),
        "{:#?}",
        report.faults
    );
    assert!(
        broken(other.path(), Some(head))
            .what
            .contains("another log")
    );
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
            assert_eq!(
                check(dir.path(), None).status,
                Status::Unanchored { after_seq: sealed }
            );
        }
    }
    put(&path, &out);
    assert!(
        broken(dir.path(), None)
            .what
            .contains("no checkpoint among")
    );
}
