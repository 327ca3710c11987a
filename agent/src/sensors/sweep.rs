//! Removes the driver calls of processes whose end was not seen.
//!
//! Invariant: an entry of a process that /proc shows stays.

use super::{
    in_flight::InFlightView,
    window::{Collect, Process, Told, is_alive},
};
use aya::maps::{Array, MapData};
use palisade_abi::InFlight;
use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant},
};

/// Time between two looks at all entries.
const EVERY: Duration = Duration::from_mins(1);

/// Looks once a minute, at the end of a window.
pub(super) struct Sweeper {
    view: InFlightView,
    /// See `RESIDENTS` of the programs: the second word is the agent's.
    residents: Array<MapData, u64>,
    last: Instant,
}

impl fmt::Debug for Sweeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sweeper").finish_non_exhaustive()
    }
}

impl Sweeper {
    pub(super) fn new(view: InFlightView, residents: Array<MapData, u64>) -> Self {
        Self {
            view,
            residents,
            last: Instant::now(),
        }
    }

    fn sweep(&mut self) {
        let Some(entries) = self.view.entries() else {
            return;
        };
        let mut residents = 0;
        for (key, call) in gone(entries, is_alive) {
            // A new thread may have come to its place meanwhile.
            let same = |now: InFlight| (now.pid, now.start_ns) == (call.pid, call.start_ns);
            if self.view.entry(key).is_some_and(same) && self.view.remove(key) {
                residents += u64::from(call.resident != 0);
            }
        }
        if residents != 0
            && let Ok(swept) = self.residents.get(&1, 0)
            && let Err(error) = self.residents.set(1, swept.wrapping_add(residents), 0)
        {
            tracing::warn!(%error, "swept driver calls were not counted");
        }
    }
}

/// The entries of processes that are not alive; each process is asked for once. One that is being made is
/// of none yet.
fn gone(
    entries: Vec<(u64, InFlight)>,
    alive: impl Fn(Process) -> bool,
) -> impl Iterator<Item = (u64, InFlight)> {
    let mut known: HashMap<Process, bool> = HashMap::new();
    entries.into_iter().filter(move |(_, call)| {
        let process = (call.pid, call.start_ns);
        call.pid != 0 && !*known.entry(process).or_insert_with(|| alive(process))
    })
}

impl Collect for Sweeper {
    fn kinds(&self) -> u64 {
        0
    }

    fn collect(&mut self, _window: u64, _told: &mut Told<'_>) {}

    fn forget(&mut self, _window: u64, _due: &dyn Fn(Process) -> bool) {
        if self.last.elapsed() >= EVERY {
            self.sweep();
            self.last = Instant::now();
        }
    }

    fn len(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_entries_of_ended_processes_are_swept() {
        let entry = |key, pid, start_ns| {
            let call = InFlight {
                pid,
                start_ns,
                ..InFlight::default()
            };
            (key, call)
        };
        let entries = vec![
            entry(1, 7, 1),
            entry(2, 7, 2),
            entry(3, 8, 1),
            entry(4, 0, 0),
        ];
        let swept: Vec<u64> = gone(entries, |process| process == (7, 2))
            .map(|(key, _)| key)
            .collect();
        assert_eq!(swept, [1, 3]);
    }
}
