//! Values of the knobs as data: parsing, comparing, converting. No I/O.

use palisade_core::Knob;
use std::fmt;

use super::Version;

/// Usual enforcement period, microseconds (the kernel's default).
const PERIOD_US: u64 = 100_000;
/// Longest period that the kernel takes, microseconds.
const PERIOD_MAX_US: u64 = 1_000_000;
/// Smallest quota that the kernel takes, microseconds (`min_cfs_quota_period`).
const QUOTA_MIN_US: u64 = 1_000;
/// cpu.shares: range and default.
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;
const SHARES_DEFAULT: u64 = 1024;
const WEIGHT_DEFAULT: u64 = 100;

/// A knob's value. Its text form (`Display`/[`Setting::parse`]) is what the journal keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// CPU ceiling; `None` is unlimited. Microseconds per microseconds.
    Quota {
        /// CPU time a period.
        quota: Option<u64>,
        /// The period.
        period: u64,
    },
    /// The number in `cpu.weight` (v2) or `cpu.shares` (v1).
    Weight(u64),
    /// The cgroup's own freeze request.
    Frozen(bool),
}

impl Setting {
    /// What an action asks for, in the units of that version's files. `value` is permille of a
    /// CPU, a v2 weight, or ignored for the freezer. `None` for a value that no kernel takes.
    pub fn asked(knob: Knob, value: u32, version: Version) -> Option<Self> {
        let value = u64::from(value);
        match knob {
            Knob::CpuQuota if value > 0 => {
                let mut period = PERIOD_US;
                if value * period / 1000 < QUOTA_MIN_US {
                    period = (QUOTA_MIN_US * 1000 / value).min(PERIOD_MAX_US);
                }
                let quota = (value * period / 1000).max(QUOTA_MIN_US);
                Some(Self::Quota {
                    quota: Some(quota),
                    period,
                })
            }
            Knob::CpuWeight if (1..=10_000).contains(&value) => Some(Self::Weight(match version {
                Version::V1 => shares_of_weight(value),
                Version::V2 => value,
            })),
            Knob::Freeze => Some(Self::Frozen(true)),
            Knob::CpuQuota | Knob::CpuWeight => None,
        }
    }

    /// Whether this value holds the workload at least as tightly as `other` would. False for
    /// values of different knobs.
    pub fn at_least_as_strict_as(&self, other: &Self) -> bool {
        match (*self, *other) {
            (
                Self::Quota {
                    quota: a,
                    period: p,
                },
                Self::Quota {
                    quota: b,
                    period: q,
                },
            ) => match (a, b) {
                (_, None) => true,
                (None, Some(_)) => false,
                (Some(a), Some(b)) => {
                    u128::from(a) * u128::from(q) <= u128::from(b) * u128::from(p)
                }
            },
            (Self::Weight(a), Self::Weight(b)) => a <= b,
            (Self::Frozen(a), Self::Frozen(b)) => a || !b,
            _ => false,
        }
    }

    /// Whether `self` can have come about by a write of `set` over `original` that was cut
    /// short: v1 has quota and period in two files. Equal to `set` counts.
    pub fn is_between(&self, original: &Self, set: &Self) -> bool {
        match (*self, *original, *set) {
            (
                Self::Quota { quota, period },
                Self::Quota {
                    quota: old,
                    period: old_period,
                },
                Self::Quota {
                    quota: new,
                    period: new_period,
                },
            ) => {
                (quota == new && period == new_period)
                    || (quota == new && period == old_period && new != old)
                    || (quota == old && period == new_period && new_period != old_period)
            }
            _ => self == set,
        }
    }

    /// Reads the text form back.
    pub fn parse(knob: Knob, text: &str) -> Option<Self> {
        match knob {
            Knob::CpuQuota => {
                let (quota, period) = text.trim().split_once(' ')?;
                Some(Self::Quota {
                    quota: match quota {
                        "max" => None,
                        number => Some(number.parse().ok()?),
                    },
                    period: period.trim().parse().ok().filter(|p| *p > 0)?,
                })
            }
            Knob::CpuWeight => Some(Self::Weight(text.trim().parse().ok()?)),
            Knob::Freeze => match text.trim() {
                "0" => Some(Self::Frozen(false)),
                "1" => Some(Self::Frozen(true)),
                _ => None,
            },
        }
    }
}

