//! Alerts when a service takes long to begin its answers, as the kernel sees it: the 99th percentile
//! of the time from a request's last byte to the answer's first one, per workload.
//!
//! An example of a policy that judges windows. In order: what cannot be had is told, samples are
//! added up, a full window is judged, and nothing is said of what is too little to judge.
#![deny(unsafe_code)]

use palisade_policy_sdk::stats::{Cooldown, Log2Histogram};
use palisade_policy_sdk::{
    AbsentKinds, BoundedMap, Kind, Level, MS, Policy, Record, Request, Requests, Settings, Target,
    host,
};

/// Workloads looked at; those that served least recently go.
const WORKLOADS: usize = 256;

/// The policy. Its state is that of a few seconds, so none is handed over at a reload.
#[derive(Debug)]
pub struct SlowFirstByte {
    limit_us: u64,
    window_ns: u64,
    min_requests: u64,
    sustain: u32,
    absent: AbsentKinds,
    /// When the window began: with its first sample.
    since_ns: Option<u64>,
    /// The window's times in microseconds, by workload.
    times: BoundedMap<u64, Log2Histogram>,
    /// Slow windows in a row, by workload.
    slow: BoundedMap<u64, u32>,
    told: Cooldown<u64>,
}

impl Policy for SlowFirstByte {
    fn init(settings: &Settings) -> Result<Self, String> {
        let quiet_ms = settings.integer_in("quiet_ms", 0..=86_400_000_u64)?;
        Ok(Self {
            limit_us: settings.duration_ms("limit_ms")? / 1000,
            window_ns: settings.duration_ms("window_ms")?,
            min_requests: settings.integer_in("min_requests", 5..=1_000_000)?,
            sustain: settings.integer_in("sustain", 1..=100)?,
            absent: AbsentKinds::default(),
            since_ns: None,
            times: BoundedMap::new(WORKLOADS),
            slow: BoundedMap::new(WORKLOADS),
            told: Cooldown::new(quiet_ms * MS, WORKLOADS),
        })
    }

    fn on_batch(&mut self, now_ns: u64, records: &[Record], out: &mut Requests) {
        for record in records {
            if self.absent.update(record) && self.absent.has(Kind::SampleFirstByte) {
                let why = "times to the first byte cannot be had here: nothing will be said";
                host::log(Level::Warn, why);
            } else if record.kind() == Some(Kind::SampleFirstByte) {
                self.since_ns.get_or_insert(now_ns);
                self.times
                    .get_or_insert_with(record.header.workload, Log2Histogram::default)
                    .add_record(record);
            }
        }
        self.advance(now_ns, out);
    }

    /// Windows end without samples, too.
    fn on_tick(&mut self, now_ns: u64, out: &mut Requests) {
        self.advance(now_ns, out);
    }
}

impl SlowFirstByte {
    fn advance(&mut self, now_ns: u64, out: &mut Requests) {
        let is_full = |since_ns| now_ns.saturating_sub(since_ns) >= self.window_ns;
        if !self.since_ns.is_some_and(is_full) {
            return;
        }
        self.since_ns = None;
        let times = std::mem::replace(&mut self.times, BoundedMap::new(WORKLOADS));
        let mut workloads: Vec<_> = times.iter().collect();
        // A map has no order, and the same records must give the same requests.
        workloads.sort_unstable_by_key(|(workload, _)| **workload);
        for (workload, times) in workloads {
            self.judge(*workload, times, now_ns, out);
        }
    }

    fn judge(&mut self, workload: u64, times: &Log2Histogram, now_ns: u64, out: &mut Requests) {
        let Some(p99_us) = times.quantile(0.99) else {
            return;
        };
        if times.count() < self.min_requests {
            return;
        }
        // The quantile is the upper end of its bucket; whoever is accused took at least the lower one.
        let at_least_us = p99_us.div_ceil(2);
        if at_least_us < self.limit_us {
            self.slow.remove(&workload);
            return;
        }
        let windows = self.slow.get_or_insert_with(workload, || 0);
        *windows = windows.saturating_add(1);
        if *windows < self.sustain || !self.told.ready(workload, now_ns) {
            return;
        }
        let name = match host::workload_of(workload) {
            Some(info) => host::printable(&info.cgroup, 128),
            None => format!("Workload {workload}"),
        };
        let ms = |us: u64| us as f64 / 1e3;
        out.push(
            Request::alert(Target::Workload(workload))
                .reason(format!(
                    "{name} takes {:.0} ms or more to begin one answer in a hundred",
                    ms(at_least_us)
                ))
                .evidence("first byte, p99, at least", ms(at_least_us), "ms")
                .evidence("limit", ms(self.limit_us), "ms")
                .evidence("requests", times.count() as f64, "count")
                .evidence("slow windows in a row", f64::from(*windows), "count"),
        );
    }
}

palisade_policy_sdk::policy!(SlowFirstByte, "policy.toml");

#[cfg(test)]
mod tests {
    use super::SlowFirstByte;
    use palisade_policy_sdk::testing::{Harness, Proc, absent, endure, fake};
    use palisade_policy_sdk::{Kind, Request};

    /// Ten seconds of a service: so many answers in every second, quick ones and slow ones.
    fn window(harness: &mut Harness<SlowFirstByte>, quick: u32, slow: u32) -> Vec<Request> {
        let proc = Proc::new(100, 7);
        let mut requests = Vec::new();
        for _ in 0..10 {
            // 8 to 16 ms, and 1.05 to 2.1 s: buckets 14 and 21.
            harness.push(proc.histogram(Kind::SampleFirstByte, 12, [0, 0, quick, 0, 0, 0]));
            harness.push(proc.histogram(Kind::SampleFirstByte, 18, [0, 0, 0, slow, 0, 0]));
            requests.extend(harness.deliver());
            harness.advance_ms(1000);
        }
        requests.extend(harness.tick());
        requests
    }

    #[test]
    fn slow_answers_are_told_when_they_last_and_then_not_again_for_a_while() {
        let mut harness = Harness::new().unwrap();
        assert_eq!(window(&mut harness, 95, 5), []);
        let alerts = window(&mut harness, 95, 5);
        assert_eq!(alerts.len(), 1);
        assert_eq!(
            alerts[0].reason,
            "Workload 7 takes 1049 ms or more to begin one answer in a hundred"
        );
        assert_eq!(window(&mut harness, 95, 5), []);
        harness.advance_ms(600_000);
        assert_eq!(window(&mut harness, 95, 5).len(), 1);
    }

    #[test]
    fn what_is_quick_or_rare_or_over_soon_stays_quiet() {
        for (name, quick, slow) in [("quick", 100, 0), ("one in 200", 199, 1), ("few", 0, 4)] {
            let mut harness = Harness::new().unwrap();
            for _ in 0..10 {
                assert_eq!(window(&mut harness, quick, slow), [], "{name}");
            }
        }
        let mut harness = Harness::new().unwrap();
        for _ in 0..10 {
            assert_eq!(window(&mut harness, 95, 5), []);
            assert_eq!(window(&mut harness, 100, 0), []);
        }
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        let mut harness = Harness::<SlowFirstByte>::new().unwrap();
        harness.push(absent(&[Kind::SampleFirstByte]));
        harness.deliver();
        assert_eq!(fake::take_logs().len(), 1);
    }

    #[test]
    fn no_input_panics() {
        endure::<SlowFirstByte>(&[("limit_ms", 1.into()), ("window_ms", 100.into())], 200);
    }
}
