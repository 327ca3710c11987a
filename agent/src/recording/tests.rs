//! Recordings: round trips, torn tails, damage, arbitrary bytes.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::batch::Batch;
use palisade_abi::{Header, Record};
use palisade_core::{
    ActOutcome, EffectId, Input, Member, ProcessId, Target, TargetFacts, WorkloadId,
};
use proptest::prelude::*;
use std::sync::LazyLock;

fn origin() -> Origin {
    Origin {
        agent: "0.1.0".into(),
        abi: 2,
        boot_id: "b".into(),
        kernel: "6.18".into(),
        config_sha256: "c".into(),
        window_ns: 100_000_000,
        started_ns: 5,
        started_unix_ns: 6,
        policies: vec!["one".into(), "two".into()],
    }
}

fn batch(seq: u64, count: usize) -> Batch {
    let record = |i: usize| Record {
        header: Header {
            time_ns: seq * 1000 + i as u64,
            workload: u64::MAX,
            start_ns: 1,
            pid: i as u32,
            tid: u32::MAX,
            // Also such as no agent knows yet.
            kind: (i as u16).wrapping_mul(1111),
            flags: 9,
            cpu: 3,
        },
        body: [seq, i as u64, u64::MAX],
    };
    Batch {
        seq,
        now_ns: seq * 1001,
        records: (0..count).map(record).collect(),
        window_end: seq.is_multiple_of(2),
    }
}

fn entries() -> Vec<Entry> {
    let process = |exe: &str, workload| Identity::Process {
        process: ProcessId {
            pid: 7,
            start_ns: u64::MAX,
        },
        parent: 1,
        comm: "a\nb".into(),
        exe: exe.into(),
        workload,
    };
    vec![
        Entry::Batch(batch(0, 0)),
        Entry::Identity(process("/x", Some(WorkloadId(3)))),
        Entry::Identity(process("", None)),
        Entry::Identity(Identity::Workload {
            workload: WorkloadId(3),
            cgroup: "/ml".into(),
            container: Some("c0ffee".into()),
        }),
        Entry::Identity(Identity::File {
            device: 7,
            inode: u64::MAX,
            path: "/models/ü.gguf".into(),
        }),
        Entry::Batch(batch(1, 4)),
        Entry::Tick { time_ns: 1500 },
        Entry::Order {
            time_ns: 1600,
            policy: "one".into(),
            seq: 1,
            requests: 2,
            sha256: Some(digest([])),
        },
        Entry::Lost {
            time_ns: 1700,
            policy: None,
            seq: 2,
            records: 99,
        },
        Entry::Lost {
            time_ns: 1701,
            policy: Some("two".into()),
            seq: 2,
            records: 1,
        },
        Entry::Batch(batch(2, 3)),
        Entry::Dropped {
            policy: "two".into(),
            seq: 2,
            records: 3,
        },
        Entry::Gap { notes: 4 },
        Entry::Changed {
            policy: "two".into(),
            what: "strike: \"trap\"".into(),
        },
        Entry::Core(CoreStart {
            run_seed: u64::MAX,
            disarmed: true,
            own_pids: vec![7, 1],
            own_exe: Some("/usr/bin/pali\"sade".into()),
        }),
        Entry::Input {
            time_ns: 1800,
            input: Input::Outcome {
                effect: EffectId(9),
                outcome: ActOutcome::Failed {
                    error: "cpu.max: EINVAL\n".into(),
                },
            },
        },
        Entry::Facts {
            target: Target::Workload(WorkloadId(3)),
            facts: TargetFacts {
                alive: true,
                workload: Some(WorkloadId(3)),
                cgroup: Some("/ml".into()),
                watched: true,
                members: vec![Member {
                    process: ProcessId {
                        pid: 7,
                        start_ns: u64::MAX,
                    },
                    exe: "/x".into(),
                    kernel_thread: false,
                }],
                ..TargetFacts::default()
            },
        },
        Entry::Answer {
            policy: "one".into(),
            number: 12,
            question: Question::File {
                device: 7,
                inode: u64::MAX,
            },
            answer: None,
        },
        Entry::Answer {
            policy: "one".into(),
            number: 13,
            question: Question::Process(ProcessId {
                pid: 7,
                start_ns: 1,
            }),
            answer: Some(process("/x", None)),
        },
    ]
}

/// A recording in which each entry is a chunk, and the offsets at which the schema and the chunks end.
fn sample() -> (Vec<u8>, Vec<usize>) {
    static SAMPLE: LazyLock<(Vec<u8>, Vec<usize>)> = LazyLock::new(|| {
        let mut writer = Writer::new(Vec::new(), &origin()).unwrap();
        let mut ends = vec![writer.bytes() as usize];
        for entry in entries() {
            writer.write(&entry).unwrap();
            writer.flush().unwrap();
            ends.push(writer.bytes() as usize);
        }
        (writer.finish().unwrap(), ends)
    });
    SAMPLE.clone()
}

