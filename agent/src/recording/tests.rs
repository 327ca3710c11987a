//! Recordings: round trips, torn tails, damage, arbitrary bytes.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::batch::Batch;
use palisade_abi::{Header as RecordHeader, Record};
use proptest::prelude::*;
use serde_json::{Value, json};

fn header() -> Value {
    json!({ "agent": "0.1.0", "kernel": "6.18", "window_ns": 100_000_000, "boot_id": "b" })
}

fn identity() -> Identity {
    Identity::File {
        device: 7,
        inode: u64::MAX,
        path: "/models/a\n.gguf".into(),
    }
}

fn batch(seq: u64, count: usize) -> Batch {
    let record = |i: usize| Record {
        header: RecordHeader {
            time_ns: seq * 1000 + i as u64,
            pid: i as u32,
            ..Default::default()
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

/// A recording, and the offsets at which its frames end.
fn sample() -> (Vec<u8>, Vec<usize>) {
    let mut ends = Vec::new();
    let mut writer = Writer::new(Vec::new(), &header()).unwrap();
    let mut file = Vec::new();
    for seq in 0..5 {
        writer.batch(&batch(seq, seq as usize * 3)).unwrap();
    }
    writer.identity(&identity()).unwrap();
    writer.order(&json!([1, 2])).unwrap();
    file.extend(writer.finish().unwrap());
    let mut at = MAGIC.len() + 4;
    while at < file.len() {
        at += 8 + u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        ends.push(at);
    }
    (file, ends)
}

fn frames(bytes: &[u8]) -> Vec<Result<Frame, ReadError>> {
    Reader::new(bytes).unwrap().collect()
}

#[test]
fn what_was_written_is_read() {
    let (file, _) = sample();
    let reader = Reader::new(&file[..]).unwrap();
    assert_eq!(*reader.header(), header());
    let frames: Vec<Frame> = reader.map(Result::unwrap).collect();
    assert_eq!(frames.len(), 8);
    for (seq, frame) in frames.iter().take(5).enumerate() {
        let expected = batch(seq as u64, seq * 3);
        let Frame::Batch(read) = frame else {
            panic!("{frame:?}")
        };
        assert_eq!(
            (read.seq, read.now_ns, read.window_end),
            (expected.seq, expected.now_ns, expected.window_end)
        );
        assert_eq!(read.records, expected.records);
    }
    assert!(matches!(&frames[5], Frame::Identity(read) if *read == identity()));
    assert!(matches!(&frames[6], Frame::Order(read) if *read == json!([1, 2])));
    assert!(matches!(frames[7], Frame::End));
}

#[test]
fn torn_tail_loses_the_last_frame_only_and_says_so() {
    let (file, ends) = sample();
    for cut in ends[0] + 1..file.len() {
        let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
        let read = frames(&file[..cut]);
        assert_eq!(
            read.iter().filter(|f| f.is_ok()).count(),
            whole,
            "cut at {cut}"
        );
        let torn = !ends.contains(&cut);
        assert_eq!(
            matches!(read.last(), Some(Err(ReadError::Torn { .. }))),
            torn,
            "cut at {cut}"
        );
        assert!(!read.iter().any(|f| matches!(f, Ok(Frame::End))));
    }
}

#[test]
fn other_files_and_later_versions_are_refused() {
    assert!(matches!(
        Reader::new(&b""[..]),
        Err(ReadError::NotARecording)
    ));
    assert!(matches!(
        Reader::new(&b"{\"v\":1}\n{\"v\":1}"[..]),
        Err(ReadError::NotARecording)
    ));
    let (mut file, _) = sample();
    file[7] = 2;
    assert!(matches!(
        Reader::new(&file[..]),
        Err(ReadError::Version { found: 2 })
    ));
    file.truncate(11);
    file[7] = 1;
    assert!(matches!(
        Reader::new(&file[..]),
        Err(ReadError::Torn { offset: 11 })
    ));
}

#[test]
fn frames_of_a_later_agent_are_skippable() {
    let (mut file, _) = sample();
    let body = [77u8, 1, 2, 3];
    let end = file.split_off(file.len() - 9);
    file.extend_from_slice(&4u32.to_le_bytes());
    file.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    file.extend_from_slice(&body);
    file.extend_from_slice(&end);
    let read = frames(&file);
    assert!(matches!(&read[7], Ok(Frame::Unknown(77, payload)) if payload == &[1, 2, 3]));
    assert!(matches!(read[8], Ok(Frame::End)));
}

#[test]
fn length_that_cannot_be_is_no_allocation() {
    let (file, ends) = sample();
    let mut file = file[..ends[1]].to_vec();
    file.extend_from_slice(&u32::MAX.to_le_bytes());
    file.extend_from_slice(&[0; 4]);
    let offset = ends[1] as u64;
    assert!(
        matches!(frames(&file).last(), Some(Err(ReadError::Corrupt { offset: at, .. })) if *at == offset)
    );
}

#[test]
fn too_large_a_batch_is_refused() {
    let mut writer = Writer::new(Vec::new(), &header()).unwrap();
    writer.batch(&batch(1, 65_535)).unwrap();
    assert!(matches!(
        writer.batch(&batch(1, 65_536)),
        Err(WriteError::TooLarge { .. })
    ));
    assert!(matches!(
        writer.order(&"x".repeat(MAX_FRAME).into()),
        Err(WriteError::TooLarge { .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Reader::new(&bytes[..]).map(Iterator::count);
        let (mut file, ends) = sample();
        file.truncate(ends[0]);
        file.extend_from_slice(&bytes);
        prop_assert!(frames(&file).len() <= bytes.len() + 1);
    }

    #[test]
    fn any_changed_byte_is_found(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let (mut file, ends) = sample();
        let at = at.index(file.len());
        file[at] ^= flip;
        let Ok(reader) = Reader::new(&file[..]) else {
            prop_assert!(at < ends[0]);
            return Ok(());
        };
        let read: Vec<_> = reader.collect();
        let error = read.last().and_then(|f| f.as_ref().err());
        let begin = ends.iter().rev().find(|end| **end <= at).copied().unwrap_or(0) as u64;
        let at_frame = match error {
            Some(ReadError::Corrupt { offset, .. } | ReadError::Torn { offset }) => *offset == begin,
            _ => false,
        };
        prop_assert!(at_frame, "{:?}", error);
    }
}

#[test]
fn files_are_written_and_read_and_a_missing_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.pal");
    assert!(matches!(
        Reader::open(&path),
        Err(ReadError::Io { offset: 0, .. })
    ));
    let mut writer = Writer::create(&path, &header()).unwrap();
    writer.batch(&batch(1, 2)).unwrap();
    // As a crash would leave it: no end.
    drop(writer);
    let reader = Reader::open(&path).unwrap();
    assert_eq!(*reader.header(), header());
    assert_eq!(reader.map(Result::unwrap).count(), 1);
}

#[test]
fn identity_of_a_later_agent_is_unknown_not_damage() {
    let (mut file, ends) = sample();
    file.truncate(ends[1]);
    let body = b"\x03{\"pod\":{\"uid\":1}}";
    file.extend_from_slice(&(body.len() as u32).to_le_bytes());
    file.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    file.extend_from_slice(body);
    assert!(matches!(
        frames(&file).last(),
        Some(Ok(Frame::Unknown(3, _)))
    ));
}
