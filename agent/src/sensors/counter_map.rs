//! A map of free-running counters, with what it held at the last window's end.
//!
//! A map that is counted in often has one value a CPU. One whose entries are many or large and counted in seldom has one
//! value that all CPUs share.

use super::{
    SensorError,
    load::{possible_cpus, take},
    map_batch::{self, Batch, Unread},
    pod::Plain,
    walks::Walks,
    window::{Key, Process, Table, is_alive},
};
use aya::{
    Ebpf,
    maps::{HashMap, IterableMap as _, Map, MapData, MapError, PerCpuHashMap},
};
use bytemuck::Pod;
use palisade_abi::{Added, CounterFamily};
use std::fmt::Debug;

/// What is done with the kernel's map.
trait Entries<K, V> {
    /// One entry's counts. One that is gone has none.
    fn get(&self, key: K) -> Option<V>;
    /// Takes one out, if it is there.
    fn remove(&mut self, key: K);
    /// Hands over every entry; whether it came to the end.
    fn walk(&mut self, each: impl FnMut(&K, V)) -> bool;
}

/// The kernel's map, of either kind, and room to read it.
struct KernelMap<K: Pod, V: Pod> {
    values: Values<K, V>,
    batch: Batch<K, V>,
    unread: Unread,
}

enum Values<K: Pod, V: Pod> {
    PerCpu(PerCpuHashMap<MapData, Plain<K>, Plain<V>>),
    Shared(HashMap<MapData, Plain<K>, Plain<V>>),
}

impl<K: Key, V: CounterFamily> Values<K, V> {
    fn data(&self) -> &MapData {
        match self {
            Values::PerCpu(map) => map.map(),
            Values::Shared(map) => map.map(),
        }
    }
}

impl<K: Key, V: CounterFamily> TryFrom<Map> for Values<K, V> {
    type Error = MapError;

    fn try_from(map: Map) -> Result<Self, MapError> {
        match map {
            Map::HashMap(_) => HashMap::try_from(map).map(Self::Shared),
            // It refuses all others.
            _ => PerCpuHashMap::try_from(map).map(Self::PerCpu),
        }
    }
}

impl<K: Key, V: CounterFamily> Entries<K, V> for KernelMap<K, V> {
    fn get(&self, key: K) -> Option<V> {
        match &self.values {
            Values::PerCpu(map) => {
                let cpus = map.get(&Plain(key), 0).ok()?;
                let cpus: Vec<V> = cpus.iter().map(|cpu| cpu.0).collect();
                Some(map_batch::sum(&cpus))
            }
            Values::Shared(map) => Some(map.get(&Plain(key), 0).ok()?.0),
        }
    }

    fn remove(&mut self, key: K) {
        // Already gone is just as good.
        let _ = match &mut self.values {
            Values::PerCpu(map) => map.remove(&Plain(key)),
            Values::Shared(map) => map.remove(&Plain(key)),
        };
    }

    fn walk(&mut self, mut each: impl FnMut(&K, V)) -> bool {
        let fd = self.values.data().fd();
        let read = self
            .batch
            .read(fd, |key, cpus| each(key, map_batch::sum(cpus)));
        self.unread.note(read)
    }
}

/// The map and its table.
pub(super) struct CounterMap<K: Pod, V: Pod> {
    map: KernelMap<K, V>,
    known: Known<K, V>,
}

impl<K: Pod + Debug, V: Pod + Debug> Debug for CounterMap<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CounterMap")
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

impl<K: Key, V: CounterFamily + PartialEq> CounterMap<K, V> {
    /// Takes the map out of the object.
    pub(super) fn new(ebpf: &mut Ebpf, map: &'static str) -> Result<Self, SensorError> {
        let values: Values<K, V> = take(ebpf, map)?;
        let cpus = match &values {
            Values::PerCpu(_) => possible_cpus()?,
            Values::Shared(_) => 1,
        };
        Ok(Self {
            known: Known {
                table: Table::new(),
                walks: Walks::of(values.data()),
            },
            map: KernelMap {
                values,
                batch: Batch::new(cpus),
                unread: Unread::of(map),
            },
        })
    }

    /// Hands over the difference of each entry that has changed since the last window.
    pub(super) fn read(&mut self, window: u64, added: Option<&Added>, changed: impl FnMut(&K, &V)) {
        let made = Walks::made::<V>(added);
        self.known.read(&mut self.map, window, made, changed);
    }

    /// Learns which entries there are, where their values are nobody's concern. An entry counts as idle since the last walk
    /// that found it changed; if its process's end was lost it stays the longer.
    pub(super) fn learn(&mut self, window: u64, added: Option<&Added>) {
        let made = Walks::made::<V>(added);
        self.known.learn(&mut self.map, window, made);
    }

    /// As [`super::window::Collect::forget`].
    pub(super) fn forget(&mut self, window: u64, due: &dyn Fn(Process) -> bool) {
        let mut over = self.known.table.ended(due);
        over.extend(self.known.table.idle(window, &is_alive));
        for key in over {
            self.map.remove(key);
        }
    }

    /// Entries that are kept.
    pub(super) fn len(&self) -> usize {
        self.known.table.len()
    }

    /// How often the map could not be read to its end.
    pub(super) fn unread(&self) -> u64 {
        self.map.unread.count
    }
}

