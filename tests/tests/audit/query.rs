//! Reading: filters, stories, following, unknown kinds.

use crate::support::*;
use palisade::audit::{self, AuditError, Entry, Filter, Follow};
use palisade_core::{ActOutcome, EffectId, Verdict};

#[test]
fn filters_pick_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let count = |filter: Filter| audit::read(dir.path(), &filter).unwrap().len();
    let all = Filter::default();
    assert_eq!(
        count(Filter {
            outcome: Some("refused".into()),
            ..all.clone()
        }),
        4
    );
    assert_eq!(
        count(Filter {
            kinds: vec!["undo-intent".into()],
            ..all.clone()
        }),
        4
    );
    assert_eq!(
        count(Filter {
            policy: Some("gpu-contention".into()),
            ..all.clone()
        }),
        12
    );
    assert_eq!(
        count(Filter {
            target: Some("7".into()),
            ..all.clone()
        }),
        4
    );
    assert_eq!(
        count(Filter {
            target: Some("job-7".into()),
            ..all.clone()
        }),
        4
    );
    assert_eq!(
        count(Filter {
            action: Some("cpu_quota".into()),
            ..all.clone()
        }),
        16
    );
    assert_eq!(
        count(Filter {
            action: Some("kill".into()),
            ..all.clone()
        }),
        0
    );
    assert_eq!(
        count(Filter {
            until_ns: Some(1),
            ..all.clone()
        }),
        0
    );
    assert_eq!(
        count(Filter {
            since_ns: Some(1),
            limit: Some(5),
            ..all.clone()
        }),
        5
    );
    let newest = audit::read(
        dir.path(),
        &Filter {
            reverse: true,
            limit: Some(20),
            ..all.clone()
        },
    )
    .unwrap();
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
    audit.append(Entry::Outcome {
        effect: EffectId(2),
        outcome: ActOutcome::Gone,
    });
    audit.append(Entry::UndoIntent {
        effect: EffectId(5),
        lease: lease(3),
        why: "orphaned".into(),
    });
    drop(audit);
    let records = audit::read(dir.path(), &Filter::default()).unwrap();
    let of = |n: u64| -> Vec<u64> {
        audit::story(dir.path(), n)
            .unwrap()
            .records
            .iter()
            .map(|r| r.seq)
            .collect()
    };
    let decision = records
        .iter()
        .find(|r| r.at(&["id"]) == Some(&2.into()))
        .unwrap()
        .seq;
    let story = of(decision);
    assert_eq!(story.len(), 6);
    for seq in &story {
        assert_eq!(of(*seq), story);
    }
    let third = records
        .iter()
        .find(|r| r.at(&["id"]) == Some(&3.into()))
        .unwrap()
        .seq;
    assert_eq!(of(third).len(), 7, "the orphan's undo belongs to it");
    assert!(matches!(
        audit::story(dir.path(), 9999),
        Err(AuditError::NoRecord { .. })
    ));
}

#[test]
fn unknown_kinds_and_fields_are_kept() {
    let line = br#"{"v":1,"seq":5,"time":"2027-01-01T00:00:00.000000Z","boot_ns":1,"prev":"00","kind":"prophecy","policy":{"name":"p"},"new":[1]}"#;
    let record = audit::Record::parse(line).unwrap();
    assert_eq!((record.kind.as_str(), record.entry()), ("prophecy", None));
    assert_eq!(record.policy(), Some("p"));
    assert_eq!(record.at(&["new"]), Some(&serde_json::json!([1])));
    let known = br#"{"v":1,"seq":5,"time":"t","boot_ns":1,"prev":"00","kind":"note","text":"x","colour":"red"}"#;
    assert_eq!(
        audit::Record::parse(known).unwrap().entry(),
        Some(Entry::Note { text: "x".into() })
    );
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
            audit
                .append_durable(Entry::Note {
                    text: "flush".into(),
                })
                .unwrap();
        }
        seen.extend(follow.poll().unwrap().iter().map(|r| r.seq));
    }
    let head = audit.close().unwrap();
    seen.extend(follow.poll().unwrap().iter().map(|r| r.seq));
    assert_eq!(seen, (1..=head.seq).collect::<Vec<u64>>());
    let mut rest = Follow::after(dir.path(), head.seq - 3);
    assert_eq!(rest.poll().unwrap().len(), 3);
}
