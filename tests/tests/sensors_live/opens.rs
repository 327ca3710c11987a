//! Opens of model files at each of the places where the kernel can be asked, io_uring's too, and the paths
//! that the kernel tells.
//!
//! Invariant: the files are the test's own, in a temporary folder; in a guest that is on an overlay, whose opens
//! the kernel repeats for the file below.

use crate::{io_uring::Ring, support::*};
use nix::{
    fcntl::{AT_FDCWD, OFlag, OpenHow, open, openat2},
    sys::stat::Mode,
    unistd::{ForkResult, fork},
};
use palisade::sensors::{SensorOptions, Sensors, Way};
use palisade_abi::{Kind, MODEL_DIRECT, ModelFile, NO_FD, kind};
use std::{
    ffi::{CStr, CString},
    fs,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
};

const RUNGS: [Way; 3] = [Way::Fexit, Way::Lsm, Way::Tracepoint];
const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC);

/// Sensors whose opens are asked for in that way alone, or `None` after a word where that cannot be.
fn watch_by(test: &str, object: &[u8], way: Way, options: SensorOptions) -> Option<Watch> {
    let sensors = Sensors::load(
        object,
        SensorOptions {
            avoid: RUNGS.into_iter().filter(|other| *other != way).collect(),
            ..options
        },
    )
    .expect("sensors");
    let mut hooks = sensors.report().hooks.into_iter();
    let hook = hooks.find(|hook| hook.name == "model open").expect("hook");
    if let Some(place) = &hook.attached {
        assert!(place.starts_with(way.name()), "{place}");
        return Some(Watch::of(sensors));
    }
    // A stock kernel has all of them.
    assert!(std::env::var_os("PALISADE_VM").is_none(), "{hook:?}");
    let mut failed = hook.failed.iter();
    let why = failed.find(|(place, _)| place.starts_with(way.name()));
    let why = why.and_then(|(_, why)| why.lines().next());
    eprintln!("SKIPPED a part of {test}: {}: {why:?}", way.name());
    None
}

/// A copy of a small program.
fn program(path: &Path) {
    fs::copy("/bin/true", path).expect("copy");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("mode");
}

/// The same in a file without a place.
fn anonymous_program(name: &CStr) -> fs::File {
    // SAFETY: a new descriptor, which nobody else knows.
    let file = unsafe {
        let fd = nix::libc::memfd_create(name.as_ptr(), nix::libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::copy("/bin/true", &path).expect("copied");
    // What is open for writing cannot be executed.
    fs::File::open(&path).expect("opened again")
}

/// Executes a file in a child and waits for it; whether that went well.
pub fn execute(path: &Path) -> bool {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    // SAFETY: the child only makes system calls.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            let _ = nix::unistd::execv(&path, &[c"program"]);
            // SAFETY: nothing to clean up, and the harness's handlers must not run.
            unsafe { nix::libc::_exit(9) }
        }
        Ok(ForkResult::Parent { child }) => {
            let ended = nix::sys::wait::waitpid(child, None);
            ended == Ok(nix::sys::wait::WaitStatus::Exited(child, 0))
        }
        Err(_) => false,
    }
}

