//! Sums in slots of equal length, of which the newest are kept.
//!
//! Invariants: at most `keep + 1` slots (the one that runs, and those before it); a slot without
//! anything in it takes no memory; what was added is in exactly one slot, until that is too old.

use std::collections::VecDeque;

/// What can be summed.
pub(super) trait Tally: Default {
    /// Adds `other`; stays at the largest number rather than wrap.
    fn add(&mut self, other: &Self);
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Slots<T> {
    width_ns: u64,
    keep: u64,
    newest: u64,
    slots: VecDeque<(u64, T)>,
}

impl<T: Tally> Slots<T> {
    /// Slots of `width_ns`, `keep` of them besides the one that runs.
    pub(super) fn new(width_ns: u64, keep: u64) -> Self {
        Self {
            width_ns: width_ns.max(1),
            keep,
            newest: 0,
            slots: VecDeque::new(),
        }
    }

    /// The slot that a time falls into; `None` if it is too old to be kept.
    pub(super) fn at(&mut self, time_ns: u64) -> Option<&mut T> {
        let index = time_ns / self.width_ns;
        self.advance(time_ns);
        if index + self.keep < self.newest {
            return None;
        }
        // Nearly always the last one, or one behind it.
        let behind = self.slots.iter().rev().take_while(|(at, _)| *at > index);
        let place = self.slots.len() - behind.count();
        if place == 0 || self.slots[place - 1].0 != index {
            self.slots.insert(place, (index, T::default()));
            return self.slots.get_mut(place).map(|(_, tally)| tally);
        }
        self.slots.get_mut(place - 1).map(|(_, tally)| tally)
    }

    /// Drops what is too old at that time.
    pub(super) fn advance(&mut self, time_ns: u64) {
        self.newest = self.newest.max(time_ns / self.width_ns);
        while self
            .slots
            .front()
            .is_some_and(|(index, _)| index.saturating_add(self.keep) < self.newest)
        {
            self.slots.pop_front();
        }
    }

    /// The sum of the slots that begin in `from_ns..until_ns`.
    pub(super) fn sum(&self, from_ns: u64, until_ns: u64) -> T {
        let mut sum = T::default();
        for (_, tally) in self.between(from_ns, until_ns) {
            sum.add(tally);
        }
        sum
    }

    /// The slots that begin in `from_ns..until_ns`, each with its beginning.
    pub(super) fn between(&self, from_ns: u64, until_ns: u64) -> impl Iterator<Item = (u64, &T)> {
        self.slots
            .iter()
            .map(|(index, tally)| (index.saturating_mul(self.width_ns), tally))
            .filter(move |(start, _)| (from_ns..until_ns).contains(start))
    }

    /// Slots that are kept.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

/// A plain number of anything.
impl Tally for u64 {
    fn add(&mut self, other: &Self) {
        *self = self.saturating_add(*other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_additions_find_their_slot_and_old_ones_none() {
        let mut slots: Slots<u64> = Slots::new(10, 3);
        for (time, count) in [(5, 1), (35, 2), (12, 4), (36, 8), (19, 16)] {
            *slots.at(time).unwrap_or(&mut 0) += count;
        }
        assert_eq!(
            slots.between(0, 100).collect::<Vec<_>>(),
            [(0, &1), (10, &20), (30, &10)]
        );
        *slots.at(40).unwrap_or(&mut 0) += 32;
        assert!(slots.at(9).is_none());
        assert_eq!(slots.sum(0, 100), 62);
        assert_eq!(slots.sum(10, 40), 30);
        slots.advance(1000);
        assert_eq!(slots.len(), 0);
        assert!(slots.at(u64::MAX).is_some());
    }
}
