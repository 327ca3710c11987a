//! Memory maps and model files: each one is found once, with its size and its name.
//!
//! Invariant: the files are the test's own, in a temporary folder.

use crate::support::*;
use nix::{
    fcntl::{OFlag, open},
    sys::{
        mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap},
        stat::Mode,
    },
};
use palisade_abi::{Kind, MapCall, ModelFile, SampleMaps, kind};
use std::{fs, num::NonZeroUsize, os::unix::fs::MetadataExt, path::Path};

#[test]
fn maps_and_unmaps_that_succeed_are_found_exactly() {
    const MAPS: usize = 300;
    const BYTES: usize = 3 * 4096;
    let Some(object) = object("maps_and_unmaps_that_succeed_are_found_exactly") else {
        return;
    };
    let inside = Cgroup::new();
    let child = Child::new(|| {
        let length = NonZeroUsize::new(BYTES).expect("not zero");
        for _ in 0..MAPS {
            let flags = MapFlags::MAP_PRIVATE;
            // SAFETY: fresh anonymous memory of the child's own, which nobody uses.
            let Ok(address) =
                (unsafe { mmap_anonymous(None, length, ProtFlags::PROT_READ, flags) })
            else {
                return 1;
            };
            // SAFETY: the map made above. The misaligned address is refused by the kernel.
            unsafe {
                let misaligned = std::ptr::NonNull::new_unchecked(address.as_ptr().add(1));
                if munmap(misaligned, BYTES).is_ok() || munmap(address, BYTES).is_err() {
                    return 2;
                }
            }
        }
        // SAFETY: a map of nothing is refused.
        let refused =
            unsafe { nix::libc::mmap(std::ptr::null_mut(), 0, 0, nix::libc::MAP_ANONYMOUS, -1, 0) };
        i32::from(refused != nix::libc::MAP_FAILED)
    });
    let (pid, workload) = (child.pid, inside.id());
    inside.take(child.pid);
    let watch = Watch::new(
        object,
        options(&[&inside], &[Kind::Mmap, Kind::Munmap, Kind::SampleMaps]),
    );
    child.start();
    child.wait_done();
    let seen = watch.stop();
    assert_eq!(child.finish(), 0);

    seen.assert_none_lost();
    seen.assert_from(pid, workload);
    let (maps, unmaps): (Vec<MapCall>, Vec<MapCall>) =
        (seen.bodies(kind::MMAP), seen.bodies(kind::MUNMAP));
    assert_eq!((maps.len(), unmaps.len()), (MAPS, MAPS));
    for (map, unmap) in maps.iter().zip(&unmaps) {
        assert_eq!((map.bytes, unmap.bytes), (BYTES as u64, BYTES as u64));
        assert_eq!(map.address, unmap.address);
        assert_eq!(map.map_flags & 0x22, 0x22, "private and anonymous");
    }
    let samples: Vec<SampleMaps> = seen.bodies(kind::SAMPLE_MAPS);
    let total = (MAPS * BYTES) as u64;
    assert_eq!(samples.iter().map(|s| s.maps as usize).sum::<usize>(), MAPS);
    assert_eq!(
        samples.iter().map(|s| s.unmaps as usize).sum::<usize>(),
        MAPS
    );
    assert_eq!(samples.iter().map(|s| s.mapped_bytes).sum::<u64>(), total);
    assert_eq!(samples.iter().map(|s| s.unmapped_bytes).sum::<u64>(), total);
}

