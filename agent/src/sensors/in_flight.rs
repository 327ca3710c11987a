//! Who is inside a driver call right now.
//!
//! Invariants:
//! - An entry whose entry time is 0 is of a thread that is in no call.
//! - The kernel may skip the program at a call's return. An entry that is not young is therefore compared
//!   with what /proc shows of its thread; in doubt the thread is in its call.

use super::{SensorError, attach::chain, map_batch::Batch, pod::Plain};
use crate::boot_clock;
use aya::maps::{HashMap, IterableMap as _, Map, MapData};
use nix::libc;
use palisade_abi::{InFlight, MAX_RESIDENT};
use palisade_core::WorkloadId;
use std::{fs, io::ErrorKind, os::fd::AsFd, path::Path, sync::Arc};

/// Entries looked at per question where the kernel breaks off handing over many at once. Twice what the
/// map holds: entries that come and go during the walk make the kernel start over, which this
/// bounds.
const MAX_LOOKS: usize = 4 * MAX_RESIDENT as usize;

/// Calls that are younger are not compared with /proc.
const YOUNG_NS: u64 = 5_000_000;
/// A thread that runs is taken to be in a call for this long: /proc does not say where it runs. The kernel
/// complains of whoever keeps a CPU for 20 seconds.
const RUNNING_NS: u64 = 30_000_000_000;

/// `PROC_PID_INIT_INO`: the inode of the initial PID namespace, the same on every kernel.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Driver calls by thread, those under way and the last ones.
pub(super) type InFlightMap = HashMap<MapData, u64, Plain<InFlight>>;

/// A view of the driver calls under way on the whole host. Cheap to clone.
#[derive(Clone, Debug)]
pub struct InFlightView {
    map: Arc<InFlightMap>,
}

/// A second handle on a map. Its descriptor is duplicated: opening a map by its number takes
/// `CAP_SYS_ADMIN`, more than sensing needs.
pub(super) fn another(map: &MapData, name: &'static str) -> Result<MapData, SensorError> {
    let broken = |error: &dyn std::error::Error| SensorError::Map {
        map: name,
        detail: chain(error),
    };
    let fd = map.fd().as_fd().try_clone_to_owned();
    MapData::from_fd(fd.map_err(|e| broken(&e))?).map_err(|e| broken(&e))
}

impl InFlightView {
    /// A second handle on the sensor thread's map.
    pub(super) fn new(map: &InFlightMap) -> Result<Self, SensorError> {
        let data = another(map.map(), "IN_FLIGHT")?;
        let map = HashMap::try_from(Map::HashMap(data)).map_err(|error| SensorError::Map {
            map: "IN_FLIGHT",
            detail: chain(&error),
        })?;
        Ok(Self { map: Arc::new(map) })
    }

    /// Whether a thread of that workload (the cgroup itself, not those below) is inside a call on
    /// a watched device. A snapshot: it may enter or leave at any time. `false` while the driver
    /// hooks are not attached; `true` if the kernel does not tell all calls.
    pub fn in_call(&self, workload: WorkloadId) -> bool {
        let Some(entries) = self.entries() else {
            return true;
        };
        let now_ns = boot_clock::now_ns();
        entries
            .iter()
            .filter(|(_, call)| call.entered_ns != 0 && call.workload == workload.0)
            .any(|(key, call)| {
                is_under_way(call, now_ns, || self.entry(*key)) || !sees_kernel_pids()
            })
    }

    /// All entries in no order, or `None` if some may be missing.
    pub(super) fn entries(&self) -> Option<Vec<(u64, InFlight)>> {
        let batched = |each: &mut dyn FnMut(u64, InFlight)| {
            let fd = self.map.map().fd();
            let read = Batch::new(1).read(fd, |key: &u64, call: &[InFlight]| each(*key, call[0]));
            read.is_ok()
        };
        let one_by_one = self.map.iter();
        whole(
            batched,
            one_by_one.map(|entry| entry.map(|(k, v)| (k, v.0))),
        )
    }

    /// The entry of one thread as it is now.
    pub(super) fn entry(&self, key: u64) -> Option<InFlight> {
        self.map.get(&key, 0).ok().map(|call| call.0)
    }

    /// Removes one; whether it was there.
    pub(super) fn remove(&self, key: u64) -> bool {
        let Ok(data) = another(self.map.map(), "IN_FLIGHT") else {
            return false;
        };
        HashMap::<_, u64, Plain<InFlight>>::try_from(Map::HashMap(data))
            .is_ok_and(|mut map| map.remove(&key).is_ok())
    }
}

/// Whether /proc has the numbers that the kernel's programs tell: those of the initial PID namespace.
pub fn sees_kernel_pids() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name == Path::new(INITIAL_PID_NAMESPACE))
}

/// The entries that the kernel hands over many at once, or, if it breaks off, one by one; `None` if that fails, too,
/// or does not come to an end.
fn whole<E>(
    batched: impl FnOnce(&mut dyn FnMut(u64, InFlight)) -> bool,
    one_by_one: impl Iterator<Item = Result<(u64, InFlight), E>>,
) -> Option<Vec<(u64, InFlight)>> {
    let mut entries = Vec::new();
    if batched(&mut |key, call| entries.push((key, call))) {
        return Some(entries);
    }
    entries.clear();
    for entry in one_by_one {
        if entries.len() == MAX_LOOKS {
            return None;
        }
        entries.push(entry.ok()?);
    }
    Some(entries)
}

