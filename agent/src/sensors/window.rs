//! Sampling windows: differences of the kernel's free-running counters.
//!
//! Invariants:
//! - Counters are never reset, only subtracted; a difference is told in exactly one window.
//! - An ended process's entry goes after a grace period, so that its last counts are told first.

use super::pod::Plain;
use aya::maps::{MapData, PerCpuHashMap};
use bytemuck::Pod;
use palisade_abi::{Counters, CountersKey, GpuCounters, GpuCountersKey};
use std::{collections::HashMap, fs, hash::Hash, slice};

/// Windows between a process's end and the removal of its entries.
const GRACE_WINDOWS: u64 = 2;
/// Entries without a change for this many windows are looked up in /proc: their process's end may
/// have been lost, or have come before the programs were attached.
const IDLE_WINDOWS: u64 = 64;

/// A process, as both kinds of key name it: pid and start in nanoseconds.
pub(super) type Process = (u32, u64);

/// A key of a counter map.
pub(super) trait Key: Pod + Eq + Hash {
    /// Whose.
    fn process(&self) -> Process;
}

impl Key for CountersKey {
    fn process(&self) -> Process {
        (self.pid, self.start_ns)
    }
}

impl Key for GpuCountersKey {
    fn process(&self) -> Process {
        (self.pid, self.start_ns)
    }
}

#[derive(Debug)]
struct Seen<V> {
    sum: V,
    /// Window of the last change.
    changed: u64,
    /// Window of the last look into /proc.
    checked: u64,
}

/// What one counter map held at the last window's end.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    seen: HashMap<K, Seen<V>>,
}

impl<K: Key, V: Pod + PartialEq> Table<K, V> {
    fn new() -> Self {
        Self {
            seen: HashMap::new(),
        }
    }

    /// Processes and their parts (device classes, workloads) that are kept.
    pub(super) fn len(&self) -> usize {
        self.seen.len()
    }

    /// The difference to the last sum, if there is one. `V` consists of 64-bit counters.
    fn observe(&mut self, key: K, sum: V, window: u64) -> Option<V> {
        let before = self.seen.entry(key).or_insert_with(|| Seen {
            sum: V::zeroed(),
            changed: window,
            checked: window,
        });
        if before.sum == sum {
            return None;
        }
        let mut difference = sum;
        for (word, old) in words_mut(&mut difference)
            .iter_mut()
            .zip(words(&before.sum))
        {
            *word = word.wrapping_sub(*old);
        }
        (before.sum, before.changed) = (sum, window);
        Some(difference)
    }

    /// Reads the map; hands over each entry that changed with its difference.
    pub(super) fn collect(
        &mut self,
        map: &PerCpuHashMap<MapData, Plain<K>, Plain<V>>,
        window: u64,
        mut changed: impl FnMut(&K, &V),
    ) {
        for (key, cpus) in map.iter().filter_map(Result::ok) {
            let mut sum = V::zeroed();
            for cpu in cpus.iter() {
                for (total, part) in words_mut(&mut sum).iter_mut().zip(words(&cpu.0)) {
                    *total = total.wrapping_add(*part);
                }
            }
            if let Some(difference) = self.observe(key.0, sum, window) {
                changed(&key.0, &difference);
            }
        }
    }

    /// Takes out the keys of which `gone` says that their process is gone.
    fn forget(&mut self, mut gone: impl FnMut(&K, &mut Seen<V>) -> bool) -> Vec<K> {
        let keys: Vec<K> = self
            .seen
            .iter_mut()
            .filter_map(|(key, seen)| gone(key, seen).then_some(*key))
            .collect();
        for key in &keys {
            self.seen.remove(key);
        }
        keys
    }

    fn idle(&mut self, window: u64, alive: &impl Fn(Process) -> bool) -> Vec<K> {
        self.forget(|key, seen| {
            let since = seen.changed.max(seen.checked);
            if window < since + IDLE_WINDOWS {
                return false;
            }
            seen.checked = window;
            !alive(key.process())
        })
    }
}

/// All windows' state.
#[derive(Debug)]
pub(super) struct Windows {
    /// Windows ended so far.
    pub index: u64,
    pub processes: Table<CountersKey, Counters>,
    pub gpu: Table<GpuCountersKey, GpuCounters>,
    ending: HashMap<Process, u64>,
}

