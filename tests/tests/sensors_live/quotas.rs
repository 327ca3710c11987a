//! Quotas: a process that fills a table loses counts of its own, and nobody else does.
//!
//! Invariant: the calls are made on a pty of the test's own and the files are in a temporary
//! folder; nothing changes that anybody uses.

use crate::{pairs::one_after_the_other, support::*};
use nix::{
    libc,
    unistd::{pipe, read, write},
};
use palisade::sensors::SensorOptions;
use palisade_abi::{Histogram, Kind, LOSS_COUNTER_MAP, Lost, SampleGpuCommand, SampleReads, kind};
use std::{collections::BTreeSet, fs, os::fd::AsRawFd, path::PathBuf};

/// Entries that a process gets where tables are small.
const QUOTA: usize = 16;

/// Commands of a pty's master that ask, or set what is set already.
const HARMLESS: &[libc::Ioctl] = &[
    libc::TIOCGWINSZ,
    libc::TCGETS,
    libc::TCGETA,
    libc::FIONREAD,
    libc::TIOCOUTQ,
    libc::TIOCGETD,
    libc::FIONCLEX,
    libc::FIOCLEX,
    libc::TIOCGPTN,
    libc::TIOCGPTLCK,
    libc::TIOCGPKT,
    libc::TIOCGEXCL,
    libc::TIOCNXCL,
    libc::TIOCGLCKTRMIOS,
    libc::TIOCGPGRP,
    libc::TIOCGDEV,
    libc::TCGETS2,
    libc::FIONBIO,
    libc::FIOASYNC,
    libc::TIOCGSOFTCAR,
];

/// Counts that found no room, of one workload.
fn lost_by(seen: &Seen, workload: u64) -> u64 {
    let lost: Vec<Lost> = seen.bodies_of(kind::LOST, workload);
    assert!(
        lost.iter().all(|it| it.source == LOSS_COUNTER_MAP),
        "{lost:?}"
    );
    lost.iter().map(|it| it.count).sum()
}

#[test]
fn whoever_uses_many_commands_loses_the_counts_of_its_own() {
    let Some(object) = object("whoever_uses_many_commands_loses_the_counts_of_its_own") else {
        return;
    };
    let hog = || {
        let device = ptmx();
        let mut buffer = [0_u64; 32];
        let works = |command: &&libc::Ioctl| {
            // SAFETY: none of the commands writes more than the buffer holds.
            unsafe { libc::ioctl(device.as_raw_fd(), **command, buffer.as_mut_ptr()) == 0 }
        };
        i32::try_from(HARMLESS.iter().filter(works).count()).unwrap_or(0)
    };
    let other = || {
        let device = ptmx();
        (0..10).map(|_| ask_window_size(&device)).sum()
    };
    // Room for 64 entries.
    let options = SensorOptions {
        max_processes: 16,
        ..options(&[], &[Kind::SampleGpuCommand])
    };
    let (seen, [greedy, modest], [used, failed]) =
        one_after_the_other(object, options, [&hog, &other]);
    let used = usize::try_from(used).expect("a count");
    assert!(used > QUOTA, "only {used} commands work here");
    assert_eq!(failed, 0);

    let counted: Vec<SampleGpuCommand> = seen.bodies_of(kind::SAMPLE_GPU_COMMAND, greedy);
    let commands: BTreeSet<u16> = counted.iter().map(|it| it.command).collect();
    assert_eq!(commands.len(), QUOTA);
    let failed = HARMLESS.len() - used;
    let lost = usize::try_from(lost_by(&seen, greedy)).expect("a count");
    // Those that failed count together, as long as there is room for that.
    assert!(
        (used - QUOTA..=used - QUOTA + failed + 1).contains(&lost),
        "{lost} of {used}"
    );
    let counted: Vec<SampleGpuCommand> = seen.bodies_of(kind::SAMPLE_GPU_COMMAND, modest);
    assert_eq!(counted.iter().map(|it| it.calls).sum::<u32>(), 10);
    assert_eq!(lost_by(&seen, modest), 0);
}

