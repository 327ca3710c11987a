#![allow(clippy::unwrap_used)]
use super::*;
use palisade_core::{Knob, WorkloadId};
use proptest::prelude::*;

fn entry(id: u64) -> Entry {
    Entry {
        lease: Lease {
            id: LeaseId(id),
            workload: WorkloadId(100 + id),
            cgroup: format!("/ml/{id}"),
            knob: Knob::CpuQuota,
            value: 200,
            owners: vec!["p".to_owned()],
            until_ns: 1_000_000_000,
        },
        dir: PathBuf::from(format!("/sys/fs/cgroup/cpu/ml/{id}")),
        inode: 100 + id,
        version: Version::V1,
        original: "max 100000".to_owned(),
        set: "20000 100000".to_owned(),
        before: None,
    }
}

fn ids(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|e| e.lease.id.0).collect()
}

fn filled(dir: &Path) -> Vec<u8> {
    let (mut journal, _) = Journal::open(dir).unwrap();
    for id in 1..=3 {
        journal.intent(entry(id)).unwrap();
        journal.held(LeaseId(id), "20000 100000").unwrap();
    }
    journal.undone(LeaseId(2), "expired").unwrap();
    fs::read(path(dir)).unwrap()
}

#[test]
fn what_is_in_force_is_found_again_in_order() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let (journal, recovered) = Journal::open(dir.path()).unwrap();
    assert_eq!(ids(&recovered.orphans), [1, 3]);
    assert_eq!(recovered.orphans[0], entry(1));
    assert_eq!((recovered.damaged, recovered.torn), (0, false));
    assert_eq!(ids(journal.entries()), [1, 3]);
    drop(journal);
    // Still orphans of the next run, until undone.
    let (mut journal, recovered) = Journal::open(dir.path()).unwrap();
    assert_eq!(ids(&recovered.orphans), [1, 3]);
    journal.undone(LeaseId(1), "orphaned").unwrap();
    journal.undone(LeaseId(3), "orphaned").unwrap();
    let (_, recovered) = Journal::open(dir.path()).unwrap();
    assert!(recovered.orphans.is_empty());
}

#[test]
fn an_intent_alone_is_an_orphan() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(dir.path()).unwrap();
    journal.intent(entry(7)).unwrap();
    drop(journal);
    let (_, recovered) = Journal::open(dir.path()).unwrap();
    assert_eq!(ids(&recovered.orphans), [7]);
}

#[test]
fn every_cut_of_the_tail_is_tolerated() {
    let dir = tempfile::tempdir().unwrap();
    let whole = filled(dir.path());
    let boot = boot_id().unwrap();
    for cut in 0..=whole.len() {
        let loaded = parse(&whole[..cut], &boot);
        assert_eq!(loaded.damaged, 0, "cut at {cut}");
        let at_line_end = cut == 0 || whole[cut - 1] == b'\n';
        // A line that lacks only its newline is whole.
        let lacks_newline = cut < whole.len() && whole[cut] == b'\n';
        assert_eq!(loaded.torn, !at_line_end && !lacks_newline, "cut at {cut}");
    }
}

#[test]
fn a_damaged_line_costs_that_line_only() {
    let dir = tempfile::tempdir().unwrap();
    let whole = filled(dir.path());
    let boot = boot_id().unwrap();
    let lines: Vec<&[u8]> = whole.split_inclusive(|b| *b == b'\n').collect();
    // intent 1, held 1, intent 2, held 2, intent 3, held 3, undone 2
    for (damaged, expected) in [
        (0, vec![1, 3]),
        (1, vec![1, 3]),
        (4, vec![1, 3]),
        (5, vec![1, 3]),
        (6, vec![1, 2, 3]),
    ] {
        let mut bytes = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            let mut line = line.to_vec();
            if index == damaged {
                line[20] ^= 1;
            }
            bytes.extend(line);
        }
        let loaded = parse(&bytes, &boot);
        assert_eq!(loaded.damaged, 1);
        let found: Vec<u64> = loaded.entries.iter().map(|(_, e)| e.lease.id.0).collect();
        assert_eq!(found, expected, "line {damaged}");
    }
}

#[test]
fn another_boot_counts_for_nothing_and_another_version_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let whole = filled(dir.path());
    assert!(parse(&whole, "another-boot").entries.is_empty());
    let json = br#"{"v":2,"boot":"x"}"#;
    let mut line = format!("{:08x} ", crc32fast::hash(json)).into_bytes();
    line.extend(json);
    line.push(b'\n');
    assert_eq!(parse(&line, "x").damaged, 1);
}

#[test]
fn a_mark_after_a_torn_line_is_read() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let mut file = OpenOptions::new()
        .append(true)
        .open(path(dir.path()))
        .unwrap();
    // As much of a line as its killed writer got into the file.
    let line = fs::read(path(dir.path())).unwrap();
    file.write_all(&line[..150]).unwrap();
    mark_undone(dir.path(), "run", LeaseId(1), "agent died").unwrap();
    let (_, recovered) = Journal::open(dir.path()).unwrap();
    assert_eq!(ids(&recovered.orphans), [3]);
    assert_eq!((recovered.damaged, recovered.torn), (0, true));
}

#[test]
fn renewals_do_not_grow_the_file_without_a_bound() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(dir.path()).unwrap();
    journal.intent(entry(1)).unwrap();
    let size = fs::metadata(path(dir.path())).unwrap().len();
    journal.renew(LeaseId(1), 1_200_000_000).unwrap();
    assert_eq!(fs::metadata(path(dir.path())).unwrap().len(), size);
    for step in 1..=2000u64 {
        journal
            .renew(LeaseId(1), 1_000_000_000 + step * RENEW_STEP_NS)
            .unwrap();
    }
    assert!(fs::metadata(path(dir.path())).unwrap().len() < 2 * COMPACT_AT);
    let (_, recovered) = Journal::open(dir.path()).unwrap();
    assert_eq!(recovered.orphans[0].lease.until_ns, 2_001_000_000_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        parse(&bytes, "boot");
    }

    #[test]
    fn no_flipped_bit_invents_a_lease(at in 0usize..4000, bit in 0u8..8) {
        let mut bytes = Vec::new();
        for id in 1..=3 {
            bytes.extend(encode("b", "r", State::Intent { entry: entry(id) }).unwrap());
        }
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        for (_, found) in parse(&bytes, "b").entries {
            let id = found.lease.id.0;
            prop_assert!((1..=3).contains(&id));
            prop_assert_eq!(found, entry(id));
        }
    }
}
