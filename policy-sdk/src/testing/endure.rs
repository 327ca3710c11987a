//! What no kernel sends, and a policy must survive all the same.

use super::{Harness, Manifest};
use crate::abi::Header;
use crate::{Described, Kind, Policy, Record, Setting};

/// Records in a batch, at most.
const BATCH: u64 = 20;
/// Batches in a round, at most.
const BATCHES: u64 = 20;

/// Gives a policy any records, times and states, and reloads it after each batch: nothing may panic, no request
/// may be one that the agent refuses, and each instance must take over the state of the one before.
///
/// The same on every run. Choose settings that make the policy quick to speak, or little of it is reached.
///
/// # Panics
/// As soon as the policy fails; standard error says in which round.
pub fn endure<P: Policy + Described>(settings: &[(&str, Setting)], rounds: u64) {
    for round in 0..rounds {
        let _told = Told(round);
        let mut harness = Harness::<P>::with(settings).expect("these settings are fine");
        let mut any = Any(round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let state: Vec<u8> = (0..any.below(300)).map(|_| any.next() as u8).collect();
        // Nonsense may be refused, and any instance must go on after that.
        let version = any.below(4) as u32;
        let _ = harness.restore(version, &state);
        for _ in 0..any.below(BATCHES) {
            let now_ns = any.time(harness.now_ns());
            let batch: Vec<Record> = (0..any.below(BATCH))
                .map(|_| any.record(harness.manifest(), now_ns))
                .collect();
            harness.deliver_raw(now_ns, &batch);
            harness.advance_ms(any.below(2000));
            harness.tick();
            harness.reload().expect("a policy takes over its own state");
        }
    }
}

/// Says which round it was when that ends in a panic.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("endure: round {}", self.0);
        }
    }
}

/// A sequence of numbers (xorshift64).
struct Any(u64);

impl Any {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Small, large, the largest, or anything.
    fn number(&mut self) -> u64 {
        match self.below(6) {
            0 | 1 => self.below(4),
            2 => 1 << self.below(64),
            3 => u64::MAX,
            4 => self.below(1 << 40),
            _ => self.next(),
        }
    }

    /// Mostly near `now_ns`.
    fn time(&mut self, now_ns: u64) -> u64 {
        match self.below(8) {
            0 => self.number(),
            _ => now_ns.wrapping_add(self.below(4 * crate::SECOND)),
        }
    }

    /// Mostly of a kind that the policy wants, from few processes and workloads.
    fn record(&mut self, manifest: &Manifest, now_ns: u64) -> Record {
        let wanted: Vec<u16> = Kind::ALL
            .iter()
            .filter(|kind| manifest.kinds & kind.bit() != 0)
            .map(|kind| *kind as u16)
            .collect();
        let kind = match self.below(4) {
            0 => self.below(70) as u16,
            _ => wanted
                .get(self.below(wanted.len().max(1) as u64) as usize)
                .copied()
                .unwrap_or_default(),
        };
        Record {
            header: Header {
                time_ns: self.time(now_ns),
                workload: self.below(3),
                start_ns: self.below(2),
                pid: self.below(4) as u32,
                kind,
                flags: self.number() as u16,
                ..Header::default()
            },
            body: [self.number(), self.number(), self.number()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::endure;
    use crate::abi::{SampleGpu, SampleMaps};
    use crate::{Described, Policy, Record, Request, Requests, Settings, Target};

    /// Fails as its type says, on a record that it wants.
    struct Faulty<const FAULT: u8>;

    const NONE: u8 = 0;
    const PANICS: u8 = 1;
    const NONSENSE: u8 = 2;
    const FORGETFUL: u8 = 3;

    impl<const FAULT: u8> Policy for Faulty<FAULT> {
        fn init(_: &Settings) -> Result<Self, String> {
            Ok(Self)
        }

        fn on_batch(&mut self, _: u64, records: &[Record], out: &mut Requests) {
            for record in records {
                // Not subscribed to, and it comes all the same.
                let Some(maps) = record.get::<SampleMaps>() else {
                    let _ = record.get::<SampleGpu>();
                    continue;
                };
                assert!(FAULT != PANICS || maps.mapped_bytes != u64::MAX);
                let value = if FAULT == NONSENSE { f64::NAN } else { 1.0 };
                let alert = Request::alert(Target::Workload(1)).reason("a map");
                out.push(alert.evidence("maps", value, "count"));
            }
        }

        fn checkpoint(&self) -> Vec<u8> {
            vec![7]
        }

        fn restore(&mut self, _: u32, state: &[u8]) -> Result<(), String> {
            (FAULT != FORGETFUL || state != [7])
                .then_some(())
                .ok_or_else(|| "not mine".to_owned())
        }
    }

    impl<const FAULT: u8> Described for Faulty<FAULT> {
        const MANIFEST: &'static str = include_str!("../../examples/big-maps.toml");
    }

    #[test]
    fn faults_are_found_and_their_absence_is_too() {
        endure::<Faulty<NONE>>(&[], 50);
        let fails = |policy: fn()| std::panic::catch_unwind(policy).is_err();
        assert!(fails(|| endure::<Faulty<PANICS>>(&[], 50)));
        assert!(fails(|| endure::<Faulty<NONSENSE>>(&[], 50)));
        assert!(fails(|| endure::<Faulty<FORGETFUL>>(&[], 50)));
    }
}