#[test]
fn an_open_is_told_once_at_each_place_where_it_can_be_seen() {
    const NAME: &str = "an_open_is_told_once_at_each_place_where_it_can_be_seen";
    const TIMES: usize = 25;
    let Some(object) = object(NAME) else {
        return;
    };
    let dir = tempfile::tempdir_in(palisade_tests::binaries()).expect("temporary folder");
    let make = |name: &str, bytes: u64| {
        let path = dir.path().join(name);
        let made = fs::File::create(&path).and_then(|file| file.set_len(bytes));
        made.expect("file");
        path
    };
    let (named, large) = (
        make("m.safetensors", 8192),
        make("0123456789abcdef", 2 << 20),
    );
    let other = make("notes.txt", 8192);
    let executed = dir.path().join("program.gguf");
    program(&executed);
    let has_direct = open(&named, FLAGS | OFlag::O_DIRECT, Mode::empty()).is_ok();
    for way in RUNGS {
        let (inside, outside) = (Cgroup::new(), Cgroup::new());
        let work = || {
            for _ in 0..TIMES {
                for path in [&named, &large, &other] {
                    if open(path, FLAGS, Mode::empty()).is_err() {
                        return 1;
                    }
                }
                let how = OpenHow::new().flags(FLAGS);
                if openat2(AT_FDCWD, &named, how).is_err() {
                    return 2;
                }
                // None of these is an open of what is in the file.
                let absent = open(&dir.path().join("absent.gguf"), FLAGS, Mode::empty());
                let name = open(&named, OFlag::O_PATH | FLAGS, Mode::empty());
                let folder = open(&named, OFlag::O_DIRECTORY | FLAGS, Mode::empty());
                if absent.is_ok() || name.is_err() || folder.is_ok() {
                    return 3;
                }
            }
            if has_direct && open(&named, FLAGS | OFlag::O_DIRECT, Mode::empty()).is_err() {
                return 4;
            }
            i32::from(!execute(&executed))
        };
        let (child, stranger) = (Child::new(work), Child::new(work));
        inside.take(child.pid);
        outside.take(stranger.pid);
        let options = SensorOptions {
            model_min_bytes: 2 << 20,
            ..options(&[&inside], &[Kind::ModelOpen])
        };
        let Some(watch) = watch_by(NAME, object, way, options) else {
            continue;
        };
        child.start();
        stranger.start();
        child.wait_done();
        stranger.wait_done();
        let (pid, workload, handle) = (child.pid, inside.id(), watch.handle.clone());
        let seen = watch.stop();
        tell_costs(&handle);
        assert_eq!((child.finish(), stranger.finish()), (0, 0));
        let skipped = seen.assert_none_lost_but_skipped(&[Kind::ModelOpen]);
        seen.assert_from(pid, workload);
        let opens = |path: &Path, direct: bool| {
            let meta = fs::metadata(path).expect("file");
            seen.of(kind::MODEL_OPEN)
                .filter(|record| (record.header.flags & MODEL_DIRECT != 0) == direct)
                .filter_map(palisade_abi::Record::get::<ModelFile>)
                .filter(|file| (file.inode, file.bytes) == (meta.ino(), meta.len()))
                .count()
        };
        let found = [
            opens(&named, false),
            opens(&large, false),
            opens(&named, true),
        ];
        let made = [2 * TIMES, TIMES, usize::from(has_direct)];
        if skipped == 0 {
            assert_eq!(found, made, "{way:?}");
        }
        let (found, made): (usize, usize) = (found.iter().sum(), made.iter().sum());
        let least = made.saturating_sub(skipped as usize);
        assert!((least..=made).contains(&found), "{way:?}: {found}");
        assert_eq!(seen.count(kind::MODEL_OPEN), found, "{way:?}");
        // The descriptor is known where the system call's return is looked at.
        let knows = way == Way::Tracepoint;
        let files = seen.bodies::<ModelFile>(kind::MODEL_OPEN);
        assert!(files.iter().all(|file| (file.fd != NO_FD) == knows));
        for path in [&named, &large] {
            let path = whole(path);
            assert!(seen.names.iter().any(|(_, told, _)| *told == path));
        }
        assert_eq!(seen.names.len(), found, "{way:?}");
    }
}