/// The form of `cpu.max`, `cpu.weight` and `cgroup.freeze`.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quota {
                quota: Some(quota),
                period,
            } => write!(f, "{quota} {period}"),
            Self::Quota {
                quota: None,
                period,
            } => write!(f, "max {period}"),
            Self::Weight(number) => write!(f, "{number}"),
            Self::Frozen(frozen) => write!(f, "{}", u8::from(*frozen)),
        }
    }
}

/// `cpu.shares` for a v2 weight: proportional, as systemd does it (1024 shares are weight 100).
///
/// The linear map of container runtimes, weight = 1 + (shares − 2) × 9999 / 262142, is for
/// translating a container's shares to v2 and does not keep the default: weight 50 would become
/// 1286 shares, *more* than the v1 default of 1024, so a request to halve a workload's weight
/// would do nothing.
pub fn shares_of_weight(weight: u64) -> u64 {
    (weight.saturating_mul(SHARES_DEFAULT) / WEIGHT_DEFAULT).clamp(*SHARES.start(), *SHARES.end())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn quota(quota: u64, period: u64) -> Setting {
        Setting::Quota {
            quota: Some(quota),
            period,
        }
    }

    #[test]
    fn permille_becomes_quota_and_period_above_the_kernels_minimum() {
        for (permille, text) in [
            (200, "20000 100000"),
            (1000, "100000 100000"),
            (64_000, "6400000 100000"),
            (10, "1000 100000"),
            (9, "1000 111111"),
            (3, "1000 333333"),
            (1, "1000 1000000"),
        ] {
            let asked = Setting::asked(Knob::CpuQuota, permille, Version::V1).unwrap();
            assert_eq!(asked.to_string(), text, "{permille}");
            assert_eq!(Setting::parse(Knob::CpuQuota, text), Some(asked));
        }
        assert_eq!(Setting::asked(Knob::CpuQuota, 0, Version::V2), None);
    }

    #[test]
    fn weights_keep_the_default_and_the_range() {
        for (weight, shares) in [
            (1, 10),
            (50, 512),
            (100, 1024),
            (200, 2048),
            (10_000, 102_400),
        ] {
            assert_eq!(shares_of_weight(weight), shares);
            assert_eq!(
                Setting::asked(Knob::CpuWeight, weight as u32, Version::V1),
                Some(Setting::Weight(shares))
            );
            assert_eq!(
                Setting::asked(Knob::CpuWeight, weight as u32, Version::V2),
                Some(Setting::Weight(weight))
            );
        }
        assert_eq!(Setting::asked(Knob::CpuWeight, 0, Version::V2), None);
        assert_eq!(Setting::asked(Knob::CpuWeight, 10_001, Version::V2), None);
    }

    #[test]
    fn strictness_compares_ratios() {
        let none = Setting::parse(Knob::CpuQuota, "max 100000").unwrap();
        assert!(quota(20_000, 100_000).at_least_as_strict_as(&none));
        assert!(!none.at_least_as_strict_as(&quota(20_000, 100_000)));
        assert!(quota(10_000, 50_000).at_least_as_strict_as(&quota(20_000, 100_000)));
        assert!(!quota(30_000, 100_000).at_least_as_strict_as(&quota(20_000, 100_000)));
        assert!(none.at_least_as_strict_as(&none));
        assert!(Setting::Frozen(true).at_least_as_strict_as(&Setting::Frozen(true)));
        assert!(!Setting::Frozen(false).at_least_as_strict_as(&Setting::Frozen(true)));
        assert!(Setting::Weight(10).at_least_as_strict_as(&Setting::Weight(50)));
    }

    #[test]
    fn a_half_written_v1_quota_is_recognised() {
        let original = quota(50_000, 250_000);
        let set = quota(20_000, 100_000);
        assert!(set.is_between(&original, &set));
        assert!(quota(20_000, 250_000).is_between(&original, &set));
        assert!(quota(50_000, 100_000).is_between(&original, &set));
        assert!(!original.is_between(&original, &set));
        assert!(!quota(30_000, 100_000).is_between(&original, &set));
        let same_period = quota(50_000, 100_000);
        assert!(!same_period.is_between(&same_period, &set));
    }

    #[test]
    fn garbage_is_no_setting() {
        for text in ["", "max", "max x", "1 2 3", "-1 100000", "10000 0"] {
            assert_eq!(Setting::parse(Knob::CpuQuota, text), None, "{text:?}");
        }
        assert_eq!(Setting::parse(Knob::Freeze, "2"), None);
        assert_eq!(Setting::parse(Knob::CpuWeight, "x"), None);
    }
}