/// What is known of the map.
#[derive(Debug)]
struct Known<K, V> {
    table: Table<K, V>,
    walks: Walks,
}

impl<K: Key, V: CounterFamily + PartialEq> Known<K, V> {
    /// `made`: see [`Walks::made`].
    fn read(
        &mut self,
        map: &mut impl Entries<K, V>,
        window: u64,
        made: Option<u64>,
        mut changed: impl FnMut(&K, &V),
    ) {
        let asked = self.walks.may_look_up(made, self.table.len());
        let asked = asked.then(|| self.table.keys());
        let table = &mut self.table;
        let mut observe = |key: &K, counts: V| {
            if let Some(difference) = table.observe(*key, counts, window) {
                changed(key, &difference);
            }
        };
        if let Some(keys) = asked {
            for key in keys {
                if let Some(counts) = map.get(key) {
                    observe(&key, counts);
                }
            }
            return;
        }
        let whole = map.walk(observe);
        self.walks.walked(made, whole);
    }

    fn learn(&mut self, map: &mut impl Entries<K, V>, window: u64, made: Option<u64>) {
        if !self.walks.none_is_new(made) {
            self.read(map, window, made, |_, _| {});
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::window::tests::key;
    use super::*;
    use palisade_abi::{CountersKey, FaultCounters};
    use std::collections::BTreeMap;

    /// Room for so many entries: two of them may be asked for.
    const BUCKETS: usize = 2048;

    /// A map in which walks and look-ups are counted; walks break off when they are told to.
    #[derive(Default)]
    struct Fake {
        entries: BTreeMap<u32, u64>,
        breaks_off: bool,
        walks: u32,
        asked: std::cell::Cell<u32>,
    }

    fn faults(user: u64) -> FaultCounters {
        FaultCounters {
            user,
            ..FaultCounters::default()
        }
    }

    impl Entries<CountersKey, FaultCounters> for Fake {
        fn get(&self, key: CountersKey) -> Option<FaultCounters> {
            self.asked.set(self.asked.get() + 1);
            self.entries.get(&key.pid).map(|user| faults(*user))
        }

        fn remove(&mut self, key: CountersKey) {
            self.entries.remove(&key.pid);
        }

        fn walk(&mut self, mut each: impl FnMut(&CountersKey, FaultCounters)) -> bool {
            self.walks += 1;
            let part = if self.breaks_off { 1 } else { usize::MAX };
            for (pid, user) in self.entries.iter().take(part) {
                each(&key(*pid), faults(*user));
            }
            !self.breaks_off
        }
    }

    fn known() -> Known<CountersKey, FaultCounters> {
        Known {
            table: Table::new(),
            walks: Walks::new(BUCKETS),
        }
    }

    /// Differences of one window, by pid.
    fn read(
        known: &mut Known<CountersKey, FaultCounters>,
        map: &mut Fake,
        made: Option<u64>,
    ) -> Vec<(u32, u64)> {
        let mut told = Vec::new();
        known.read(map, 0, made, |key, counts| {
            told.push((key.pid, counts.user));
        });
        told.sort_unstable();
        told
    }

    #[test]
    fn a_walk_and_asking_tell_the_same_differences() {
        let (mut known, mut map) = (known(), Fake::default());
        map.entries.extend([(1, 3), (2, 4)]);
        assert_eq!(read(&mut known, &mut map, Some(2)), [(1, 3), (2, 4)]);
        map.entries.insert(2, 9);
        assert_eq!(read(&mut known, &mut map, Some(2)), [(2, 5)]);
        assert_eq!((map.walks, map.asked.get()), (1, 2), "asked for");
        map.entries.extend([(1, 4), (3, 1)]);
        assert_eq!(read(&mut known, &mut map, Some(3)), [(1, 1), (3, 1)]);
        assert_eq!(map.walks, 2, "one was made");
        assert_eq!(read(&mut known, &mut map, None), []);
        assert_eq!(map.walks, 3, "nobody knows what was made");
    }

    #[test]
    fn a_walk_that_breaks_off_is_made_up_for() {
        let (mut known, mut map) = (known(), Fake::default());
        map.entries.extend([(1, 3), (2, 4)]);
        map.breaks_off = true;
        assert_eq!(read(&mut known, &mut map, Some(2)), [(1, 3)]);
        map.breaks_off = false;
        assert_eq!(read(&mut known, &mut map, Some(2)), [(2, 4)]);
        assert_eq!((map.walks, map.asked.get()), (2, 0));
    }

    #[test]
    fn one_that_is_gone_tells_nothing_and_more_than_a_few_are_walked() {
        let (mut known, mut map) = (known(), Fake::default());
        map.entries.extend([(1, 3), (2, 4)]);
        read(&mut known, &mut map, Some(2));
        map.remove(key(1));
        assert_eq!(read(&mut known, &mut map, Some(2)), []);
        map.entries.extend([(1, 3), (3, 1)]);
        read(&mut known, &mut map, Some(4));
        let walks = map.walks;
        read(&mut known, &mut map, Some(4));
        assert_eq!(map.walks, walks + 1, "three entries");
    }

    #[test]
    fn entries_are_learnt_once() {
        let (mut known, mut map) = (known(), Fake::default());
        map.entries.insert(1, 3);
        for made in [1, 1, 2] {
            known.learn(&mut map, 0, Some(made));
        }
        assert_eq!((map.walks, known.table.len()), (2, 1));
    }
}
