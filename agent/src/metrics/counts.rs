//! What the records of a process or workload add up to.
//!
//! Invariant: a record's numbers are added as they are; nothing is derived here, so that sums over
//! any stretch of time and any set of processes are sums of what was fed.

use super::formulas::Buckets;
use super::series::Tally;
use palisade_abi::{
    HISTOGRAM_BUCKETS, Histogram, Lost, Record, SampleCompleted, SampleCpu, SampleCuda,
    SampleFaults, SampleGpu, SampleGpuCommand, SampleInference, SampleMaps, SampleNet,
    SamplePressure, SampleReclaim, SampleSched, SampleSyscalls, kind,
};

macro_rules! counts {
    ($($(#[$doc:meta])* $field:ident,)*) => {
        /// Sums; times in nanoseconds unless their name says otherwise.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub(super) struct Counts {
            $($(#[$doc])* pub $field: u64,)*
            /// Waits on a run queue.
            pub runq: Buckets,
            /// Times to first byte.
            pub first_byte: Buckets,
            /// Latencies of driver calls.
            pub gpu_latency: Buckets,
        }

        impl Tally for Counts {
            fn add(&mut self, other: &Self) {
                $(self.$field = self.$field.saturating_add(other.$field);)*
                for (mine, others) in [
                    (&mut self.runq, &other.runq),
                    (&mut self.first_byte, &other.first_byte),
                    (&mut self.gpu_latency, &other.gpu_latency),
                ] {
                    for (bucket, count) in mine.iter_mut().zip(others) {
                        *bucket = bucket.saturating_add(*count);
                    }
                }
            }
        }
    };
}

counts! {
    voluntary,
    involuntary,
    migrations,
    cross_node,
    on_ns,
    off_ns,
    faults,
    calls,
    waiting,
    reclaim_ns,
    maps,
    mapped_bytes,
    requests,
    /// Requests that are over.
    completed,
    /// Their whole times.
    completed_ns,
    first_byte_ns,
    retransmits,
    sent_bytes,
    received_bytes,
    gpu_calls,
    gpu_ns,
    gpu_hold_ns,
    /// Calls of the seconds in which contention counts.
    contended_calls,
    /// The latency of those calls.
    contended_ns,
    /// Their excess over the baseline.
    contended_excess_ns,
    gpu_errors,
    oom_victims,
    cuda_blocked_ns,
    cuda_launches,
    cuda_failed_allocs,
    cpu_some_us,
    memory_some_us,
    memory_full_us,
    io_some_us,
    io_full_us,
    lost,
}

impl Counts {
    /// Adds what a record says; whether it says anything here.
    pub(super) fn absorb(&mut self, record: &Record) -> bool {
        let add = |to: &mut u64, count: u64| *to = to.saturating_add(count);
        if let Some(sample) = record.get::<SampleSched>() {
            add(&mut self.voluntary, sample.voluntary.into());
            add(&mut self.involuntary, sample.involuntary.into());
            add(&mut self.migrations, sample.migrations.into());
        } else if let Some(sample) = record.get::<SampleCpu>() {
            add(&mut self.on_ns, sample.on_ns);
            add(&mut self.off_ns, sample.off_ns);
            add(&mut self.cross_node, sample.cross_node.into());
        } else if let Some(part) = record.get::<Histogram>() {
            let buckets = match record.header.kind {
                kind::SAMPLE_FIRST_BYTE => &mut self.first_byte,
                kind::SAMPLE_GPU_LATENCY => &mut self.gpu_latency,
                _ => &mut self.runq,
            };
            let first = Histogram::first_bucket(record.header.flags);
            spread(buckets, first, &part);
        } else if let Some(sample) = record.get::<SampleFaults>() {
            add(&mut self.faults, sample.user);
            add(&mut self.faults, sample.kernel);
        } else if let Some(sample) = record.get::<SampleSyscalls>() {
            add(&mut self.calls, sample.calls);
            add(&mut self.waiting, sample.waiting);
        } else if let Some(sample) = record.get::<SampleReclaim>() {
            add(&mut self.reclaim_ns, sample.direct_ns);
            add(&mut self.reclaim_ns, sample.memcg_ns);
        } else if let Some(sample) = record.get::<SampleMaps>() {
            add(&mut self.maps, sample.maps.into());
            add(&mut self.mapped_bytes, sample.mapped_bytes);
        } else if let Some(sample) = record.get::<SampleCompleted>() {
            add(&mut self.completed, sample.requests);
            add(&mut self.completed_ns, sample.whole_ns);
        } else if let Some(sample) = record.get::<SampleInference>() {
            add(&mut self.requests, sample.requests.into());
            add(&mut self.first_byte_ns, sample.first_byte_ns);
            add(&mut self.retransmits, sample.retransmits.into());
        } else if let Some(sample) = record.get::<SampleNet>() {
            add(&mut self.sent_bytes, sample.sent_bytes);
            add(&mut self.received_bytes, sample.received_bytes);
        } else if let Some(sample) = record.get::<SampleGpu>() {
            add(&mut self.gpu_hold_ns, sample.hold_ns);
        } else if let Some(sample) = record.get::<SampleGpuCommand>() {
            add(&mut self.gpu_calls, sample.calls.into());
            add(&mut self.gpu_ns, sample.latency_ns);
        } else if let Some(sample) = record.get::<SampleCuda>() {
            add(&mut self.cuda_blocked_ns, sample.blocked_ns);
            add(&mut self.cuda_launches, sample.launches.into());
            add(&mut self.cuda_failed_allocs, sample.failed_allocs.into());
        } else if let Some(sample) = record.get::<SamplePressure>() {
            add(&mut self.cpu_some_us, sample.cpu_some_us.into());
            add(&mut self.memory_some_us, sample.memory_some_us.into());
            add(&mut self.memory_full_us, sample.memory_full_us.into());
            add(&mut self.io_some_us, sample.io_some_us.into());
            add(&mut self.io_full_us, sample.io_full_us.into());
        } else if let Some(lost) = record.get::<Lost>() {
            add(&mut self.lost, lost.count);
        } else {
            match record.header.kind {
                kind::GPU_ERROR => add(&mut self.gpu_errors, 1),
                kind::OOM_VICTIM => add(&mut self.oom_victims, 1),
                _ => return false,
            }
        }
        true
    }
}

/// Adds a part of a histogram; counts beyond the last bucket go into it.
fn spread(buckets: &mut Buckets, first: usize, part: &Histogram) {
    for (offset, count) in part.counts.iter().enumerate() {
        let index = first.saturating_add(offset).min(HISTOGRAM_BUCKETS - 1);
        buckets[index] = buckets[index].saturating_add(u64::from(*count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_abi::Header;

    #[test]
    fn parts_of_a_histogram_land_in_their_buckets() {
        let mut counts = Counts::default();
        let mut record = Record::new(
            Header {
                flags: 6,
                ..Header::default()
            },
            Histogram {
                counts: [1, 2, 3, 4, 5, 6],
            },
        );
        assert!(counts.absorb(&record));
        assert_eq!(counts.runq[6..12], [1, 2, 3, 4, 5, 6]);
        record.header.kind = kind::SAMPLE_FIRST_BYTE;
        record.header.flags = 22;
        assert!(counts.absorb(&record));
        assert_eq!(counts.first_byte[22..], [1, 20]);
        record.header.flags = u16::MAX;
        assert!(counts.absorb(&record));
        assert_eq!(counts.first_byte[23], 41);
        record.header.kind = kind::SAMPLE_GPU_LATENCY;
        for class in [0, 63] {
            record.header.flags = Histogram::flags(class, 12);
            assert_eq!(Histogram::class(record.header.flags), class);
            assert!(counts.absorb(&record));
        }
        assert_eq!(counts.gpu_latency[12..18], [2, 4, 6, 8, 10, 12]);
    }

    #[test]
    fn a_record_without_numbers_is_passed_over() {
        let mut record = Record::default();
        for number in [0, kind::EXEC, kind::GPU_EXIT, u16::MAX] {
            record.header.kind = number;
            assert!(!Counts::default().absorb(&record));
        }
    }
}