fn read(bytes: &[u8]) -> Vec<Result<Entry, ReadError>> {
    Reader::new(bytes).unwrap().collect()
}

/// Comparable; a batch has no equality of its own.
fn words(entry: &Entry) -> String {
    format!("{entry:?}")
}

#[test]
fn what_was_written_is_read() {
    let (file, ends) = sample();
    let mut reader = Reader::new(&file[..]).unwrap();
    assert_eq!(reader.origin(), origin());
    let back: Vec<String> = reader
        .by_ref()
        .map(|entry| words(&entry.unwrap()))
        .collect();
    assert_eq!(back, entries().iter().map(words).collect::<Vec<_>>());
    assert!(reader.ended());
    assert_eq!(reader.chunks(), entries().len() as u64);
    assert_eq!(reader.offset(), file.len() as u64);
    assert_eq!(file.len(), ends[ends.len() - 1] + 8);
    // The same in one chunk.
    let mut writer = Writer::new(Vec::new(), &origin()).unwrap();
    for entry in entries() {
        writer.write(&entry).unwrap();
    }
    let file = writer.finish().unwrap();
    let mut reader = Reader::new(&file[..]).unwrap();
    let again: Vec<String> = reader
        .by_ref()
        .map(|entry| words(&entry.unwrap()))
        .collect();
    assert_eq!((again, reader.chunks()), (back, 1));
}

#[test]
fn chunk_is_written_after_a_second_and_when_it_is_full() {
    let mut writer = Writer::new(Vec::new(), &origin()).unwrap();
    let empty = writer.bytes();
    let at = |now_ns| {
        Entry::Batch(Batch {
            now_ns,
            ..batch(1, 1)
        })
    };
    writer.write(&at(5_000_000_000)).unwrap();
    writer.write(&at(5_999_999_999)).unwrap();
    assert_eq!(writer.bytes(), empty);
    writer.write(&at(6_000_000_000)).unwrap();
    let first = writer.bytes();
    assert!(first > empty);
    writer.write(&at(6_500_000_000)).unwrap();
    assert_eq!(writer.bytes(), first);
    writer.write(&Entry::Batch(batch(1, 20_000))).unwrap();
    assert!(writer.bytes() > first);
}

#[test]
fn torn_tail_loses_the_last_chunk_only_and_says_so() {
    let (file, ends) = sample();
    let all: Vec<String> = entries().iter().map(words).collect();
    let near = |cut: usize| ends.iter().any(|end| end.abs_diff(cut) < 12);
    for cut in (ends[0]..file.len()).filter(|cut| near(*cut) || cut % 61 == 0) {
        let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
        let mut reader = Reader::new(&file[..cut]).unwrap();
        let read: Vec<_> = reader.by_ref().collect();
        let good: Vec<String> = read.iter().flatten().map(words).collect();
        assert_eq!(good, all[..whole], "cut at {cut}");
        let torn = !ends.contains(&cut);
        // Dictionaries precede the first chunk as messages of their own.
        let told = matches!(read.last(), Some(Err(ReadError::Torn { offset })) if *offset >= ends[whole] as u64);
        assert!(told == torn || cut < ends[1], "cut at {cut}");
        assert!(!reader.ended());
    }
    for cut in 0..ends[0] {
        let refused = Reader::new(&file[..cut]).map(|_| ()).unwrap_err();
        let expected = if cut == 0 {
            matches!(refused, ReadError::NotARecording)
        } else {
            matches!(refused, ReadError::Torn { offset: 0 })
        };
        assert!(expected, "cut at {cut}: {refused}");
    }
}

#[test]
fn other_files_and_other_versions_are_refused() {
    for other in [
        &b""[..],
        b"PALREC\0\x01\0\0\0",
        b"{\"v\":1}\n{\"v\":1}",
        b"ARROW1\0\0aaaaaaaa",
    ] {
        assert!(matches!(Reader::new(other), Err(ReadError::NotARecording)));
    }
    // The version's digit stands once in the schema, behind its key.
    let (mut file, _) = sample();
    let key = b"palisade.recording\0";
    let at = file.windows(key.len()).position(|w| w == key).unwrap();
    let digit = (at.saturating_sub(40)..at + 60)
        .find(|i| file[i - 4..i + 2] == *b"\x01\0\0\x002\0")
        .unwrap();
    file[digit] = b'3';
    let refused = Reader::new(&file[..]).map(|_| ()).unwrap_err();
    assert!(
        matches!(&refused, ReadError::Version { found } if found == "3"),
        "{refused}"
    );
    file[at] = b'q';
    assert!(matches!(
        Reader::new(&file[..]),
        Err(ReadError::NotARecording)
    ));
}

