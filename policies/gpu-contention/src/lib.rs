//! Finds the workload that keeps others waiting in a device driver, and asks to slow it down.
//!
//! # What it sees
//! `SAMPLE_GPU`: per process and device class, how many driver calls returned in a sampling
//! window, their latency, and their *hold*, the part of the latency in which no other process's
//! call was being served first. Latency − hold is time in the shadow of others' calls.
//! `SAMPLE_GPU_COMMAND`: the same latency by command, and its *excess*: what each call took longer
//! than its command's baseline, the 10th percentile of the last minute over all processes of the
//! host (`docs/signals.md`). This is contention for the driver
//! (allocation, free, context creation: the resource manager's lock). Kernel launches do not
//! enter the driver; contention for the compute units is invisible here.
//!
//! # When it is contention
//! What a process *lost* is its time in the shadow of others' calls, at most its excess. So a call
//! that takes long as always (one that waits for a fence or an event) lost nothing, and neither did one
//! that is slow by its own work. Time of commands that have no baseline yet (fewer than 20 calls in
//! a minute), or all time where the excess cannot be had, counts as far as it was in the shadow. So does
//! time of commands whose baseline the culprit made itself: half of their calls are its own, and it was
//! served most of the time that they took.
//!
//! Over a window of `window_ms`, for one device class:
//! - at least `min_processes` processes use it,
//! - others than the culprit lost `contention_ratio` of their time in the driver,
//! - that loss is at least `min_busy_ratio` of the window,
//!
//! and so for `sustain` windows in a row with the same culprit. A call shows at its return only:
//! one that held for many windows while others waited counts for as many, and calm windows
//! meanwhile do not interrupt the row.
//!
//! Contention that leaves less than a tenth of a command's calls alone, for a minute or from the
//! first call on, becomes that command's baseline. Unless the culprit's own calls did that, it is then
//! not told from a command that takes so long.
//!
//! # Who the culprit is
//! The workload with the largest sum of hold. Never a waiter: its own waiting is not hold. It
//! must have held at least `dominance` of all the time held (two equals have no culprit), and
//! enough to explain a quarter of the others' waiting. If it does not, the real holder is out of
//! sight (not watched, or its records were lost), and no one is accused in its place.
//!
//! # What hold assumes
//! That the calls of one device class are served one at a time, as under one lock. Two things
//! are charged to the wrong process:
//! - calls that block without holding anything, for times that vary (KFD's `WAIT_EVENTS`, DRM's fence
//!   waits): name them in `waiting_commands`, which leaves their time out on both sides,
//! - calls of independent GPUs that share one class: give each a `[[devices]]` entry (and with it a
//!   class) of its own.
//!
//! Where neither was done, leave this policy in observe mode for kfd and drm. Calls that fail are not
//! taken for service: the first who waited for one is charged that time as hold.
//!
//! A workload is judged as one: ranks of one tensor-parallel job stand or fall together, and
//! processes of one workload that wait for each other are no neighbour problem.
//!
//! # What it asks for
//! One alert an episode, and with it a lower CPU weight or a CPU ceiling on the culprit's
//! workload (`rung`), under a lease. Note that a ceiling relieves the driver only if the culprit
//! uses CPU time between its calls.
//!
//! While the throttle works the contention is gone, so its absence proves nothing: the lease is
//! renewed for `hold_ms` after the last contended window as long as the culprit goes on using
//! the device. Then it may expire. If the contention comes back within a minute, the next
//! episode begins with a hold twice as long (up to eightfold), so that it does not swing.
//! A culprit that ends, or makes no driver call for `idle_ms`, is not renewed at all.
#![deny(unsafe_code)]

mod baseline;
mod episode;
mod tally;
#[cfg(test)]
mod tests;

