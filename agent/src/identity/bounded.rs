//! A map that never grows beyond its size.
//!
//! Invariant: at most `capacity` entries; whatever is dropped to make room is counted. What was
//! used least recently goes first, what was demoted before that, however much it is used: only
//! inserting it again ends that.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The stamp of what was demoted.
const DEMOTED: u64 = 0;
/// When full, one sixteenth goes at once, so that the search for the oldest is paid rarely.
const SHARE_DROPPED: usize = 16;

#[derive(Debug)]
pub(super) struct Bounded<K, V> {
    entries: HashMap<K, (V, AtomicU64)>,
    capacity: usize,
    uses: AtomicU64,
    evicted: u64,
}

impl<K: Eq + Hash + Copy, V> Bounded<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            entries: HashMap::new(),
            capacity: capacity.max(1),
            uses: AtomicU64::new(1),
            evicted: 0,
        }
    }

    fn stamp(&self) -> u64 {
        self.uses.fetch_add(1, Relaxed)
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        let (value, used) = self.entries.get(key)?;
        if used.load(Relaxed) != DEMOTED {
            used.store(self.stamp(), Relaxed);
        }
        Some(value)
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let stamp = self.stamp();
        let (value, used) = self.entries.get_mut(key)?;
        if *used.get_mut() != DEMOTED {
            *used.get_mut() = stamp;
        }
        Some(value)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.entries.len() >= self.capacity && !self.entries.contains_key(&key) {
            self.make_room();
        }
        let stamp = AtomicU64::new(self.stamp());
        self.entries.insert(key, (value, stamp));
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key).map(|(value, _)| value)
    }

    /// Drops the entry to make room.
    pub(super) fn evict(&mut self, key: &K) {
        if self.entries.remove(key).is_some() {
            self.evicted += 1;
        }
    }

    /// The entry is the first to go when room is needed, until it is inserted again.
    pub(super) fn demote(&mut self, key: &K) {
        if let Some((_, used)) = self.entries.get_mut(key) {
            *used.get_mut() = DEMOTED;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Look-ups and changes so far, without look-ups of what is demoted.
    #[cfg(test)]
    pub(super) fn uses(&self) -> u64 {
        self.uses.load(Relaxed)
    }

    fn make_room(&mut self) {
        let drop = (self.capacity / SHARE_DROPPED).max(1);
        let mut ages: Vec<(u64, K)> = self
            .entries
            .iter()
            .map(|(key, (_, used))| (used.load(Relaxed), *key))
            .collect();
        let drop = drop.min(ages.len());
        if drop < ages.len() {
            ages.select_nth_unstable_by_key(drop - 1, |(age, _)| *age);
        }
        for (_, key) in &ages[..drop] {
            self.entries.remove(key);
        }
        self.evicted += drop as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_grows_and_counts_what_goes() {
        let mut map = Bounded::new(4);
        for key in 0..100 {
            map.insert(key, key);
            assert!(map.len() <= 4);
            assert_eq!(map.get(&key), Some(&key));
        }
        assert_eq!(map.evicted(), 96);
    }

    #[test]
    fn used_entries_stay_and_demoted_ones_go_first() {
        let mut map = Bounded::new(3);
        for key in 0..3 {
            map.insert(key, ());
        }
        assert!(map.get(&0).is_some());
        map.demote(&2);
        map.insert(3, ());
        assert!(map.get(&2).is_none());
        map.insert(4, ());
        assert!(map.get(&1).is_none());
        assert!(map.get(&0).is_some());
    }

    #[test]
    fn what_is_demoted_goes_first_however_much_it_is_used_until_it_is_inserted_again() {
        let mut map = Bounded::new(3);
        for key in 0..3 {
            map.insert(key, ());
        }
        map.demote(&1);
        map.demote(&2);
        assert!(map.get(&1).is_some() && map.get_mut(&1).is_some());
        map.insert(2, ());
        map.insert(3, ());
        assert!(map.contains(&0) && !map.contains(&1) && map.contains(&2));
        map.insert(4, ());
        assert!(!map.contains(&0) && map.contains(&2));
    }
}
