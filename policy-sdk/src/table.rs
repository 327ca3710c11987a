//! A map that cannot grow without limit.

use rustc_hash::FxBuildHasher;
use std::collections::HashMap;
use std::hash::Hash;

/// A map with a capacity. When it is full, the quarter that was touched least recently goes, in
/// one sweep: a flood of new keys costs a constant time per key. The hash is quick and not keyed: the
/// same inputs give the same order everywhere, and keys are the kernel's numbers, bounded in count.
///
/// ```
/// use palisade_policy_sdk::BoundedMap;
/// let mut map = BoundedMap::new(4);
/// for pid in 0..100 {
///     *map.get_or_insert_with(pid, || 0) += 1;
/// }
/// assert!(map.len() <= 4 && map.get(&99).is_some());
/// assert_eq!(map.evicted(), 96);
/// ```
#[derive(Clone, Debug)]
pub struct BoundedMap<K, V> {
    entries: HashMap<K, (u64, V), FxBuildHasher>,
    capacity: usize,
    touch: u64,
    evicted: u64,
}

impl<K: Eq + Hash + Clone, V> BoundedMap<K, V> {
    /// An empty map for at most `capacity` entries (at least 1).
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: HashMap::default(),
            capacity: capacity.max(1),
            touch: 0,
            evicted: 0,
        }
    }

    /// The value of a key, made if it is not there. Touches the entry.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if self.entries.len() >= self.capacity && !self.entries.contains_key(&key) {
            self.sweep();
        }
        self.touch += 1;
        let entry = self.entries.entry(key).or_insert_with(|| (0, make()));
        entry.0 = self.touch;
        &mut entry.1
    }

    /// The value of a key. Does not touch the entry.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// The value of a key, to change. Touches the entry.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let entry = self.entries.get_mut(key)?;
        self.touch += 1;
        entry.0 = self.touch;
        Some(&mut entry.1)
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key).map(|(_, value)| value)
    }

    /// Keeps the entries for which `keep` answers true.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        self.entries.retain(|key, (_, value)| keep(key, value));
    }

    /// Takes everything out; the memory stays.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// All entries, in no particular order. Sort before an order can show in a request.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, (_, value))| (key, value))
    }

    /// All entries, to change, in no particular order. Does not touch them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.entries
            .iter_mut()
            .map(|(key, (_, value))| (key, value))
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries that had to go for others, since the beginning.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn sweep(&mut self) {
        let mut touches: Vec<u64> = self.entries.values().map(|(touch, _)| *touch).collect();
        let quarter = touches.len().div_ceil(4);
        let (_, limit, _) = touches.select_nth_unstable(quarter - 1);
        let limit = *limit;
        self.entries.retain(|_, (touch, _)| *touch > limit);
        self.evicted += quarter as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays() {
        let mut map = BoundedMap::new(8);
        for key in 0..1000_u32 {
            map.get_or_insert_with(key, || key);
            assert!(map.get_mut(&0).is_some(), "lost at {key}");
            assert!(map.len() <= 8);
        }
        assert_eq!(map.len() as u64 + map.evicted(), 1000);
    }

    #[test]
    fn a_capacity_of_one_works() {
        let mut map = BoundedMap::new(0);
        map.get_or_insert_with(1, || 1);
        map.get_or_insert_with(2, || 2);
        assert_eq!((map.get(&1), map.get(&2)), (None, Some(&2)));
    }
}