/// Whether a call is under way, of which an entry says so; `again`: what the entry says now.
fn is_under_way(call: &InFlight, now_ns: u64, again: impl FnOnce() -> Option<InFlight>) -> bool {
    let age_ns = now_ns.saturating_sub(call.entered_ns);
    if age_ns < YOUNG_NS || shows_call(call, age_ns) {
        return true;
    }
    // While it was looked at, it may have begun another call. An entry that is gone has ended.
    let mark = |call: &InFlight| (call.entered_ns, call.tid, call.fd);
    again().is_some_and(|now| now.entered_ns != 0 && mark(&now) != mark(call))
}

/// Whether /proc shows the thread in that call. In doubt, yes.
fn shows_call(call: &InFlight, age_ns: u64) -> bool {
    let thread = format!("/proc/{}/task/{}", call.pid, call.tid);
    match fs::read_to_string(format!("{thread}/syscall")) {
        Ok(line) => is_call(&line, call.fd, age_ns),
        // A kernel may lack the file.
        Err(error) if error.kind() == ErrorKind::NotFound => Path::new(&thread).exists(),
        Err(error) => error.raw_os_error() != Some(libc::ESRCH),
    }
}

/// Whether a line of /proc/PID/task/TID/syscall may be of an `ioctl` on that descriptor: the number of the
/// system call and its arguments, `-1` outside of one, or `running`.
fn is_call(line: &str, fd: u32, age_ns: u64) -> bool {
    let mut words = line.split_whitespace();
    let Some(call) = words.next() else {
        return true;
    };
    if call == "running" {
        return age_ns < RUNNING_NS;
    }
    let Ok(call) = call.parse::<i64>() else {
        return true;
    };
    if call != libc::SYS_ioctl {
        return false;
    }
    let argument = words.next().and_then(|word| word.strip_prefix("0x"));
    match argument.map(|digits| u64::from_str_radix(digits, 16)) {
        // The kernel goes by the lower half.
        Some(Ok(argument)) => argument as u32 == fd,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD_NS: u64 = 60_000_000_000;

    fn call(entered_ns: u64) -> InFlight {
        InFlight {
            entered_ns,
            pid: std::process::id(),
            tid: nix::unistd::gettid().as_raw() as u32,
            fd: 3,
            ..InFlight::default()
        }
    }

    #[test]
    fn a_planted_entry_of_a_thread_in_no_call_does_not_last() {
        // This thread reads its own file, so it is in another system call, or running.
        let planted = call(1);
        let now = OLD_NS;
        assert!(!is_under_way(&planted, now, || Some(planted)));
        assert!(!is_under_way(&planted, now, || None));
        assert!(!is_under_way(&planted, now, || Some(call(0))));
        let gone = InFlight {
            tid: u32::MAX,
            ..planted
        };
        assert!(!is_under_way(&gone, 2 * YOUNG_NS, || Some(gone)));
    }

    #[test]
    fn a_young_call_and_one_that_began_meanwhile_count() {
        let young = call(OLD_NS);
        assert!(is_under_way(&young, OLD_NS + YOUNG_NS - 1, || Some(young)));
        assert!(is_under_way(&call(1), OLD_NS, || Some(call(2))));
    }

    #[test]
    fn what_the_kernel_shows_of_a_thread_is_read() {
        let driver = "16 0x3 0x5413 0x7ffe 0x0 0x0 0x0 0x7ffe 0x7f00\n";
        assert!(is_call(driver, 3, OLD_NS));
        assert!(is_call("16 0xffffffff00000003 0x0", 3, OLD_NS));
        assert!(!is_call(driver, 4, OLD_NS));
        assert!(!is_call("0 0x3 0x5413 0x7ffe", 3, OLD_NS));
        assert!(!is_call("-1 0x7ffe 0x7f00", 3, OLD_NS));
        assert!(is_call("running", 3, RUNNING_NS - 1));
        assert!(!is_call("running", 3, RUNNING_NS));
        for unknown in ["", "what", "16", "16 what"] {
            assert!(is_call(unknown, 3, OLD_NS), "{unknown}");
        }
    }

    #[test]
    fn an_answer_that_breaks_off_is_none() {
        let entry = |key| Ok::<_, ()>((key, call(1)));
        let breaks_off = |each: &mut dyn FnMut(u64, InFlight)| {
            each(1, call(1));
            false
        };
        let keys = |found: Option<Vec<(u64, InFlight)>>| -> Option<Vec<u64>> {
            found.map(|entries| entries.into_iter().map(|(key, _)| key).collect())
        };
        let all = [entry(1), entry(2)];
        assert_eq!(keys(whole(breaks_off, all.into_iter())), Some(vec![1, 2]));
        assert_eq!(keys(whole(|_| true, all.into_iter())), Some(vec![]));
        let failing = [entry(1), Err(())];
        assert_eq!(keys(whole(breaks_off, failing.into_iter())), None);
        let endless = std::iter::repeat(entry(1));
        assert_eq!(keys(whole(breaks_off, endless)), None);
    }
}
