//! What cannot be had on this host.

use crate::{Kind, Record, abi::Absent};

/// The kinds that cannot be had, by the newest `ABSENT` record.
///
/// The agent tells after each load of a policy, and when it changes. A policy that keeps one of
/// these knows whether silence means that all is well.
///
/// ```
/// use palisade_policy_sdk::{AbsentKinds, Kind, testing};
///
/// let mut absent = AbsentKinds::default();
/// assert!(absent.update(&testing::absent(&[Kind::SampleRunq])));
/// assert!(absent.has(Kind::SampleRunq));
/// assert!(!absent.has(Kind::SampleSched));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AbsentKinds(u64);

impl AbsentKinds {
    /// Takes an `ABSENT` record; `false` for any other one, which changes nothing.
    pub fn update(&mut self, record: &Record) -> bool {
        let Some(absent) = record.get::<Absent>() else {
            return false;
        };
        self.0 = absent.kinds;
        true
    }

    /// Whether that kind cannot be had.
    pub fn has(self, kind: Kind) -> bool {
        self.0 & kind.bit() != 0
    }

    /// All of them. They may include kinds to which the policy did not subscribe.
    pub fn kinds(self) -> impl Iterator<Item = Kind> {
        Kind::ALL
            .iter()
            .copied()
            .filter(move |kind| self.has(*kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Proc, absent};

    #[test]
    fn the_newest_record_counts_and_others_change_nothing() {
        let mut kinds = AbsentKinds::default();
        assert!(!kinds.update(&Proc::new(1, 2).exit(0)));
        assert!(kinds.update(&absent(&[Kind::SampleRunq, Kind::GpuError])));
        let both: Vec<Kind> = kinds.kinds().collect();
        assert_eq!(both, [Kind::SampleRunq, Kind::GpuError]);
        assert!(kinds.update(&absent(&[])));
        assert_eq!(kinds.kinds().count(), 0);
    }
}