#[test]
fn a_file_of_version_1_is_read_and_has_nothing_of_the_core() {
    let file = include_bytes!("../cli/demo/recording.arrows");
    let reader = Reader::new(&file[..]).unwrap();
    let entries: Vec<Entry> = reader.map(Result::unwrap).collect();
    let batches = entries
        .iter()
        .filter(|entry| matches!(entry, Entry::Batch(_)));
    assert_eq!(batches.count(), 697);
    assert!(!entries.iter().any(|entry| matches!(
        entry,
        Entry::Core(_) | Entry::Input { .. } | Entry::Facts { .. } | Entry::Answer { .. }
    )));
}

#[test]
fn length_that_cannot_be_is_no_allocation() {
    let (file, ends) = sample();
    for length in [u32::MAX, i32::MAX as u32, 2 << 20] {
        let mut file = file[..ends[1]].to_vec();
        file.extend_from_slice(&[0xff; 4]);
        file.extend_from_slice(&length.to_le_bytes());
        let offset = ends[1] as u64;
        assert!(
            matches!(read(&file).last(), Some(Err(ReadError::Corrupt { offset: at, .. })) if *at == offset)
        );
    }
}

#[test]
fn too_large_an_entry_is_refused_and_leaves_the_rest() {
    let mut writer = Writer::new(Vec::new(), &origin()).unwrap();
    assert!(matches!(
        writer.write(&Entry::Batch(batch(1, MAX_BATCH_RECORDS + 1))),
        Err(WriteError::TooManyRecords { .. })
    ));
    let file = |bytes| {
        Entry::Identity(Identity::File {
            device: 0,
            inode: 0,
            path: "x".repeat(bytes),
        })
    };
    assert!(matches!(
        writer.write(&file(MAX_TEXT + 1)),
        Err(WriteError::TooLong { .. })
    ));
    for _ in 0..40 {
        writer.write(&file(MAX_TEXT)).unwrap();
    }
    writer
        .write(&Entry::Batch(batch(1, MAX_BATCH_RECORDS)))
        .unwrap();
    let file = writer.finish().unwrap();
    assert_eq!(read(&file).iter().filter(|entry| entry.is_ok()).count(), 41);
}

#[test]
fn files_are_written_beside_the_work_and_a_missing_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.arrows");
    assert!(matches!(
        Reader::open(&path),
        Err(ReadError::Io { offset: 0, .. })
    ));
    let recorder = Recorder::start(Writer::create(&path, &origin()).unwrap()).unwrap();
    let identity = Identity::File {
        device: 1,
        inode: 2,
        path: "/m".into(),
    };
    assert!(recorder.batch(vec![identity], &batch(1, 2)));
    assert!(recorder.notes(vec![Entry::Tick { time_ns: 3 }]));
    let progress = recorder.finish().unwrap();
    assert_eq!(
        (progress.batches, progress.records, progress.lost),
        (1, 2, 0)
    );
    assert_eq!(progress.bytes, std::fs::metadata(&path).unwrap().len());
    assert!(
        !recorder.batch(Vec::new(), &batch(2, 1)),
        "after the end nothing is taken"
    );
    let mut reader = Reader::open(&path).unwrap();
    let read: Vec<String> = reader
        .by_ref()
        .map(|entry| words(&entry.unwrap()))
        .collect();
    assert_eq!(read.len(), 3);
    assert!(read[0].contains("File") && read[1].contains("Batch") && read[2].contains("Tick"));
}

#[test]
fn a_recording_that_never_begins_makes_no_file_and_one_that_does_has_what_was_said_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.arrows");
    let waiting = || {
        let path = path.clone();
        Recorder::waiting(move || Writer::create(&path, &origin())).unwrap()
    };
    let recorder = waiting();
    assert!(recorder.notes(vec![Entry::Tick { time_ns: 1 }]));
    recorder.finish().unwrap();
    assert!(!path.exists());

    let recorder = waiting();
    assert!(recorder.notes(vec![Entry::Tick { time_ns: 1 }]));
    recorder.begin();
    assert!(recorder.notes(vec![Entry::Tick { time_ns: 2 }]));
    recorder.finish().unwrap();
    assert_eq!(Reader::open(&path).unwrap().count(), 2);

    let nowhere = dir.path().join("none/run.arrows");
    let recorder = Recorder::waiting(move || Writer::create(&nowhere, &origin())).unwrap();
    recorder.begin();
    let error = recorder.finish().unwrap_err();
    assert_eq!(recorder.failure(), Some(error.to_string()));
    assert!(!recorder.notes(vec![Entry::Tick { time_ns: 1 }]));
    assert_eq!(recorder.progress().notes_lost, 1);
}

