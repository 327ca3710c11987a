//! What counts against a policy, and when it is too much.

use serde::Serialize;
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// The ways in which a policy misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StrikeKind {
    /// It trapped (a panic, an access out of bounds, a stack overflow).
    Trap,
    /// It used more CPU time than a call may.
    Deadline,
    /// It asked for more memory or table space than it may have.
    Memory,
    /// It gave a value that means nothing (a weight of 0, evidence that is not a number).
    Nonsense,
    /// It gave more than it may (requests, evidence, bytes).
    OverLimit,
}

impl StrikeKind {
    /// Short name, as serialised.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Nonsense => "nonsense",
            Self::OverLimit => "over_limit",
        }
    }
}

/// One misdeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
pub struct Strike {
    /// Which.
    pub kind: StrikeKind,
    /// In words, bounded in length.
    pub detail: String,
    /// The instance cannot go on: the call did not return.
    pub fatal: bool,
}

impl Strike {
    /// One after which the instance is discarded.
    pub fn fatal(kind: StrikeKind, detail: impl AsRef<str>) -> Self {
        Self {
            kind,
            detail: tidy(detail.as_ref(), 1024),
            fatal: true,
        }
    }

    /// One after which the instance goes on.
    pub fn minor(kind: StrikeKind, detail: impl AsRef<str>) -> Self {
        Self {
            kind,
            detail: tidy(detail.as_ref(), 1024),
            fatal: false,
        }
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.detail)
    }
}

/// `text` cut to `max` bytes, with control characters replaced: what a guest says may end up on
/// a terminal.
pub fn tidy(text: &str, max: usize) -> String {
    let end = text.floor_char_boundary(max);
    text[..end]
        .chars()
        .map(|c| match c {
            '\n' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// The strikes of the last while.
#[derive(Debug)]
pub struct Ledger {
    forgiven: usize,
    window_ns: u64,
    times: VecDeque<u64>,
}

impl Ledger {
    /// Forgives `forgiven` strikes within `window`.
    pub fn new(forgiven: usize, window: Duration) -> Self {
        Self {
            forgiven,
            window_ns: window.as_nanos() as u64,
            times: VecDeque::new(),
        }
    }

    /// Notes a strike at `now_ns` of event time. True if it is one too many.
    pub fn strike(&mut self, now_ns: u64) -> bool {
        self.times
            .retain(|time| now_ns.saturating_sub(*time) <= self.window_ns);
        self.times.push_back(now_ns);
        self.times.len() > self.forgiven
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.times.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fourth_strike_in_a_minute_is_one_too_many() {
        let mut ledger = Ledger::new(3, Duration::from_mins(1));
        let second = 1_000_000_000;
        assert!(!ledger.strike(0));
        assert!(!ledger.strike(10 * second));
        assert!(!ledger.strike(20 * second));
        assert!(!ledger.strike(61 * second), "the first one is forgotten");
        assert!(ledger.strike(62 * second));
    }

    #[test]
    fn tidy_cuts_at_a_character_and_removes_escapes() {
        assert_eq!(tidy("aé", 2), "a");
        assert_eq!(tidy("\u{1b}[31mred", 100), "\u{fffd}[31mred");
    }
}