use baseline::Baselines;
use episode::{Episodes, Window};
use palisade_policy_sdk::abi::{Exit, Lost, SampleGpu, SampleGpuCommand};
use palisade_policy_sdk::state::{Reader, Writer};
use palisade_policy_sdk::{
    AbsentKinds, BoundedMap, Kind, Level, MS, Policy, ProcessId, Record, Requests, Settings, host,
};
use tally::{Command, Judge, Tally};

/// Device classes looked at; a host has a handful.
const MAX_CLASSES: usize = 16;
/// Commands that `waiting_commands` can name.
const MAX_WAITING: usize = 64;

/// What is asked for besides the alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rung {
    Alert,
    Weight(u32),
    Quota(u32),
}

/// The settings, checked. Times in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub rung: Rung,
    pub window_ns: u64,
    pub sustain: u32,
    pub lease_ms: u32,
    pub hold_ns: u64,
    pub idle_ns: u64,
    /// (class, command) of what waits by design.
    pub waiting: Vec<(u16, u16)>,
    pub judge: Judge,
}

/// The policy.
#[derive(Debug)]
pub struct GpuContention {
    options: Options,
    window_start_ns: Option<u64>,
    tallies: BoundedMap<u32, Tally>,
    baselines: Baselines,
    absent: AbsentKinds,
    episodes: Episodes,
    lost: u64,
}

impl Options {
    fn new(settings: &Settings) -> Result<Self, String> {
        #[derive(Clone, Copy)]
        enum Word {
            Alert,
            Weight,
            Quota,
        }
        let weight = settings.integer_in("weight", 1..=10_000)?;
        let quota = settings.integer_in("quota_permille", 1..=100_000)?;
        let words = [
            ("alert", Word::Alert),
            ("weight", Word::Weight),
            ("quota", Word::Quota),
        ];
        Ok(Self {
            rung: match settings.choice("rung", &words)? {
                Word::Alert => Rung::Alert,
                Word::Weight => Rung::Weight(weight),
                Word::Quota => Rung::Quota(quota),
            },
            window_ns: settings.duration_ms("window_ms")?,
            sustain: settings.integer_in("sustain", 1..=100)?,
            lease_ms: settings.integer_in("lease_ms", 100..=3_600_000)?,
            hold_ns: settings.integer_in("hold_ms", 0..=3_600_000_u64)? * MS,
            idle_ns: settings.duration_ms("idle_ms")?,
            waiting: settings
                .text("waiting_commands")?
                .split_whitespace()
                .take(MAX_WAITING)
                .map(class_and_command)
                .collect::<Result<_, _>>()?,
            judge: Judge {
                min_busy: settings.number_in("min_busy_ratio", 0.0..=1.0)?,
                contention: settings.number_in("contention_ratio", 0.0..=1.0)?,
                dominance: settings.number_in("dominance", 0.5..=1.0)?,
                min_processes: settings.integer_in("min_processes", 2..=1000)?,
                within_workload: settings.flag("within_workload")?,
                monitors: settings
                    .text("monitors")?
                    .split_whitespace()
                    .take(64)
                    .map(str::to_owned)
                    .collect(),
            },
        })
    }
}

/// Reads `2:0x0c`.
fn class_and_command(word: &str) -> Result<(u16, u16), String> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    word.split_once(':')
        .and_then(|(class, command)| Some((number(class)?, number(command)?)))
        .ok_or_else(|| format!("`waiting_commands`: {word:?} is not class:command, as in 2:0x0c"))
}

impl Policy for GpuContention {
    fn init(settings: &Settings) -> Result<Self, String> {
        Ok(Self {
            options: Options::new(settings)?,
            window_start_ns: None,
            tallies: BoundedMap::new(MAX_CLASSES),
            baselines: Baselines::default(),
            absent: AbsentKinds::default(),
            episodes: Episodes::new(MAX_CLASSES),
            lost: 0,
        })
    }