#[test]
fn model_files_are_found_by_suffix_and_by_size_and_named() {
    const TIMES: usize = 40;
    let Some(object) = object("model_files_are_found_by_suffix_and_by_size_and_named") else {
        return;
    };
    let dir = tempfile::tempdir().expect("temporary folder");
    let make = |name: &str, bytes: u64| {
        let path = dir.path().join(name);
        fs::File::create(&path)
            .and_then(|file| file.set_len(bytes))
            .expect("file");
        path
    };
    // One character is the shortest name with a suffix; 5 GiB are sparse.
    let named = make("m.safetensors", 8192);
    let short = make("m.gguf", 4096);
    let large = make("0123456789abcdef0123456789abcdef", 5 << 30);
    let others = [
        make("notes.txt", 100),
        make("gguf", 100),
        make("m.gguf.txt", 100),
    ];
    let inode = |path: &Path| fs::metadata(path).expect("file").ino();
    let inodes = [inode(&named), inode(&short), inode(&large)];

    let inside = Cgroup::new();
    let child = Child::new(|| {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        for _ in 0..TIMES {
            for path in others.iter().chain([&short, &large]) {
                if open(path, flags, Mode::empty()).is_err() {
                    return 1;
                }
            }
            if open(&dir.path().join("absent.gguf"), flags, Mode::empty()).is_ok() {
                return 2;
            }
            let how = nix::fcntl::OpenHow::new().flags(flags);
            let Ok(file) = nix::fcntl::openat2(nix::fcntl::AT_FDCWD, &named, how) else {
                return 3;
            };
            let length = NonZeroUsize::new(8192).expect("not zero");
            let (read, private) = (ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE);
            // SAFETY: a read-only map that nobody looks at; the file does not change.
            if unsafe { mmap(None, length, read, private, &file, 0) }.is_err() {
                return 4;
            }
        }
        0
    });
    let (pid, workload) = (child.pid, inside.id());
    inside.take(child.pid);
    let watch = Watch::new(
        object,
        options(&[&inside], &[Kind::ModelOpen, Kind::ModelMap]),
    );
    child.start();
    child.wait_done();
    let seen = watch.stop();
    assert_eq!(child.finish(), 0);

    seen.assert_none_lost();
    seen.assert_from(pid, workload);
    let opens: Vec<ModelFile> = seen.bodies(kind::MODEL_OPEN);
    assert_eq!(opens.len(), 3 * TIMES);
    for (inode, bytes) in inodes.into_iter().zip([8192, 4096, 5 << 30]) {
        let of_file = opens
            .iter()
            .filter(|open| open.inode == inode && open.bytes == bytes);
        assert_eq!(of_file.count(), TIMES);
    }
    let maps: Vec<ModelFile> = seen.bodies(kind::MODEL_MAP);
    assert_eq!(maps.len(), TIMES);
    assert!(
        maps.iter()
            .all(|map| map.inode == inodes[0] && map.bytes == 8192)
    );
    for (inode, path) in inodes.into_iter().zip([&named, &short, &large]) {
        let path = whole(path);
        assert!(seen.names.iter().any(|(key, told, by)| {
            key.inode == inode && *told == path && *by == pid.as_raw() as u32
        }));
    }
    assert!(
        seen.names
            .iter()
            .all(|(key, ..)| inodes.contains(&key.inode))
    );
}

#[test]
fn a_model_mapped_but_opened_before_is_named_with_its_map() {
    let Some(object) = object("a_model_mapped_but_opened_before_is_named_with_its_map") else {
        return;
    };
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("early.gguf");
    fs::write(&path, [0; 4096]).expect("file");
    let file = fs::File::open(&path).expect("file");
    let inside = Cgroup::new();
    let child = Child::new(|| {
        let length = NonZeroUsize::new(4096).expect("not zero");
        let (read, private) = (ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE);
        // SAFETY: a read-only map that nobody looks at; the file does not change.
        i32::from((0..2).any(|_| unsafe { mmap(None, length, read, private, &file, 0) }.is_err()))
    });
    inside.take(child.pid);
    let watch = Watch::new(object, options(&[&inside], &[Kind::ModelMap]));
    assert_eq!(child.run(), 0);
    let seen = watch.stop();
    seen.assert_none_lost();
    assert_eq!(seen.count(kind::MODEL_MAP), 2);
    let names: Vec<&str> = seen
        .names
        .iter()
        .map(|(_, name, _)| name.as_str())
        .collect();
    assert_eq!(names, [whole(&path)], "told once");
}
