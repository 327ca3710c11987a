//! Tests of the policy host as a whole, with small guests written in WebAssembly text.

#![allow(clippy::unwrap_used)]

mod compiler;
mod guest;
mod guests_dir;
mod hostile;
mod load;
mod reload;
mod sync;

use super::{Engine, EngineOptions, Limits, NoLookup, PolicyEvent, PolicySource};
use crate::batch::Batch;
use palisade_abi::{Exec, Header, Record};
use palisade_core::Power;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const SECOND: u64 = 1_000_000_000;

/// An engine with its events, in a folder of its own.
struct Bed {
    engine: Engine,
    events: Receiver<PolicyEvent>,
    seen: Vec<PolicyEvent>,
    folder: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let (sender, events) = channel();
        let options = EngineOptions {
            debounce: Duration::from_millis(30),
            ..Default::default()
        };
        let engine = Engine::new(options, Arc::new(NoLookup), sender).unwrap();
        Self {
            engine,
            events,
            seen: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Writes `bytes` to the file of policy `name`.
    fn write(&self, name: &str, bytes: &[u8]) {
        let new = self.folder.path().join(format!(".{name}.new"));
        std::fs::write(&new, bytes).unwrap();
        std::fs::rename(new, self.folder.path().join(name)).unwrap();
    }

    fn source(&self, name: &str) -> PolicySource {
        source(name, &self.folder.path().join(name))
    }

    fn load(&self, name: &str, bytes: &[u8]) {
        self.write(name, bytes);
        self.engine.load(self.source(name)).unwrap();
    }

    fn publish(&self, batch: &Batch) {
        self.engine.publisher().publish(batch, |_, _| {});
    }

    /// Waits for an event that `pick` picks something from. What comes before is kept in `seen`.
    fn until<T>(&mut self, what: &str, mut pick: impl FnMut(&PolicyEvent) -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_mins(1);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(event) = self.events.recv_timeout(left) else {
                panic!("no {what} within a minute; seen: {:#?}", self.seen);
            };
            let picked = pick(&event);
            self.seen.push(event);
            if let Some(picked) = picked {
                return picked;
            }
        }
    }

    /// Waits until `name` has been ejected, if it has not been yet.
    fn until_ejected(&mut self, name: &str) {
        let ejected = |event: &PolicyEvent| match event {
            PolicyEvent::Ejected { policy, .. } => (policy.name == name).then_some(()),
            _ => None,
        };
        if !self.seen.iter().any(|event| ejected(event).is_some()) {
            self.until(&format!("ejection of {name}"), ejected);
        }
    }

    /// Waits until `name` has told that it saw `count` records, in order and without gaps.
    fn until_count(&mut self, name: &str, count: u64) {
        self.until(&format!("report of {count} records from {name}"), |event| {
            let (seen, ordered) = report(event, name)?;
            assert!(
                ordered,
                "{name} saw a gap or a duplicate before record {seen}"
            );
            (seen >= count).then_some(())
        });
    }

    /// All events from now on until the engine has ended.
    fn finish(mut self) -> Vec<PolicyEvent> {
        self.engine.shutdown();
        self.seen.extend(self.events.try_iter());
        self.seen
    }
}

/// What the counting guest says: how many records it saw, and whether all were in order.
fn report(event: &PolicyEvent, name: &str) -> Option<(u64, bool)> {
    let PolicyEvent::Output {
        policy, requests, ..
    } = event
    else {
        return None;
    };
    if policy.name != name {
        return None;
    }
    let request = requests.last()?;
    let palisade_core::Target::Workload(count) = request.target else {
        return None;
    };
    Some((count.0, request.severity == palisade_core::Severity::Info))
}

fn source(name: &str, path: &Path) -> PolicySource {
    PolicySource {
        name: name.to_owned(),
        path: path.to_owned(),
        settings: toml::Table::new(),
        max_power: Power::Throttle,
        limits: Limits {
            call_deadline: Duration::from_millis(50),
            ..Limits::default()
        },
    }
}

/// A record that carries a number for the counting guest.
fn numbered(number: u64) -> Record {
    let header = Header {
        time_ns: number,
        ..Header::default()
    };
    let mut record = Record::new(header, Exec::default());
    record.body[0] = number;
    record
}

/// Makes hostile guests do what they do.
fn poison(number: u64) -> Record {
    let mut record = numbered(number);
    record.body[1] = guest::POISON;
    record
}

/// Batches of numbered records, one number after the other.
#[derive(Default)]
struct Numbers {
    seq: u64,
    next: u64,
}

impl Numbers {
    fn batch(&mut self, records: usize, now_ns: u64) -> Batch {
        self.with(records, now_ns, numbered)
    }

    fn with(&mut self, records: usize, now_ns: u64, make: impl Fn(u64) -> Record) -> Batch {
        self.seq += 1;
        let records = (0..records).map(|_| {
            self.next += 1;
            make(self.next)
        });
        let records: Vec<_> = records.collect();
        Batch {
            seq: self.seq,
            now_ns,
            records: records.into(),
            window_end: false,
        }
    }
}
