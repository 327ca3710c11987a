//! A map of counters that all CPUs share, with what it held at the last window's end.
//!
//! For entries that are many or large and counted seldom: one value, not one a CPU. See [`super::window::Collector`] for
//! the others.

use super::{
    SensorError,
    load::take,
    map_batch::{Batch, Unsupported},
    pod::Plain,
    window::{Key, Process, Table, is_alive},
};
use aya::{
    Ebpf,
    maps::{HashMap, IterableMap as _, MapData},
};
use bytemuck::Pod;
use std::fmt::Debug;

/// The map and its table.
#[derive(Debug)]
pub(super) struct SharedCounters<K, V> {
    map: HashMap<MapData, Plain<K>, Plain<V>>,
    table: Table<K, V>,
    batch: Batch<K, V>,
}

impl<K: Key + Debug, V: Pod + PartialEq + Debug> SharedCounters<K, V> {
    pub(super) fn new(ebpf: &mut Ebpf, map: &'static str) -> Result<Self, SensorError> {
        Ok(Self {
            map: take(ebpf, map)?,
            table: Table::new(),
            batch: Batch::new(1),
        })
    }

    /// Hands over the difference of each entry that has changed since the last window. Whether it came to the map's
    /// end; see [`Batch::read`].
    pub(super) fn read(&mut self, window: u64, mut changed: impl FnMut(&K, &V)) -> bool {
        let table = &mut self.table;
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
        matches!(batched, Ok(true))
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