    fn on_batch(&mut self, now_ns: u64, records: &[Record], out: &mut Requests) {
        for record in records {
            if let Some(sample) = record.get::<SampleGpu>() {
                self.begin(record.header.time_ns, now_ns);
                self.tallies
                    .get_or_insert_with(sample.class, Tally::default)
                    .add(&record.header, &sample);
            } else if let Some(sample) = record.get::<SampleGpuCommand>() {
                self.begin(record.header.time_ns, now_ns);
                let command = self.command(&sample, now_ns);
                self.tallies
                    .get_or_insert_with(u32::from(sample.class), Tally::default)
                    .add_command(&record.header, &sample, command);
            } else if record.get::<Exit>().is_some() {
                self.episodes
                    .exited(ProcessId::from(&record.header), now_ns);
            } else if self.absent.update(record) {
                self.tell_absent();
            } else if let Some(lost) = record.get::<Lost>() {
                self.lost = self.lost.saturating_add(lost.count);
            }
        }
        self.advance(now_ns, out);
    }

    fn on_tick(&mut self, now_ns: u64, out: &mut Requests) {
        self.advance(now_ns, out);
    }

    /// The episodes: without them a reload would let a throttle lapse, or alert again.
    fn checkpoint(&self) -> Vec<u8> {
        let mut out = Writer::default();
        self.episodes.write(&mut out);
        out.into_bytes()
    }

    fn restore(&mut self, state_version: u32, state: &[u8]) -> Result<(), String> {
        if state.is_empty() {
            return Ok(());
        }
        if !(1..=2).contains(&state_version) {
            return Err(format!("state version {state_version} is unknown"));
        }
        let mut from = Reader::new(state);
        self.episodes = Episodes::read(&mut from, state_version, MAX_CLASSES)
            .filter(|_| from.is_at_end())
            .ok_or("the state is damaged")?;
        Ok(())
    }
}

impl GpuContention {
    fn command(&mut self, sample: &SampleGpuCommand, now_ns: u64) -> Command {
        if (self.options.waiting).contains(&(sample.class, sample.command)) {
            Command::Waits
        } else if self.baselines.of(sample, now_ns) {
            Command::Usual
        } else {
            Command::Unknown
        }
    }

    fn tell_absent(&self) {
        if self.absent.has(Kind::SampleGpu) {
            host::log(
                Level::Error,
                "driver calls cannot be seen on this kernel: contention goes unnoticed",
            );
        } else if self.absent.has(Kind::SampleGpuCommand) {
            host::log(
                Level::Warn,
                "driver calls cannot be told by command: judged by waiting alone",
            );
        }
    }

    /// The first call of a window says when it began: there may have been a long silence.
    fn begin(&mut self, time_ns: u64, now_ns: u64) {
        if self.tallies.is_empty() {
            let earliest = now_ns.saturating_sub(self.options.window_ns);
            let start = self.window_start_ns.unwrap_or(time_ns.min(now_ns));
            self.window_start_ns = Some(start.max(earliest));
        }
    }

    /// Closes the window if its time has come, and looks after the episodes.
    fn advance(&mut self, now_ns: u64, out: &mut Requests) {
        let length_ns = self
            .window_start_ns
            .map_or(0, |start| now_ns.saturating_sub(start));
        if length_ns >= self.options.window_ns {
            let window = Window {
                now_ns,
                length_ns,
                lost: std::mem::take(&mut self.lost),
            };
            let mut classes: Vec<u32> = self.tallies.iter().map(|(class, _)| *class).collect();
            classes.sort_unstable();
            for class in &classes {
                if let Some(tally) = self.tallies.get(class) {
                    self.episodes
                        .judge(&self.options, *class, &window, tally, out);
                }
            }
            self.tallies.clear();
            self.window_start_ns = (!classes.is_empty()).then_some(now_ns);
        }
        self.episodes.age(&self.options, now_ns, out);
    }
}

palisade_policy_sdk::policy!(GpuContention, "policy.toml");
