//! Reads of model files: every byte is counted for the file that it came from, and no other byte.
//!
//! Invariant: the files are the test's own, in a temporary folder, on a disk where `O_DIRECT` should work.

use crate::{pairs::beside_a_stranger, support::*};
use nix::{
    fcntl::{OFlag, open},
    libc,
    sys::{
        mman::{MapFlags, ProtFlags, mmap},
        stat::Mode,
        uio::{pread, preadv, readv},
    },
    unistd::{Whence, dup, dup2_raw, lseek, pipe, read, write},
};
use palisade::sensors::SensorOptions;
use palisade_abi::{Kind, MODEL_DIRECT, ModelFile, SampleReads, kind};
use std::{
    collections::BTreeMap,
    fs,
    io::IoSliceMut,
    num::NonZeroUsize,
    os::{
        fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC);

/// A temporary folder with files of a size, full of something.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir_in(palisade_tests::binaries()).expect("temporary folder"))
    }

    fn make(&self, name: &str, bytes: usize) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, vec![7; bytes]).expect("file");
        path
    }
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("file").ino()
}

/// Bytes and reads by inode.
fn sums(seen: &Seen) -> BTreeMap<u64, (u64, u32)> {
    let mut sums = BTreeMap::new();
    for sample in seen.bodies::<SampleReads>(kind::SAMPLE_READS) {
        let sum: &mut (u64, u32) = sums.entry(sample.inode).or_default();
        sum.0 += sample.bytes;
        sum.1 += sample.reads;
    }
    sums
}

/// `None` where the file system does not know how (tmpfs before Linux 6.6).
fn open_direct(path: &Path) -> Option<OwnedFd> {
    open(path, FLAGS | OFlag::O_DIRECT, Mode::empty()).ok()
}

fn open_file(path: &Path, flags: OFlag) -> OwnedFd {
    open(path, flags, Mode::empty()).expect("the test's own file")
}

/// Reads to the end in pieces.
fn read_all(file: &OwnedFd, piece: usize) {
    let mut buffer = vec![0; piece];
    while read(file, &mut buffer).is_ok_and(|bytes| bytes > 0) {}
}

#[test]
fn every_way_of_reading_a_model_counts_its_bytes_exactly() {
    const NAME: &str = "every_way_of_reading_a_model_counts_its_bytes_exactly";
    const MIB: usize = 1 << 20;
    let Some(object) = object(NAME) else {
        return;
    };
    let files = Files::new();
    let named = files.make("m.safetensors", MIB + 100);
    // As a hub cache names it: found by its size alone.
    let hashed = files.make("0123456789abcdef0123456789abcdef", 3 * MIB);
    let direct = files.make("direct.gguf", 2 * MIB);
    let other = files.make("notes.txt", MIB);
    let work = || {
        let file = open_file(&named, FLAGS);
        read_all(&file, 64 << 10); // 17 reads, and one of nothing
        let mut buffer = [0; 1000];
        let mut more = [0; 24];
        let _ = pread(&file, &mut buffer, 4096); // 1000
        let _ = pread(&file, &mut buffer, (MIB + 50) as i64); // 50
        let _ = pread(&file, &mut buffer, -1); // refused
        let mut both = [IoSliceMut::new(&mut buffer), IoSliceMut::new(&mut more)];
        let _ = preadv(&file, &mut both, 0); // 1024
        // SAFETY: both buffers are the child's own; the offset is a plain number.
        let _ = unsafe {
            let vectors = both.as_mut_ptr().cast();
            libc::preadv2(file.as_raw_fd(), vectors, 2, 100, 0) // 1024
        };
        let copy = dup(&file).expect("dup");
        let _ = lseek(&copy, 0, Whence::SeekSet);
        let _ = readv(&copy, &mut both); // 1024
        read_all(&open_file(&hashed, FLAGS), MIB); // 3
        read_all(&open_file(&other, FLAGS), 4096);
        // Mapped as well: what comes in by the map is not read.
        let file = open_file(&hashed, FLAGS);
        let length = NonZeroUsize::new(MIB).expect("not zero");
        let (protection, private) = (ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE);
        // SAFETY: a read-only map of a file that does not change; one byte of it is looked at.
        unsafe {
            let Ok(map) = mmap(None, length, protection, private, &file, 0) else {
                return 1;
            };
            if *map.as_ptr().cast::<u8>() != 7 {
                return 2;
            }
        }
        let mut piece = vec![0; MIB];
        let _ = read(&file, &mut piece);
        // O_DIRECT wants an aligned buffer.
        let Some(file) = open_direct(&direct) else {
            return 0;
        };
        let mut room = vec![0; MIB];
        let start = room.as_ptr().align_offset(4096);
        let aligned = &mut room[start..start + (512 << 10)];
        while read(&file, aligned).is_ok_and(|bytes| bytes > 0) {}
        0
    };
    let options = SensorOptions {
        model_min_bytes: 3 << 20,
        ..options(&[], &[Kind::SampleReads, Kind::ModelOpen])
    };
    let seen = beside_a_stranger(object, options, work);
    let mib = MIB as u64;
    let knows_direct = open_direct(&direct).is_some();
    if !knows_direct {
        eprintln!("SKIPPED a part of {NAME}: this file system has no O_DIRECT");
    }
    let mut expected = BTreeMap::from([
        (
            inode(&named),
            (mib + 100 + 1000 + 50 + 3 * 1024, 17 + 2 + 3),
        ),
        (inode(&hashed), (4 * mib, 3 + 1)),
    ]);
    if knows_direct {
        expected.insert(inode(&direct), (2 * mib, 4));
    }
    assert_eq!(sums(&seen), expected);
    let opens: Vec<(u64, bool)> = seen
        .of(kind::MODEL_OPEN)
        .filter_map(|record| {
            let file = record.get::<ModelFile>()?;
            Some((file.inode, record.header.flags & MODEL_DIRECT != 0))
        })
        .collect();
    let (named, hashed, direct) = (inode(&named), inode(&hashed), inode(&direct));
    let expected = [
        (named, false),
        (hashed, false),
        (hashed, false),
        (direct, true),
    ];
    assert_eq!(opens, expected[..3 + usize::from(knows_direct)]);
}