#[test]
fn whoever_reads_many_models_loses_the_counts_of_its_own() {
    const HOARD: usize = 40;
    let Some(object) = object("whoever_reads_many_models_loses_the_counts_of_its_own") else {
        return;
    };
    let dir = tempfile::tempdir().expect("temporary folder");
    let models: Vec<PathBuf> = (0..HOARD)
        .map(|n| {
            let path = dir.path().join(format!("{n}.gguf"));
            fs::write(&path, [7; 100]).expect("file");
            path
        })
        .collect();
    // One read of bytes and one at the end each.
    let read = |models: &[PathBuf]| {
        let whole = |path: &PathBuf| fs::read(path).is_ok_and(|bytes| bytes.len() == 100);
        i32::from(!models.iter().all(whole))
    };
    let options = SensorOptions {
        max_processes: 64,
        ..options(&[], &[Kind::SampleReads])
    };
    let works: [&dyn Fn() -> i32; 2] = [&|| read(&models), &|| read(&models[HOARD - 5..])];
    let (seen, [greedy, modest], failed) = one_after_the_other(object, options, works);
    assert_eq!(failed, [0, 0]);

    let counted: Vec<SampleReads> = seen.bodies_of(kind::SAMPLE_READS, greedy);
    let files: BTreeSet<u64> = counted.iter().map(|it| it.inode).collect();
    assert_eq!(files.len(), QUOTA);
    assert_eq!(lost_by(&seen, greedy), (HOARD - QUOTA) as u64);
    let counted: Vec<SampleReads> = seen.bodies_of(kind::SAMPLE_READS, modest);
    let files: BTreeSet<u64> = counted.iter().map(|it| it.inode).collect();
    assert_eq!(files.len(), 5);
    assert_eq!(lost_by(&seen, modest), 0);
}

#[test]
fn whoever_calls_a_driver_from_many_cgroups_loses_the_counts_of_its_own() {
    const MOVES: usize = 20;
    const CALLS: u32 = 10;
    let name = "whoever_calls_a_driver_from_many_cgroups_loses_the_counts_of_its_own";
    let Some(object) = object(name) else {
        return;
    };
    let (root, modest) = (Cgroup::new(), Cgroup::new());
    let cgroups: Vec<Cgroup> = (0..MOVES).map(|n| root.below(&n.to_string())).collect();
    let (go_read, go) = pipe().expect("pipe");
    let (done, done_write) = pipe().expect("pipe");
    let hog = Child::new(move || {
        let device = ptmx();
        let mut failed = 0;
        for _ in 0..MOVES {
            if read(&go_read, &mut [0]) != Ok(1) {
                return 1;
            }
            failed += ask_window_size(&device);
            if write(&done_write, &[1]) != Ok(1) {
                return 1;
            }
        }
        failed
    });
    let other = Child::new(|| {
        let device = ptmx();
        (0..CALLS).map(|_| ask_window_size(&device)).sum()
    });
    modest.take(other.pid);
    // Room for 64 entries.
    let options = SensorOptions {
        max_processes: 16,
        ..options(&[&root, &modest], &[Kind::SampleGpuLatency])
    };
    let watch = Watch::new(object, options);
    hog.start();
    for cgroup in &cgroups {
        cgroup.take(hog.pid);
        assert_eq!(write(&go, &[1]), Ok(1));
        assert_eq!(read(&done, &mut [0]), Ok(1));
    }
    hog.wait_done();
    other.start();
    other.wait_done();
    let seen = watch.stop();
    assert_eq!((hog.finish(), other.finish()), (0, 0));

    let counted = |workload| -> u32 {
        let parts: Vec<Histogram> = seen.bodies_of(kind::SAMPLE_GPU_LATENCY, workload);
        parts.iter().flat_map(|part| part.counts).sum()
    };
    let ids: Vec<u64> = cgroups.iter().map(Cgroup::id).collect();
    let told: Vec<(u32, u64)> = ids
        .iter()
        .map(|id| (counted(*id), lost_by(&seen, *id)))
        .collect();
    let (first, rest) = told.split_at(QUOTA);
    assert!(first.iter().all(|it| *it == (1, 0)), "{told:?}");
    assert!(rest.iter().all(|it| *it == (0, 1)), "{told:?}");
    assert_eq!(
        (counted(modest.id()), lost_by(&seen, modest.id())),
        (CALLS, 0)
    );
}
