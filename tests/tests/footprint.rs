//! The memory of the agent's eBPF maps, as computed for other hosts, against what this kernel reports.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use nix::libc;
use palisade_tests::bench::memory::{Held, Map, possible_cpus};
use palisade_tests::bench::tracers;
use palisade_tests::{Agent, TestCgroup, Ward, eventually, live_or_skip, policy};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

/// Fixed parts of each map that the formulas leave out, and rounding to pages.
const LEFT_OUT: u64 = 4 * 4096;
/// The same for a map that grows, which is a hash table: 832 bytes on Linux 6.18, and room for other kernels.
const TOLERANCE: u64 = 2 * 4096;
/// Sleeping processes that are watched, each with an entry in the maps that have one a thread: so many that the entries
/// of such a map take more than what is tolerated.
const SLEEPERS: usize = 200;
/// Maps at least of which that is so (six with two CPUs): else nothing would be tested but empty tables.
const TELLING: usize = 3;

/// Whether this kernel reports what a map takes; says so if not.
fn reports(test: &str) -> bool {
    let release = palisade::sensors::kernel_release();
    let mut numbers = release
        .split('.')
        .map_while(|word| word.parse::<u32>().ok());
    let since = (numbers.next(), numbers.next()) >= (Some(6), Some(4));
    if !since {
        eprintln!("SKIPPED {test}: Linux {release} does not report what a map takes (6.4 does)");
    }
    since
}

#[test]
fn computed_map_memory_is_what_the_kernel_reports() {
    live_or_skip!("computed_map_memory_is_what_the_kernel_reports");
    if !reports("computed_map_memory_is_what_the_kernel_reports") {
        return;
    }
    let agent = Agent::start(&tracers::configuration(true)).unwrap();
    let held = Held::by(agent.ward.pid());
    assert!(!held.maps.is_empty());
    let cpus = possible_cpus();
    for map in held.maps.values() {
        // On a whole host entries come and go while they are counted: between none and all.
        let (least, most) = (map.bytes(cpus, 0), map.bytes(cpus, u64::MAX));
        assert!(
            (least.saturating_sub(LEFT_OUT)..=most + LEFT_OUT).contains(&map.reported),
            "{map:?}: {least} to {most}"
        );
    }
}

#[test]
fn computed_memory_of_a_map_that_grows_is_that_of_the_entries_in_it() {
    live_or_skip!("computed_memory_of_a_map_that_grows_is_that_of_the_entries_in_it");
    if !reports("computed_memory_of_a_map_that_grows_is_that_of_the_entries_in_it") {
        return;
    }
    let cgroup = TestCgroup::new("sleepers").unwrap();
    let agent = Agent::start(&format!(
        "[watch]\ncgroups = [{:?}]\n[policies.everything]\npath = {:?}\n",
        cgroup.path(),
        policy("guests/everything"),
    ))
    .unwrap();
    let _sleepers: Vec<Ward> = (0..SLEEPERS)
        .map(|_| {
            let mut command = Command::new("sleep");
            cgroup.enter(command.arg("600").stdin(Stdio::null()));
            Ward::start(&mut command).unwrap()
        })
        .collect();
    let cpus = possible_cpus();
    let held = Held::by(agent.ward.pid()).maps;
    let growing = held.iter().filter(|(_, map)| map.on_demand());
    let (mut most, mut telling) = (0, 0);
    for (id, map) in growing {
        // Nobody watched does anything any more: a count soon holds while the memory is read.
        let settled = || {
            let before = entries(*id, map);
            let reported = Held::by(agent.ward.pid()).maps.get(id)?.reported;
            (entries(*id, map) == before).then_some((before, reported))
        };
        let (used, reported) = eventually("a count that holds", settled).unwrap();
        let computed = map.bytes(cpus, used);
        assert!(
            reported.abs_diff(computed) <= TOLERANCE,
            "{map:?}: {reported} reported, {computed} with {used} entries"
        );
        let in_entries = computed - map.bytes(cpus, 0);
        most = most.max(used);
        telling += usize::from(in_entries > TOLERANCE);
    }
    eprintln!(
        "MEASURED {most} entries in the map that has most; {telling} maps with more in entries than is tolerated"
    );
    assert!(telling >= TELLING, "{telling} maps");
    assert!(most >= SLEEPERS as u64, "{most} entries at most");
}

/// The part of `union bpf_attr` that its commands for maps have, up to `next_key`.
#[repr(C)]
struct Attributes {
    map: u32,
    padding: u32,
    key: u64,
    next_key: u64,
}

/// From include/uapi/linux/bpf.h, since Linux 3.18 and 4.13.
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const MAP_GET_FD_BY_ID: libc::c_int = 14;

/// `bpf(2)`.
fn bpf(command: libc::c_int, attributes: &Attributes) -> std::io::Result<i64> {
    // SAFETY: there is no wrapper for it here; the attributes live until it returns and the kernel reads no more of them
    // than it is told, and what they point to is as large as the map's keys.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<Attributes>()) };
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(result)
}

/// How many entries are in it.
fn entries(id: u64, map: &Map) -> u64 {
    let by_id = Attributes {
        map: id as u32,
        padding: 0,
        key: 0,
        next_key: 0,
    };
    let fd = bpf(MAP_GET_FD_BY_ID, &by_id).unwrap();
    // SAFETY: the kernel has just made it, and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut key = vec![0_u8; map.key as usize];
    let mut next = key.clone();
    let mut count = 0;
    loop {
        let step = Attributes {
            map: fd.as_raw_fd() as u32,
            padding: 0,
            // Without a key: the first one.
            key: if count == 0 { 0 } else { key.as_ptr() as u64 },
            next_key: next.as_mut_ptr() as u64,
        };
        match bpf(MAP_GET_NEXT_KEY, &step) {
            Ok(_) => count += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return count,
            Err(error) => panic!("map {id}: {error}"),
        }
        std::mem::swap(&mut key, &mut next);
    }
}
