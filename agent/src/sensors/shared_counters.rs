//! A map of counters that all CPUs share, with what it held at the last window's end.
//!
//! For entries that are many or large and counted seldom: one value, not one a CPU. See [`super::window::Collector`] for
//! the others.

use super::{
    SensorError,
    load::take,
    map_batch::{Batch, Unsupported},
    pod::Plain,
    walks::Walks,
    window::{Key, Process, Table, is_alive},
};
use aya::{
    Ebpf,
    maps::{HashMap, IterableMap as _, MapData},
};
use palisade_abi::{Added, CounterFamily};
use std::fmt::Debug;

/// The map and its table.
#[derive(Debug)]
pub(super) struct SharedCounters<K, V> {
    map: HashMap<MapData, Plain<K>, Plain<V>>,
    table: Table<K, V>,
    batch: Batch<K, V>,
    walks: Walks,
}

impl<K: Key + Debug, V: CounterFamily + PartialEq + Debug> SharedCounters<K, V> {
    pub(super) fn new(ebpf: &mut Ebpf, map: &'static str) -> Result<Self, SensorError> {
        let map: HashMap<MapData, Plain<K>, Plain<V>> = take(ebpf, map)?;
        Ok(Self {
            walks: Walks::of(map.map()),
            map,
            table: Table::new(),
            batch: Batch::new(1),
        })
    }

    /// Hands over the difference of each entry that has changed since the last window.
    pub(super) fn read(
        &mut self,
        window: u64,
        added: Option<&Added>,
        mut changed: impl FnMut(&K, &V),
    ) {
        let made = Walks::made::<V>(added);
        let table = &mut self.table;
        if self.walks.may_look_up(made, table.len()) {
            for key in table.keys() {
                // One that is gone has nothing to tell.
                if let Ok(value) = self.map.get(&Plain(key), 0)
                    && let Some(difference) = table.observe(key, value.0, window)
                {
                    changed(&key, &difference);
                }
            }
            return;
        }
        let mut observe = |key: &K, value: V| {
            if let Some(difference) = table.observe(*key, value, window) {
                changed(key, &difference);
            }
        };
        let fd = self.map.map().fd();
        let batched = self.batch.read(fd, |key, value| observe(key, value[0]));
        if let Err(Unsupported) = batched {
            let entries = self.map.iter().filter_map(Result::ok);
            entries.for_each(|(key, value)| observe(&key.0, value.0));
        }
        self.walks.walked(made, matches!(batched, Ok(true)));
    }

    /// Learns which entries there are, where their values are nobody's concern. An entry counts as idle since the last walk
    /// that found it changed; if its process's end was lost it stays the longer.
    pub(super) fn learn(&mut self, window: u64, added: Option<&Added>) {
        if !self.walks.none_is_new(Walks::made::<V>(added)) {
            self.read(window, added, |_, _| {});
        }
    }

    /// As [`super::window::Collect::forget`].
    pub(super) fn forget(&mut self, window: u64, due: &dyn Fn(Process) -> bool) {
        let mut over = self.table.ended(due);
        over.extend(self.table.idle(window, &is_alive));
        for key in over {
            // Already gone is just as good.
            let _ = self.map.remove(&Plain(key));
        }
    }

    /// Entries that are kept.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }
}
