//! A recording that reaches its largest size.

use super::*;

/// The sample's entries, a chunk each, in a file of at most so many bytes, or why there is none.
fn at_most(max_bytes: u64) -> Result<(Vec<u8>, bool), WriteError> {
    let mut writer = Writer::new(Vec::new(), &origin())?.at_most(max_bytes)?;
    for entry in entries() {
        writer.write(&entry)?;
        writer.flush()?;
    }
    let full = writer.is_full();
    Ok((writer.finish()?, full))
}

#[test]
fn whatever_the_limit_a_file_is_within_it_whole_and_says_where_it_ends() {
    let (all, ends) = sample();
    let words_of_all: Vec<String> = entries().iter().map(words).collect();
    let (mut seen, mut least) = (0, None);
    for max_bytes in (0..all.len() + 4096).step_by(13) {
        let (file, full) = match at_most(max_bytes as u64) {
            Ok(written) => written,
            Err(error) => {
                assert!(matches!(error, WriteError::TooSmall { .. }), "{error}");
                assert!(least.is_none(), "{max_bytes} is more than was enough");
                continue;
            }
        };
        // Beginning and end, without a chunk.
        let beside = *least.get_or_insert(file.len());
        assert!(file.len() <= max_bytes, "{} > {max_bytes}", file.len());
        let mut reader = Reader::new(&file[..]).unwrap();
        let read = reader.by_ref().map(|entry| words(&entry.unwrap()));
        let mut read: Vec<String> = read.collect();
        assert!(reader.ended(), "{max_bytes}");
        if full {
            let max_bytes = max_bytes as u64;
            let last = read.pop();
            assert_eq!(last, Some(words(&Entry::Full { max_bytes })));
        } else {
            assert_eq!(file, all, "a limit that is not reached changes nothing");
        }
        let count = read.len();
        assert_eq!(read, words_of_all[..count], "{max_bytes}");
        assert_eq!(full, count < words_of_all.len(), "{max_bytes}");
        assert!(count >= seen, "{max_bytes}: a larger file has no less");
        // The end is some hundred bytes: a chunk more would have been too much.
        assert!(!full || ends[count + 1] + beside > max_bytes, "{max_bytes}");
        seen = count;
    }
    assert_eq!(seen, words_of_all.len());
    let least = least.unwrap();
    assert!(least < LEAST_MAX_BYTES as usize / 4, "{least}");
}

#[test]
fn a_recorder_ends_when_its_file_is_full_and_what_comes_then_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let to = Destination {
        path: dir.path().join("run.arrows"),
        max_bytes: 2 << 20,
    };
    let recorder = Recorder::start(to.create(&origin()).unwrap()).unwrap();
    let mut offered = 0;
    while !recorder.is_full() {
        // A chunk each, and not more of them than the queue takes.
        if offered - recorder.progress().batches < 4 {
            let taken = recorder.batch(Vec::new(), &batch(offered, 16_384));
            assert!(taken || recorder.is_full());
            offered += 1;
            assert!(offered < 100, "{:?}", recorder.progress());
        }
        std::thread::yield_now();
    }
    assert!(!recorder.batch(Vec::new(), &batch(offered, 1)));
    assert!(!recorder.notes(vec![Entry::Tick { time_ns: 1 }]));
    let progress = recorder.finish().unwrap();
    assert!(progress.full && !progress.failed && recorder.failure().is_none());
    assert_eq!((progress.lost, progress.notes_lost), (0, 0));
    assert_eq!(progress.bytes, std::fs::metadata(&to.path).unwrap().len());
    assert!(progress.bytes <= to.max_bytes && progress.bytes > to.max_bytes / 2);

    let mut reader = Reader::open(&to.path).unwrap();
    let read: Vec<Entry> = reader.by_ref().map(Result::unwrap).collect();
    assert!(reader.ended());
    let Some(Entry::Full { max_bytes }) = read.last() else {
        panic!("{:?}", read.last());
    };
    assert_eq!(*max_bytes, to.max_bytes);
    let batches = read.iter().filter_map(|entry| match entry {
        Entry::Batch(batch) => Some((batch.seq, batch.records.len() as u64)),
        _ => None,
    });
    let batches: Vec<(u64, u64)> = batches.collect();
    let expected: Vec<(u64, u64)> = (0..progress.batches).map(|seq| (seq, 16_384)).collect();
    assert_eq!(batches, expected, "all until the end, and counted");
    assert_eq!(progress.records, progress.batches * 16_384);
    assert_eq!(recorder.kinds().values().sum::<u64>(), progress.records);
}
