//! Recordings: round trips, torn tails, damage, arbitrary bytes, full files.
#![allow(clippy::unwrap_used)]

mod limit;
mod recorder;

use super::*;
use crate::batch::Batch;
use palisade_abi::{Header, Record};
use palisade_core::{
    ActOutcome, EffectId, Input, Member, ProcessId, Target, TargetFacts, WorkloadId,
};
use proptest::prelude::*;
use std::io::Read;
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
        Entry::Full {
            max_bytes: u64::MAX,
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
fn zeros_to_the_end_are_a_torn_tail_and_among_other_bytes_damage() {
    let (file, ends) = sample();
    for (zeros, after, torn) in [
        (8, &b""[..], true),
        (9_000, b"", true),
        (9_000, b"x", false),
    ] {
        for (chunks, end) in ends.iter().enumerate() {
            let mut file = file[..*end].to_vec();
            file.resize(end + zeros, 0);
            file.extend_from_slice(after);
            let mut reader = Reader::new(&file[..]).unwrap();
            let last = reader.by_ref().last();
            let told = match last {
                Some(Err(ReadError::Torn { offset })) => torn && offset == *end as u64,
                Some(Err(ReadError::Corrupt { offset, .. })) => !torn && offset == *end as u64,
                _ => false,
            };
            assert!(told, "{zeros} zeros behind chunk {chunks}: {last:?}");
        }
    }
}

#[test]
fn zeros_from_inside_a_chunk_on_are_a_torn_tail() {
    let (file, ends) = sample();
    let all: Vec<String> = entries().iter().map(words).collect();
    // A host's crash leaves whole pages or sectors; every word here, and the end of a file anywhere.
    let behind = 9_000;
    for cut in (8..file.len()).step_by(8) {
        for length in [file.len(), file.len() + behind] {
            let (sector, zeros) = (cut.is_multiple_of(512), length - cut);
            if !sector && length == file.len() || (zeros as u64) < 2 * 64 {
                continue;
            }
            let mut file = file[..cut].to_vec();
            file.resize(length, 0);
            let mut reader = match Reader::new(&file[..]) {
                Ok(reader) => reader,
                Err(ReadError::NotARecording | ReadError::Torn { offset: 0 }) => {
                    assert!(cut < ends[0], "cut at {cut}");
                    continue;
                }
                Err(other) => panic!("cut at {cut}: {other}"),
            };
            let read: Vec<_> = reader.by_ref().collect();
            let good: Vec<String> = read.iter().flatten().map(words).collect();
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            // A chunk may end in zeros of its own.
            assert!(
                good.len() >= whole && all.starts_with(&good),
                "cut at {cut}"
            );
            let last = read.last();
            let near = |offset: u64| {
                // Names before the first chunk are read with zeros in them, and nobody uses them.
                cut < ends[1] || offset <= cut as u64 + 64
            };
            let torn = matches!(last, Some(Err(ReadError::Torn { offset })) if near(*offset));
            assert!(torn && !reader.ended(), "cut at {cut}: {last:?}");
        }
        // Anything else behind them is damage.
        let mut damaged = file[..cut].to_vec();
        damaged.resize(file.len() + behind, 0);
        damaged.push(1);
        let last = Reader::new(&damaged[..]).map(Iterator::last);
        let torn = matches!(
            last,
            Ok(Some(Err(ReadError::Torn { .. }))) | Err(ReadError::Torn { .. })
        );
        assert!(!torn, "cut at {cut}");
    }
}

#[test]
fn zeros_that_never_end_are_refused() {
    let endless = || std::io::repeat(0);
    assert!(matches!(
        Reader::new(endless()),
        Err(ReadError::NotARecording)
    ));
    assert!(matches!(
        Reader::new(&[0; 9_000][..]),
        Err(ReadError::NotARecording)
    ));
    let (file, ends) = sample();
    let read = Reader::new(file[..ends[2]].chain(endless())).unwrap();
    let last = read.last();
    assert!(
        matches!(last, Some(Err(ReadError::Corrupt { offset, .. })) if offset == ends[2] as u64),
        "{last:?}"
    );
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
        .find(|i| file[i - 4..i + 2] == *b"\x01\0\0\x003\0")
        .unwrap();
    // Version 2 only lacks a kind of row.
    file[digit] = b'2';
    assert_eq!(read(&file).len(), entries().len());
    file[digit] = b'4';
    let refused = Reader::new(&file[..]).map(|_| ()).unwrap_err();
    assert!(
        matches!(&refused, ReadError::Version { found } if found == "4"),
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
