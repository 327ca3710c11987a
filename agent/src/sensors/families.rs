//! The counter maps, and which records the differences of each become.
//!
//! A family is one map of free-running counters, most of them per CPU. What is common to all of them (taking
//! differences, forgetting ended processes) is in [`super::window`]; here is what differs.

use super::{
    SensorError,
    baseline::Baselines,
    counter_map::CounterMap,
    quotas::Quotas,
    window::{Collect, Key, Process, Told},
};
use aya::Ebpf;
use bytemuck::Pod;
use palisade_abi::{
    CounterFamily, Counters, CountersKey, CudaCounters, FaultCounters, GpuCommandCounters,
    GpuCommandKey, GpuCounters, GpuCountersKey, GpuLatencyCounters, HISTOGRAM_BUCKETS, Histogram,
    HistogramCounters, HistogramKey, Kind, NetCounters, QUOTA_TABLES, ReadCounters, ReadKey,
    ReclaimCounters, SampleCompleted, SampleCpu, SampleCuda, SampleFaults, SampleGpu,
    SampleGpuCommand, SampleInference, SampleMaps, SampleNet, SampleReads, SampleReclaim,
    SampleSched, SampleSyscalls, SyscallCounters,
};
use std::fmt::{self, Debug};

macro_rules! key {
    ($($key:ty),*) => {$(
        impl Key for $key {
            fn process(&self) -> Process {
                (self.pid, self.start_ns)
            }
            fn workload(&self) -> u64 {
                self.workload
            }
        }
    )*};
}
key!(
    CountersKey,
    GpuCountersKey,
    HistogramKey,
    GpuCommandKey,
    ReadKey
);

/// Names of the maps, and for how many entries a process each has room.
pub(super) const ROOM: &[(&str, u32)] = &[
    ("COUNTERS", 1),
    // By class, of which few processes use more.
    ("GPU_LATENCIES", 4),
    ("HISTOGRAMS", 2),
    ("FAULTS", 1),
    ("SYSCALLS", 1),
    ("RECLAIM", 1),
    ("NET", 1),
    ("GPU_COMMANDS", 4),
    ("READS", 1),
    ("CUDA", 1),
    // One for each table that is keyed finer than by process.
    ("QUOTAS", QUOTA_TABLES),
];

/// For how many entries a process a map has room.
pub(super) fn room(map: &str) -> u32 {
    let found = ROOM.iter().find(|(name, _)| *name == map);
    found.map_or(0, |(_, each)| *each)
}

/// Every family, with its map taken out of the object.
pub(super) fn all(ebpf: &mut Ebpf) -> Result<Vec<Box<dyn Collect>>, SensorError> {
    use Kind as K;
    Ok(vec![
        family(
            ebpf,
            "COUNTERS",
            // Without a sample of its own: whoever has a histogram of waits has counters, too.
            &[K::SampleSched, K::SampleMaps, K::SampleCpu, K::SampleRunq],
            counters,
        )?,
        family(ebpf, "GPU_COUNTERS", &[K::SampleGpu], gpu)?,
        family(ebpf, "GPU_LATENCIES", &[K::SampleGpuLatency], gpu_latency)?,
        family(
            ebpf,
            "HISTOGRAMS",
            &[K::SampleRunq, K::SampleFirstByte],
            histogram,
        )?,
        family(ebpf, "FAULTS", &[K::SampleFaults], faults)?,
        family(ebpf, "SYSCALLS", &[K::SampleSyscalls], syscalls)?,
        family(ebpf, "RECLAIM", &[K::SampleReclaim], reclaim)?,
        family(
            ebpf,
            "NET",
            &[K::SampleNet, K::SampleInference, K::SampleCompleted],
            net,
        )?,
        family(ebpf, "GPU_COMMANDS", &[K::SampleGpuCommand], gpu_command)?,
        Box::new(Baselines::new(ebpf)?),
        Box::new(Quotas::new(ebpf)?),
        family(ebpf, "READS", &[K::SampleReads], reads)?,
        family(ebpf, "CUDA", &[K::SampleCuda], cuda)?,
    ])
}

/// A counter map whose differences are told as records, each for itself.
struct Family<K: Pod, V: Pod> {
    map: CounterMap<K, V>,
    kinds: u64,
    tell: fn(&K, &V, &mut Told<'_>),
}

fn family<K, V>(
    ebpf: &mut Ebpf,
    map: &'static str,
    kinds: &[Kind],
    tell: fn(&K, &V, &mut Told<'_>),
) -> Result<Box<dyn Collect>, SensorError>
where
    K: Key + Debug + 'static,
    V: CounterFamily + PartialEq + Send + Debug + 'static,
{
    Ok(Box::new(Family {
        map: CounterMap::new(ebpf, map)?,
        kinds: kinds.iter().fold(0, |bits, kind| bits | kind.bit()),
        tell,
    }))
}

impl<K: Pod + Debug, V: Pod + Debug> Debug for Family<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family")
            .field("kinds", &self.kinds)
            .field("map", &self.map)
            .finish_non_exhaustive()
    }
}

impl<K, V> Collect for Family<K, V>
where
    K: Key + Debug,
    V: CounterFamily + PartialEq + Send + Debug,
{
    fn kinds(&self) -> u64 {
        self.kinds
    }

    fn collect(&mut self, window: u64, told: &mut Told<'_>) {
        let (added, tell) = (told.added, self.tell);
        self.map.read(window, added.as_ref(), |key, counts| {
            tell(key, counts, told);
        });
    }

    fn forget(&mut self, window: u64, due: &dyn Fn(Process) -> bool) {
        self.map.forget(window, due);
    }

    fn len(&self) -> usize {
        self.map.len()
    }

    fn unread(&self) -> u64 {
        self.map.unread()
    }
}

