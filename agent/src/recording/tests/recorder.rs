//! The thread that writes beside the work: what it is told, and what it had no room for.

use super::*;

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
