//! Properties: any edit, removal, swap or cut of a valid log is found.

use crate::support::*;
use palisade::audit::{self, Entry, Filter, Head, Options, Report, Status};
use proptest::prelude::*;
use std::fs;

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
            .map(|e| {
                (
                    e.file_name().into_string().unwrap(),
                    fs::read(e.path()).unwrap(),
                )
            })
            .collect();
        Files(all, head)
    })
}

/// The sample's lines, in order, put back into its segments after `change`.
fn changed(change: impl FnOnce(&mut Vec<Vec<u8>>)) -> tempfile::TempDir {
    let Files(files, _) = files();
    let dir = tempfile::tempdir().unwrap();
    let mut segments: Vec<&(String, Vec<u8>)> =
        files.iter().filter(|f| f.0.starts_with("audit-")).collect();
    segments.sort();
    let counts: Vec<usize> = segments
        .iter()
        .map(|s| s.1.split_inclusive(|b| *b == b'\n').count())
        .collect();
    let all: Vec<u8> = segments.iter().flat_map(|s| s.1.clone()).collect();
    let mut lines: Vec<Vec<u8>> = all
        .split_inclusive(|b| *b == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    change(&mut lines);
    let mut rest = lines.into_iter();
    for (i, segment) in segments.iter().enumerate() {
        let count = if i + 1 == counts.len() {
            usize::MAX
        } else {
            counts[i]
        };
        let bytes: Vec<u8> = rest.by_ref().take(count).flatten().collect();
        if !bytes.is_empty() {
            fs::write(dir.path().join(&segment.0), bytes).unwrap();
        }
    }
    for (name, bytes) in files.iter().filter(|f| f.0 == "checkpoint.pub") {
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
    let near = report
        .faults
        .iter()
        .any(|f| f.seq.abs_diff(seq as u64) <= 1);
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