impl Windows {
    pub(super) fn new() -> Self {
        Self {
            index: 0,
            processes: Table::new(),
            gpu: Table::new(),
            ending: HashMap::new(),
        }
    }

    /// A process ended: its entries go in the window after the next.
    pub(super) fn ended(&mut self, process: Process) {
        self.ending.insert(process, self.index + GRACE_WINDOWS);
    }

    /// Counts up the window; hands back the keys whose entries are to be removed from the maps.
    pub(super) fn finish(&mut self) -> (Vec<CountersKey>, Vec<GpuCountersKey>) {
        let window = self.index;
        self.index += 1;
        let (mut keys, mut gpu_keys) = (Vec::new(), Vec::new());
        let due = |ending: &HashMap<Process, u64>, process| {
            ending.get(&process).is_some_and(|end| *end <= window)
        };
        if self.ending.values().any(|end| *end <= window) {
            keys = self
                .processes
                .forget(|key, _| due(&self.ending, key.process()));
            gpu_keys = self.gpu.forget(|key, _| due(&self.ending, key.process()));
            self.ending.retain(|_, end| *end > window);
        }
        keys.extend(self.processes.idle(window, &is_alive));
        gpu_keys.extend(self.gpu.idle(window, &is_alive));
        (keys, gpu_keys)
    }
}

fn words<V: Pod>(value: &V) -> &[u64] {
    bytemuck::cast_slice(slice::from_ref(value))
}

fn words_mut<V: Pod>(value: &mut V) -> &mut [u64] {
    bytemuck::cast_slice_mut(slice::from_mut(value))
}

/// Whether /proc shows a process with that pid and start. In doubt, yes.
fn is_alive((pid, start_ns): Process) -> bool {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) => return error.kind() != std::io::ErrorKind::NotFound,
    };
    // Field 22, counted from behind the name, which may hold anything.
    let ticks = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse::<u64>().ok());
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    match (ticks, per_second) {
        (Some(ticks), Ok(Some(hz))) if hz > 0 => start_ns / (1_000_000_000 / hz as u64) == ticks,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pid: u32) -> CountersKey {
        CountersKey {
            pid,
            start_ns: 5,
            workload: 9,
            pad: 0,
        }
    }

    fn maps(maps: u64) -> Counters {
        Counters {
            maps,
            ..Counters::default()
        }
    }

    #[test]
    fn a_difference_is_told_once() {
        let mut windows = Windows::new();
        let table = &mut windows.processes;
        assert_eq!(table.observe(key(1), maps(3), 0), Some(maps(3)));
        assert_eq!(table.observe(key(1), maps(3), 1), None);
        assert_eq!(table.observe(key(1), maps(10), 2), Some(maps(7)));
    }

    #[test]
    fn an_ended_process_keeps_its_entry_for_the_grace_period() {
        let mut windows = Windows::new();
        windows.processes.observe(key(1), maps(1), 0);
        windows.processes.observe(key(2), maps(1), 0);
        windows.ended((1, 5));
        windows.ended((2, 6)); // another process that had the pid 2
        assert_eq!(windows.finish().0, []);
        assert_eq!(windows.finish().0, []);
        assert_eq!(windows.finish().0, [key(1)]);
        assert_eq!(windows.processes.len(), 1);
        // Made again by a late event: it counts from nothing.
        assert_eq!(windows.processes.observe(key(1), maps(2), 3), Some(maps(2)));
    }

    #[test]
    fn an_idle_entry_goes_only_if_its_process_is_gone() {
        let mut table: Table<CountersKey, Counters> = Table::new();
        table.observe(key(1), maps(1), 0);
        table.observe(key(2), maps(1), 0);
        let alive = |process: Process| process.0 == 1;
        assert_eq!(table.idle(IDLE_WINDOWS - 1, &alive), []);
        assert_eq!(table.idle(IDLE_WINDOWS, &alive), [key(2)]);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn liveness_compares_the_start_too() {
        let own = std::process::id();
        assert!(!is_alive((own, 1)));
        assert!(!is_alive((u32::MAX, 1)));
    }
}
