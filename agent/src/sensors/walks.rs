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
        Self::new(buckets as usize)
    }

    pub(super) fn new(buckets: usize) -> Self {
        Self {
            added: None,
            buckets,
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

    /// Whether it suffices to ask for the known entries, so many, and takes less than a walk.
    pub(super) fn may_look_up(&self, made: Option<u64>, known: usize) -> bool {
        self.none_is_new(made) && known * BUCKETS_A_LOOK_UP <= self.buckets
    }

    /// The map was walked; `whole`: to its end.
    pub(super) fn walked(&mut self, made: Option<u64>, whole: bool) {
        self.added = made.filter(|_| whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_abi::{Counters, QuotaTaken};

    #[test]
    fn only_a_whole_walk_makes_all_entries_known() {
        let mut walks = Walks::new(4096);
        assert!(!walks.none_is_new(Some(0)), "never walked");
        walks.walked(Some(3), false);
        assert!(!walks.none_is_new(Some(3)), "half walked");
        walks.walked(Some(3), true);
        assert!(walks.none_is_new(Some(3)) && !walks.none_is_new(Some(4)));
        walks.walked(None, true);
        assert!(!walks.none_is_new(None), "nobody knows what was made");
    }

    #[test]
    fn few_entries_are_asked_for() {
        let mut walks = Walks::new(4096);
        walks.walked(Some(9), true);
        for (known, asked) in [(0, true), (4, true), (5, false)] {
            assert_eq!(walks.may_look_up(Some(9), known), asked, "{known}");
            assert!(!walks.may_look_up(Some(10), known), "{known}");
        }
    }

    #[test]
    fn each_family_has_its_count() {
        let mut added = Added::default();
        added.counts[QuotaTaken::FAMILY] = 7;
        assert_eq!(Walks::made::<QuotaTaken>(Some(&added)), Some(7));
        assert_eq!(Walks::made::<Counters>(Some(&added)), Some(0));
        assert_eq!(Walks::made::<Counters>(None), None);
    }
}