#[test]
fn an_open_through_io_uring_is_told_below_the_system_calls() {
    const NAME: &str = "an_open_through_io_uring_is_told_below_the_system_calls";
    const TIMES: usize = 10;
    let Some(object) = object(NAME) else {
        return;
    };
    if let Err(error) = Ring::new() {
        eprintln!("SKIPPED {NAME}: io_uring: {error}");
        return;
    }
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("m.gguf");
    fs::write(&path, [0; 4096]).expect("file");
    let inode = fs::metadata(&path).expect("file").ino();
    let given = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    for way in RUNGS {
        let inside = Cgroup::new();
        let child = Child::new(|| {
            let Ok(ring) = Ring::new() else {
                return 1;
            };
            // In the caller's own context, and in a thread that the kernel makes for it.
            for in_a_thread in [false, true] {
                for _ in 0..TIMES {
                    let Ok(file) = ring.open(&given, in_a_thread) else {
                        return 2;
                    };
                    if nix::sys::stat::fstat(&file).map(|stat| stat.st_ino) != Ok(inode) {
                        return 3;
                    }
                }
            }
            let absent = ring.open(c"/nonexistent/m.gguf", false);
            i32::from(absent.is_ok())
        });
        inside.take(child.pid);
        let options = options(&[&inside], &[Kind::ModelOpen]);
        let Some(watch) = watch_by(NAME, object, way, options) else {
            continue;
        };
        let (pid, workload) = (child.pid, inside.id());
        assert_eq!(child.run(), 0);
        let seen = watch.stop();
        let skipped = seen.assert_none_lost_but_skipped(&[Kind::ModelOpen]);
        seen.assert_from(pid, workload);
        let found = seen.count(kind::MODEL_OPEN);
        // The blind spot of the system calls' tracepoints, as documented.
        let made = if way == Way::Tracepoint { 0 } else { 2 * TIMES };
        // What was skipped need not have been the child's.
        let least = made.saturating_sub(skipped as usize);
        assert!((least..=made).contains(&found), "{way:?}: {found}");
    }
}

#[test]
fn the_path_of_a_program_is_told_whole_or_as_an_end() {
    let Some(object) = object("the_path_of_a_program_is_told_whole_or_as_an_end") else {
        return;
    };
    let dir = tempfile::tempdir().expect("temporary folder");
    let at = |name: &str| dir.path().join(name);
    let deep = |names: usize, letters: usize| -> PathBuf {
        let top = at(&format!("deep{names}"));
        let folder = (0..names).fold(top, |path, _| path.join("n".repeat(letters)));
        fs::create_dir_all(&folder).expect("folders");
        folder.join("program")
    };
    let (plain, link, script) = (at("program"), at("link"), at("script"));
    let (gone, long) = (at("gone"), deep(3, 200));
    let (many, too_many) = (deep(20, 1), deep(60, 1));
    for path in [&plain, &gone, &long, &many, &too_many] {
        program(path);
    }
    std::os::unix::fs::symlink(&plain, &link).expect("link");
    fs::write(&script, format!("#!{}\n", plain.display())).expect("script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("mode");
    let gone_file = fs::File::open(&gone).expect("file");
    fs::remove_file(&gone).expect("removed");
    let gone_path = PathBuf::from(format!("/proc/self/fd/{}", gone_file.as_raw_fd()));
    let anonymous = anonymous_program(c"/sbin/init");
    let anonymous_path = PathBuf::from(format!("/proc/self/fd/{}", anonymous.as_raw_fd()));

    let inside = Cgroup::new();
    let paths = [
        &plain,
        &link,
        &script,
        &gone_path,
        &long,
        &anonymous_path,
        &many,
        &too_many,
    ];
    let child = Child::new(|| i32::from(!paths.iter().all(|path| execute(path))));
    inside.take(child.pid);
    let watch = Watch::new(object, options(&[&inside], &[Kind::Exec]));
    assert_eq!(child.run(), 0);
    let handle = watch.handle.clone();
    let seen = watch.stop();
    tell_costs(&handle);
    seen.assert_none_lost();
    let told: Vec<&str> = seen
        .programs
        .iter()
        .map(|(_, path)| path.as_str())
        .collect();
    let whole_plain = whole(&plain);
    let ends = format!("…/{0}/{0}/program", "n".repeat(200));
    let expected = [
        whole_plain.as_str(),
        // The file that runs, and not the name that it was called by.
        whole_plain.as_str(),
        whole_plain.as_str(),
        &format!("{} (deleted)", whole(&gone)),
        &ends,
        "…/memfd:/sbin/init",
        &whole(&many),
        // 40 names and mounts are followed.
        &format!("…/{}program", "n/".repeat(39)),
    ];
    assert_eq!(told, expected);
    let records: Vec<u32> = seen
        .of(kind::EXEC)
        .map(|record| record.header.pid)
        .collect();
    let paths: Vec<u32> = seen.programs.iter().map(|(pid, _)| *pid).collect();
    assert_eq!(paths, records);
}