/// What a recorder that begins late has in its file of what it is told before.
fn told_late(tell: impl FnOnce(&Recorder)) -> (Progress, Vec<Entry>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.arrows");
    let file = path.clone();
    let recorder = Recorder::waiting(move || Writer::create(&file, &origin())).unwrap();
    tell(&recorder);
    recorder.begin();
    let progress = recorder.finish().unwrap();
    let entries = Reader::open(&path).unwrap().map(Result::unwrap);
    (progress, entries.collect())
}

#[test]
fn what_is_lost_last_is_said_at_the_end() {
    let (progress, entries) = told_late(|recorder| {
        assert!(recorder.batch(Vec::new(), &batch(7, 1)));
        while recorder.notes(vec![Entry::Tick { time_ns: 1 }]) {}
        assert!(!recorder.notes(vec![Entry::Tick { time_ns: 1 }]));
        assert!(!recorder.batch(Vec::new(), &batch(8, 3)));
    });
    assert_eq!((progress.lost, progress.notes_lost), (3, 2));
    let [.., Entry::Gap { notes: 2 }, lost] = &entries[..] else {
        panic!("{:?}", entries.last());
    };
    assert!(
        matches!(
            lost,
            Entry::Lost {
                policy: None,
                seq: 8,
                records: 3,
                ..
            }
        ),
        "{lost:?}"
    );
}

#[test]
fn the_queue_has_no_more_bytes_than_it_may() {
    // A mebibyte each.
    let large = || Entry::Facts {
        target: Target::Workload(WorkloadId(3)),
        facts: TargetFacts {
            detail: "x".repeat(1 << 20),
            ..TargetFacts::default()
        },
    };
    let (progress, entries) = told_late(|recorder| {
        let taken = (0..20).filter(|_| recorder.notes(vec![large()])).count();
        assert_eq!(taken, 15, "with what is beside their text");
        let again = recorder.notes(vec![Entry::Tick { time_ns: 1 }]);
        assert!(again, "there is room for a little");
    });
    assert_eq!(progress.notes_lost, 5);
    assert_eq!(entries.len(), 17);
    assert!(matches!(entries[16], Entry::Gap { notes: 5 }));
}

#[test]
fn what_was_written_is_no_longer_in_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.arrows");
    let recorder = Recorder::start(Writer::create(&path, &origin()).unwrap()).unwrap();
    // Five times as much as the queue holds, one after another.
    for seq in 0..80 {
        let before = recorder.progress().batches;
        assert!(recorder.batch(Vec::new(), &batch(seq, 16_384)), "{seq}");
        while recorder.progress().batches == before {
            std::thread::yield_now();
        }
    }
    assert_eq!(recorder.finish().unwrap().lost, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Reader::new(&bytes[..]).map(Iterator::count);
        let (mut file, ends) = sample();
        file.truncate(ends[1]);
        file.extend_from_slice(&bytes);
        let _ = read(&file).len();
    }

    /// Lengths and offsets are words at multiples of four: with strange values in them.
    #[test]
    fn changed_lengths_never_panic(
        changes in prop::collection::vec(
            (
                any::<prop::sample::Index>(),
                prop::sample::select(vec![0, 1, 3, 63, 65, u32::MAX, 1 << 31, i32::MAX as u32]),
            ),
            1..4,
        ),
    ) {
        let (mut file, ends) = sample();
        file.truncate(ends[2]);
        for (at, word) in changes {
            let at = at.index(file.len() / 4) * 4;
            file[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let _ = Reader::new(&file[..]).map(Iterator::count);
    }

    #[test]
    fn changed_bytes_never_panic_and_leave_what_is_before(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut file, ends) = sample();
        let all: Vec<String> = entries().iter().map(words).collect();
        file.truncate(cut.index(file.len()) + 1);
        let mut first = file.len();
        for (at, byte) in changes {
            let at = at.index(file.len());
            first = first.min(at);
            file[at] = byte;
        }
        let Ok(reader) = Reader::new(&file[..]) else {
            prop_assert!(first < ends[0]);
            return Ok(());
        };
        let whole = ends.iter().filter(|end| **end <= first).count().saturating_sub(1);
        let read: Vec<String> = reader.flatten().map(|entry| words(&entry)).collect();
        prop_assert_eq!(&read[..whole], &all[..whole]);
    }
}
