//! CUDA calls, in a library of the test's own that has the driver library's names: no GPU is
//! needed to be asked.
//!
//! Invariant: only this test's children map the library, so a breakpoint in it meets nobody else.

use crate::support::*;
use nix::{libc, unistd::Pid};
use palisade::sensors::{SensorOptions, Sensors};
use palisade_abi::{Kind, Record, SampleCuda, kind};
use std::{
    ffi::CString,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// Calls return 0, or the error that they are asked for; those that wait do so for so many
/// microseconds. One function has two names, and the copy waits by way of a call that is watched
/// itself.
const LIBRARY: &str = r#"
#include <unistd.h>
int cuLaunchKernel(long x) { return 0; }
int cuLaunchKernel_ptsz(long x) __attribute__((alias("cuLaunchKernel")));
int cuGraphLaunch(long x) { return 0; }
int cuMemAlloc_v2(long error) { return error; }
int cuMemAllocAsync(long error) { return error; }
int cuStreamSynchronize(long us) { usleep(us); return 0; }
int cuEventSynchronize(long us) { return 700; }
int cuMemcpyDtoH_v2(long us) { int e = cuStreamSynchronize(us); usleep(us); return e; }
int cuMemcpyHtoD_v2(long us) { return 0; }
int cuInit(long x) { return 0; }
"#;

/// The library, or `None` after a word on standard error where there is no compiler.
fn library(dir: &Path, test: &str) -> Option<PathBuf> {
    let (source, library) = (dir.join("cuda.c"), dir.join("libcuda.so.1"));
    std::fs::write(&source, LIBRARY).expect("source");
    // Calls inside the library go through its table, as a driver's might.
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O0", "-o"])
        .args([&library, &source])
        .status();
    match built {
        Ok(status) => assert!(status.success(), "the library was not built"),
        Err(error) => {
            eprintln!("SKIPPED {test}: no C compiler: {error}");
            return None;
        }
    }
    Some(library)
}

type Call = extern "C" fn(libc::c_long) -> libc::c_int;

/// A child that maps the library and calls it so often.
fn caller(library: &Path, calls: &'static [(&'static str, i64, usize)]) -> Child {
    let path = CString::new(library.as_os_str().as_bytes()).expect("path");
    Child::new(move || {
        // SAFETY: the library has no constructors.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        if handle.is_null() {
            return 1;
        }
        for (name, argument, times) in calls {
            let Ok(name) = CString::new(*name) else {
                return 2;
            };
            // SAFETY: the handle is open.
            let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
            if address.is_null() {
                return 3;
            }
            // SAFETY: every function of the library has this type.
            let call = unsafe { std::mem::transmute::<*mut libc::c_void, Call>(address) };
            for _ in 0..*times {
                call(*argument);
            }
        }
        0
    })
}

fn sum(seen: &Seen, pid: Pid) -> (u64, [u64; 4]) {
    let of_process = seen
        .of(kind::SAMPLE_CUDA)
        .filter(|record| record.header.pid == pid.as_raw() as u32)
        .filter_map(Record::get::<SampleCuda>);
    of_process.fold((0, [0; 4]), |(blocked_ns, counts), sample| {
        let more = [
            sample.launches,
            sample.syncs,
            sample.copies,
            sample.failed_allocs,
        ];
        let counts = std::array::from_fn(|i| counts[i] + u64::from(more[i]));
        (blocked_ns + sample.blocked_ns, counts)
    })
}

#[test]
fn cuda_calls_are_counted_exactly_and_their_blocked_time_summed() {
    const MS: i64 = 1000;
    let name = "cuda_calls_are_counted_exactly_and_their_blocked_time_summed";
    let Some(object) = object(name) else { return };
    let dir = tempfile::tempdir().expect("temporary folder");
    let Some(library) = library(dir.path(), name) else {
        return;
    };
    let calls: &[(&str, i64, usize)] = &[
        ("cuLaunchKernel", 0, 300),
        ("cuLaunchKernel_ptsz", 0, 40),
        ("cuGraphLaunch", 0, 5),
        ("cuMemAlloc_v2", 0, 20),
        ("cuMemAlloc_v2", 2, 7),
        ("cuMemAllocAsync", 2, 3),
        ("cuStreamSynchronize", 10 * MS, 4),
        ("cuEventSynchronize", 0, 9),
        ("cuMemcpyDtoH_v2", 5 * MS, 2),
        ("cuMemcpyHtoD_v2", 0, 11),
        ("cuInit", 0, 50),
    ];
    let (inside, outside) = (Cgroup::new(), Cgroup::new());
    let (watched, unwatched) = (caller(&library, calls), caller(&library, calls));
    inside.take(watched.pid);
    outside.take(unwatched.pid);
    let pid = watched.pid;
    let workload = inside.id();
    let watch = Watch::new(
        object,
        SensorOptions {
            cuda_library: Some(library),
            ..options(&[&inside], &[Kind::SampleCuda])
        },
    );
    let began = Instant::now();
    assert_eq!(watched.run(), 0);
    let took = began.elapsed();
    assert_eq!(unwatched.run(), 0);
    watch.settle();
    tell_costs(&watch.handle);
    let report = watch.handle.report();
    let seen = watch.stop();
    let attached = report
        .hooks
        .iter()
        .filter(|hook| hook.name.starts_with("CUDA"));
    assert!(attached.clone().count() == 4 && attached.clone().all(|hook| hook.attached.is_some()));
    seen.assert_none_lost();
    seen.assert_from(pid, workload);
    let (blocked_ns, counts) = sum(&seen, pid);
    assert_eq!(
        counts,
        [345, 13, 13, 10],
        "launches, syncs, copies, failed allocations"
    );
    let slept = Duration::from_millis(4 * 10 + 2 * (5 + 5)).as_nanos() as u64;
    assert!(blocked_ns >= slept, "{blocked_ns} of {slept}");
    assert!(
        blocked_ns <= took.as_nanos() as u64,
        "{blocked_ns} in {took:?}"
    );
}

#[test]
fn where_there_is_no_cuda_and_no_driver_the_kinds_are_told_absent_with_the_reason() {
    let name = "where_there_is_no_cuda_and_no_driver_the_kinds_are_told_absent_with_the_reason";
    let Some(object) = object(name) else { return };
    let inside = Cgroup::new();
    let nowhere = PathBuf::from("/nonexistent/libcuda.so.1");
    let options = SensorOptions {
        cuda_library: Some(nowhere),
        ..options(&[&inside], &[Kind::SampleCuda, Kind::GpuError, Kind::Exec])
    };
    let sensors = Sensors::load(object, options).unwrap_or_else(|error| panic!("{error}"));
    let report = sensors.report();
    let why = |hook: &str| -> String {
        let hook = report.hooks.iter().find(|it| it.name == hook);
        let hook = hook.expect("a hook of that name");
        assert_eq!(hook.attached, None, "{hook:?}");
        hook.failed.iter().map(|(_, why)| why.as_str()).collect()
    };
    assert!(why("CUDA launch").contains("/nonexistent/libcuda.so.1"));
    let mut absent = bits(&[Kind::SampleCuda]);
    if !Path::new("/sys/module/nvidia").exists() {
        // The program itself is in order: it is the tracepoint that is not there.
        let why = why("GPU driver error");
        assert!(why.contains("gpu_error cannot be attached"), "{why}");
        absent |= bits(&[Kind::GpuError]);
    }
    assert_eq!(report.absent(), absent);
    // Few hosts have them: it is no fault.
    assert_eq!(report.missing().count(), 0);
}
