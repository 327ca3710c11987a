use crate::BoundedMap;
use std::hash::Hash;

/// Lets something through once a period, for each key of a bounded number.
#[derive(Clone, Debug)]
pub struct Cooldown<K> {
    period_ns: u64,
    last: BoundedMap<K, u64>,
}

impl<K: Eq + Hash + Clone> Cooldown<K> {
    /// Once in `period_ns` for each key; at most `keys` keys are remembered.
    pub fn new(period_ns: u64, keys: usize) -> Self {
        Self {
            period_ns,
            last: BoundedMap::new(keys),
        }
    }

    /// Whether the time has come for `key`. If so, its period begins anew.
    pub fn ready(&mut self, key: K, now_ns: u64) -> bool {
        match self.last.get(&key) {
            Some(last) if now_ns.saturating_sub(*last) < self.period_ns => false,
            _ => {
                *self.last.get_or_insert_with(key, || now_ns) = now_ns;
                true
            }
        }
    }

    /// Forgets a key.
    pub fn reset(&mut self, key: &K) {
        self.last.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_a_period_for_each_key() {
        let mut cooldown = Cooldown::new(10, 4);
        assert!(cooldown.ready("a", 100));
        assert!(!cooldown.ready("a", 109));
        assert!(cooldown.ready("b", 109));
        assert!(cooldown.ready("a", 110));
        cooldown.reset(&"a");
        assert!(cooldown.ready("a", 111));
    }
}
