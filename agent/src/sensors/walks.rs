//! When a counter map has to be walked.
//!
//! Walking the buckets of all maps is most of what an idle window costs. Only the kernel programs make entries, and count
//! them; only the agent removes them. So while nothing was made, the known keys are all that there are.

use aya::maps::MapData;
use palisade_abi::{Added, CounterFamily};

/// Buckets that the kernel walks in about the time of one look-up: a microsecond against one to several
/// nanoseconds, by how much of the map is in the CPU's caches.
const BUCKETS_A_LOOK_UP: usize = 1024;

/// What is known about a map's entries.
#[derive(Debug)]
pub(super) struct Walks {
    /// Entries that the kernel had made when the map was last read to its end.
    added: Option<u64>,
    /// About as many as it has room for entries.
    buckets: usize,
}

impl Walks {
    /// Nothing yet.
    pub(super) fn of(map: &MapData) -> Self {
        let buckets = map.info().map_or(0, |info| info.max_entries());
        Self {
            added: None,
            buckets: buckets as usize,
        }
    }

    /// Entries of a family that were made by now. To be asked for before the map is read: what is made meanwhile
    /// counts for the next window.
    pub(super) fn made<V: CounterFamily>(added: Option<&Added>) -> Option<u64> {
        added.map(|added| added.counts[V::FAMILY])
    }

    /// Whether all entries are known.
    pub(super) fn none_is_new(&self, made: Option<u64>) -> bool {
        made.is_some() && made == self.added
    }

    /// Whether to ask for so many entries takes less than a walk.
    pub(super) fn are_few(&self, entries: usize) -> bool {
        entries * BUCKETS_A_LOOK_UP <= self.buckets
    }

    /// The map was walked; `whole`: to its end.
    pub(super) fn walked(&mut self, made: Option<u64>, whole: bool) {
        self.added = made.filter(|_| whole);
    }
}
