//! Sampling windows: differences of the kernel's free-running counters.
//!
//! Invariants:
//! - Counters are never reset, only subtracted; a difference is told in exactly one window.
//! - An ended process's entry goes after a grace period, so that its last counts are told first.
//! - A map in which nothing was made is not walked if it is empty or nearly so; see [`super::walks`].

use bytemuck::Pod;
use palisade_abi::{Added, Body, Header, Kind, Record};
use rustc_hash::FxBuildHasher;
use std::{collections::HashMap, fmt::Debug, fs, hash::Hash, slice};

/// Windows between a process's end and the removal of its entries.
const GRACE_WINDOWS: u64 = 2;
/// Entries without a change for this many windows are looked up in /proc: their process's end may
/// have been lost, or have come before the programs were attached.
const IDLE_WINDOWS: u64 = 64;
/// While they stay without one, each look comes after twice the time of the one before, up to this.
const IDLE_WINDOWS_MAX: u64 = 64 << 8;

/// A process, as both kinds of key name it: pid and start in nanoseconds.
pub(super) type Process = (u32, u64);

/// A key of a counter map.
pub(super) trait Key: Pod + Eq + Hash + Send {
    /// Whose.
    fn process(&self) -> Process;
    /// In which cgroup.
    fn workload(&self) -> u64;
}

/// Where a window's samples go.
pub(super) struct Told<'a> {
    /// End of the window, `CLOCK_BOOTTIME` nanoseconds.
    pub now_ns: u64,
    /// Bits of the kinds that are wanted.
    pub wanted: u64,
    /// Entries that the kernel made by now; `None`: not known.
    pub added: Option<Added>,
    pub records: &'a mut Vec<Record>,
}

impl Told<'_> {
    /// Adds a sample, unless nobody wants it or nothing happened.
    pub(super) fn tell<B: Body + PartialEq + Default>(
        &mut self,
        key: &impl Key,
        kind: Kind,
        body: B,
    ) {
        self.tell_flagged(key, kind, 0, body);
    }

    /// The same with flags in the header.
    pub(super) fn tell_flagged<B: Body + PartialEq + Default>(
        &mut self,
        key: &impl Key,
        kind: Kind,
        flags: u16,
        body: B,
    ) {
        if self.wanted & kind.bit() == 0 || body == B::default() {
            return;
        }
        let (pid, start_ns) = key.process();
        let header = Header {
            time_ns: self.now_ns,
            workload: key.workload(),
            start_ns,
            pid,
            tid: pid,
            kind: kind as u16,
            flags,
            cpu: 0,
        };
        self.records.push(Record {
            header,
            body: bytemuck::cast(body),
        });
    }
}

/// One counter map with what it held at the last window's end.
pub(super) trait Collect: Send + Debug {
    /// Bits of the kinds that it serves.
    fn kinds(&self) -> u64;
    /// Tells what changed since the last window.
    fn collect(&mut self, window: u64, told: &mut Told<'_>);
    /// Drops the entries of processes of which `due` says that they are over, and of those that
    /// were idle long and are gone.
    fn forget(&mut self, window: u64, due: &dyn Fn(Process) -> bool);
    /// Entries that are kept.
    fn len(&self) -> usize;
    /// How often its map could not be read to its end.
    fn unread(&self) -> u64 {
        0
    }
}

#[derive(Debug)]
struct Seen<V> {
    sum: V,
    /// Window of the last change.
    changed: u64,
    /// Window of the next look into /proc, unless there is a change before.
    check: u64,
}

/// What one counter map held at the last window's end.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    /// Each entry is looked up ten times a second. A hash that can be made to collide will do: a process cannot choose
    /// its pid, start and cgroup at will, has a quota of the keys that it can choose (files, commands), and the kernel's
    /// map bounds all of them together.
    seen: HashMap<K, Seen<V>, FxBuildHasher>,
}

impl<K: Key, V: Pod + PartialEq> Table<K, V> {
    pub(super) fn new() -> Self {
        Self {
            seen: HashMap::with_hasher(FxBuildHasher),
        }
    }

    /// The difference to the last sum, if there is one. `V` consists of 64-bit counters.
    pub(super) fn observe(&mut self, key: K, sum: V, window: u64) -> Option<V> {
        let before = self.seen.entry(key).or_insert_with(|| Seen {
            sum: V::zeroed(),
            changed: window,
            check: window + IDLE_WINDOWS,
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
        (before.sum, before.changed, before.check) = (sum, window, window + IDLE_WINDOWS);
        Some(difference)
    }

    pub(super) fn ended(&mut self, due: &dyn Fn(Process) -> bool) -> Vec<K> {
        self.forget(|key, _| due(key.process()))
    }

    /// Entries that are kept.
    pub(super) fn len(&self) -> usize {
        self.seen.len()
    }

    /// Their keys.
    pub(super) fn keys(&self) -> Vec<K> {
        self.seen.keys().copied().collect()
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

    pub(super) fn idle(&mut self, window: u64, alive: &impl Fn(Process) -> bool) -> Vec<K> {
        self.forget(|key, seen| {
            if window < seen.check {
                return false;
            }
            seen.check = window + (window - seen.changed).clamp(IDLE_WINDOWS, IDLE_WINDOWS_MAX);
            !alive(key.process())
        })
    }
}

/// All windows' state.
#[derive(Debug)]
pub(super) struct Windows {
    /// Windows ended so far.
    index: u64,
    families: Vec<Box<dyn Collect>>,
    ending: HashMap<Process, u64>,
}

impl Windows {
    pub(super) fn new(families: Vec<Box<dyn Collect>>) -> Self {
        Self {
            index: 0,
            families,
            ending: HashMap::new(),
        }
    }

    /// A process ended: its entries go in the window after the next.
    pub(super) fn ended(&mut self, process: Process) {
        self.ending.insert(process, self.index + GRACE_WINDOWS);
    }

    /// Tells what changed since the last window.
    pub(super) fn collect(&mut self, told: &mut Told<'_>) {
        for family in &mut self.families {
            if family.kinds() & told.wanted != 0 {
                family.collect(self.index, told);
            }
        }
    }

    /// Counts up the window and drops what is over.
    pub(super) fn finish(&mut self) {
        let window = self.index;
        self.index += 1;
        let ending = &self.ending;
        let due = |process| ending.get(&process).is_some_and(|end| *end <= window);
        for family in &mut self.families {
            family.forget(window, &due);
        }
        self.ending.retain(|_, end| *end > window);
    }

    /// How often a map could not be read to its end, of all families.
    pub(super) fn unread(&self) -> u64 {
        self.families.iter().map(|family| family.unread()).sum()
    }

    /// Entries that are kept, of all families.
    pub(super) fn tracked(&self) -> usize {
        self.families.iter().map(|family| family.len()).sum()
    }
}

fn words<V: Pod>(value: &V) -> &[u64] {
    bytemuck::cast_slice(slice::from_ref(value))
}

fn words_mut<V: Pod>(value: &mut V) -> &mut [u64] {
    bytemuck::cast_slice_mut(slice::from_mut(value))
}

/// Whether /proc shows a process with that pid and start. In doubt, yes.
pub(super) fn is_alive((pid, start_ns): Process) -> bool {
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
pub(super) mod tests;