#[test]
fn a_descriptor_that_is_used_again_is_not_mistaken_for_the_model() {
    let Some(object) = object("a_descriptor_that_is_used_again_is_not_mistaken_for_the_model")
    else {
        return;
    };
    let files = Files::new();
    let (model, second) = (files.make("a.gguf", 8192), files.make("b.gguf", 8192));
    let other = files.make("notes.txt", 8192);
    let inside = Cgroup::new();
    let child = Child::new(|| {
        let number = open_file(&model, FLAGS).into_raw_fd();
        // SAFETY: the number is this child's own, and whatever is behind it is open.
        let file = || std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
        for _ in 0..3 {
            // Another file gets the number by an open, by dup2 over it, or as a pipe's end.
            read_all(&file(), 4096); // 8192 of the model
            // SAFETY: as above.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
            let next = open_file(&other, FLAGS);
            if next.as_raw_fd() != number {
                return 1;
            }
            read_all(&next, 4096);
            drop(next);
            let (end, other_end) = pipe().expect("pipe");
            let _ = write(&other_end, &[0; 100]);
            drop(other_end);
            if end.as_raw_fd() != number {
                return 2;
            }
            read_all(&end, 4096);
            drop(end);
            let next = open_file(&second, FLAGS);
            read_all(&next, 4096); // 8192 of the second
            let third = open_file(&other, FLAGS);
            // SAFETY: both numbers are this child's own.
            let over = unsafe { dup2_raw(&third, next.as_raw_fd()) };
            read_all(&over.expect("dup2"), 4096);
            std::mem::forget(next);
            drop(third);
            if open_file(&model, FLAGS).into_raw_fd() != number {
                return 3;
            }
        }
        0
    });
    inside.take(child.pid);
    let watch = Watch::new(object, options(&[&inside], &[Kind::SampleReads]));
    assert_eq!(child.run(), 0);
    let seen = watch.stop();
    seen.assert_none_lost();
    let expected = BTreeMap::from([
        (inode(&model), (3 * 8192, 3 * 2)),
        (inode(&second), (3 * 8192, 3 * 2)),
    ]);
    assert_eq!(sums(&seen), expected);
}

#[test]
fn a_model_opened_before_is_found_with_its_first_read_and_named_once() {
    let Some(object) = object("a_model_opened_before_is_found_with_its_first_read_and_named_once")
    else {
        return;
    };
    let files = Files::new();
    let path = files.make("early.gguf", 64 << 10);
    let file = open_file(&path, FLAGS);
    let inside = Cgroup::new();
    let child = Child::new(|| {
        read_all(&file, 4096);
        0
    });
    inside.take(child.pid);
    let watch = Watch::new(object, options(&[&inside], &[Kind::SampleReads]));
    assert_eq!(child.run(), 0);
    let seen = watch.stop();
    seen.assert_none_lost();
    assert_eq!(
        sums(&seen),
        BTreeMap::from([(inode(&path), (64 << 10, 16))])
    );
    let names: Vec<&str> = seen
        .names
        .iter()
        .map(|(_, name, _)| name.as_str())
        .collect();
    assert_eq!(names, [whole(&path)]);
}