fn counters(key: &CountersKey, counts: &Counters, told: &mut Told<'_>) {
    told.tell(
        key,
        Kind::SampleSched,
        SampleSched {
            voluntary: narrow(counts.voluntary),
            involuntary: narrow(counts.involuntary),
            migrations: narrow(counts.migrations),
            runq_waits: narrow(counts.runq_waits),
            runq_ns: counts.runq_ns,
        },
    );
    told.tell(
        key,
        Kind::SampleMaps,
        SampleMaps {
            maps: narrow(counts.maps),
            unmaps: narrow(counts.unmaps),
            mapped_bytes: counts.mapped_bytes,
            unmapped_bytes: counts.unmapped_bytes,
        },
    );
    told.tell(
        key,
        Kind::SampleCpu,
        SampleCpu {
            on_ns: counts.on_ns,
            off_ns: counts.off_ns,
            off_waits: narrow(counts.off_waits),
            cross_node: narrow(counts.cross_node),
        },
    );
}

fn gpu(key: &GpuCountersKey, counts: &GpuCounters, told: &mut Told<'_>) {
    told.tell(
        key,
        Kind::SampleGpu,
        SampleGpu {
            calls: narrow(counts.calls),
            class: key.class,
            latency_ns: counts.latency_ns,
            hold_ns: counts.hold_ns,
        },
    );
}

fn histogram(key: &HistogramKey, counts: &HistogramCounters, told: &mut Told<'_>) {
    let Some(kind) = u16::try_from(key.kind).ok().and_then(Kind::from_raw) else {
        return;
    };
    parts(key, kind, 0, counts, told);
}

fn gpu_latency(key: &GpuCountersKey, counts: &GpuLatencyCounters, told: &mut Told<'_>) {
    parts(
        key,
        Kind::SampleGpuLatency,
        key.class,
        &counts.histogram,
        told,
    );
}

/// A histogram in as many records as it takes; see [`Histogram`].
fn parts(key: &impl Key, kind: Kind, class: u32, counts: &HistogramCounters, told: &mut Told<'_>) {
    const PART: usize = HISTOGRAM_BUCKETS / 4;
    for (part, counts) in counts.counts.chunks_exact(PART).enumerate() {
        let mut body = Histogram::default();
        for (count, total) in body.counts.iter_mut().zip(counts) {
            *count = narrow(*total);
        }
        told.tell_flagged(key, kind, Histogram::flags(class, part * PART), body);
    }
}

fn faults(key: &CountersKey, counts: &FaultCounters, told: &mut Told<'_>) {
    told.tell(
        key,
        Kind::SampleFaults,
        SampleFaults {
            user: counts.user,
            kernel: counts.kernel,
            reserved: 0,
        },
    );
}

fn syscalls(key: &CountersKey, counts: &SyscallCounters, told: &mut Told<'_>) {
    told.tell(
        key,
        Kind::SampleSyscalls,
        SampleSyscalls {
            calls: counts.calls,
            waiting: counts.waiting,
            reserved: 0,
        },
    );
}

fn reclaim(key: &CountersKey, counts: &ReclaimCounters, told: &mut Told<'_>) {
    told.tell(
        key,
        Kind::SampleReclaim,
        SampleReclaim {
            direct_ns: counts.direct_ns,
            memcg_ns: counts.memcg_ns,
            direct: narrow(counts.direct),
            memcg: narrow(counts.memcg),
        },
    );
}

fn net(key: &CountersKey, counts: &NetCounters, told: &mut Told<'_>) {
    told.tell(
        key,
        Kind::SampleNet,
        SampleNet {
            sent_bytes: counts.sent_bytes,
            received_bytes: counts.received_bytes,
            sends: narrow(counts.sends),
            receives: narrow(counts.receives),
        },
    );
    told.tell(
        key,
        Kind::SampleInference,
        SampleInference {
            first_byte_ns: counts.first_byte_ns,
            whole_ns: counts.whole_ns,
            requests: narrow(counts.requests),
            retransmits: narrow(counts.retransmits),
        },
    );
    told.tell(
        key,
        Kind::SampleCompleted,
        SampleCompleted {
            whole_ns: counts.whole_ns,
            requests: counts.completed,
            reserved: 0,
        },
    );
}

fn gpu_command(key: &GpuCommandKey, counts: &GpuCommandCounters, told: &mut Told<'_>) {
    told.tell(
        key,
        Kind::SampleGpuCommand,
        SampleGpuCommand {
            latency_ns: counts.latency_ns,
            excess_ns: counts.excess_ns,
            calls: narrow(counts.calls),
            command: key.command,
            class: key.class,
        },
    );
}

fn reads(key: &ReadKey, counts: &ReadCounters, told: &mut Told<'_>) {
    told.tell(
        key,
        Kind::SampleReads,
        SampleReads {
            inode: key.inode,
            bytes: counts.bytes,
            device: key.device,
            reads: narrow(counts.reads),
        },
    );
}

fn cuda(key: &CountersKey, counts: &CudaCounters, told: &mut Told<'_>) {
    told.tell(
        key,
        Kind::SampleCuda,
        SampleCuda {
            blocked_ns: counts.blocked_ns,
            launches: narrow(counts.launches),
            syncs: narrow(counts.syncs),
            copies: narrow(counts.copies),
            failed_allocs: narrow(counts.failed_allocs),
        },
    );
}

/// A window's count in 32 bits; more than 4 billion events in one window do not happen.
fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
