//! The metrics: what each is called, its unit, and the kinds of record that it needs.
//!
//! Invariant: an id, once published, keeps its meaning. docs/metrics.md has a row for each; a test
//! compares the two.

use palisade_abi::Kind;

/// A metric's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Short name: the key in JSON, and what `palisade top` sorts by.
    pub id: &'static str,
    /// OpenTelemetry's name where there is one, else one below `palisade.`.
    pub name: &'static str,
    /// An attribute that tells it from others of that name.
    pub attribute: Option<(&'static str, &'static str)>,
    /// Unit as OpenTelemetry writes it (UCUM). Of a counter, its rate: per second of the window.
    pub unit: &'static str,
    /// Bits of [`Kind::bit`]: without all of them it is absent.
    pub kinds: u64,
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $variant:ident: $id:literal, $name:literal, $attribute:expr, $unit:literal, [$($kind:ident),+];)*) => {
        /// A metric of a process or workload.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Metric {
            $($(#[$doc])* $variant,)*
        }

        impl Metric {
            /// All, in the order of their numbers.
            pub const ALL: &'static [Metric] = &[$(Metric::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// What it is.
            pub const fn info(self) -> Info {
                match self {
                    $(Metric::$variant => Info {
                        id: $id,
                        name: $name,
                        attribute: $attribute,
                        unit: $unit,
                        kinds: 0 $(| Kind::$kind.bit())+,
                    },)*
                }
            }
        }
    };
}

const fn of(key: &'static str, value: &'static str) -> Option<(&'static str, &'static str)> {
    Some((key, value))
}

metrics! {
    /// CPUs in use.
    Cpu: "cpu", "process.cpu.time", None, "s/s", [SampleCpu];
    /// Threads off the CPU by their own doing, on average.
    OffCpu: "off_cpu", "palisade.off_cpu.time", None, "s/s", [SampleCpu];
    /// Half of the waits on a run queue are shorter.
    RunqP50: "runq_p50", "palisade.runqueue.latency", of("quantile", "0.5"), "s", [SampleRunq];
    /// 1 % of the waits on a run queue are longer.
    RunqP99: "runq_p99", "palisade.runqueue.latency", of("quantile", "0.99"), "s", [SampleRunq];
    /// Switches where a thread gave up the CPU.
    SwitchesVoluntary: "switches_voluntary", "process.context_switches",
        of("process.context_switch.type", "voluntary"), "{context_switch}/s", [SampleSched];
    /// Switches where a thread was preempted.
    SwitchesInvoluntary: "switches_involuntary", "process.context_switches",
        of("process.context_switch.type", "involuntary"), "{context_switch}/s", [SampleSched];
    /// Preemptions per request.
    SwitchesPerInference: "switches_per_inference", "palisade.inference.context_switches", None,
        "{context_switch}/{inference}", [SampleSched, SampleCompleted];
    /// Moves to another NUMA node per second on a CPU.
    MigrationsCross: "migrations_cross_node", "palisade.thread.migrations",
        of("palisade.numa", "cross_node"), "{migration}/s", [SampleCpu];
    /// Moves within a NUMA node per second on a CPU.
    MigrationsSame: "migrations_same_node", "palisade.thread.migrations",
        of("palisade.numa", "same_node"), "{migration}/s", [SampleSched, SampleCpu];
    /// System calls that do work, per second.
    Syscalls: "syscalls", "palisade.syscalls", None, "{syscall}/s", [SampleSyscalls];
    /// System calls that do work, per request.
    SyscallsPerInference: "syscalls_per_inference", "palisade.inference.syscalls", None,
        "{syscall}/{inference}", [SampleSyscalls, SampleCompleted];
    /// Share of system calls that wait or yield and are left out.
    SyscallsWaiting: "syscalls_waiting_share", "palisade.syscalls.waiting_share", None, "1", [SampleSyscalls];
    /// Requests answered.
    Requests: "requests", "palisade.inference.requests", None, "{inference}/s", [SampleInference];
    /// Half of the times to first byte are shorter.
    FirstByteP50: "first_byte_p50", "palisade.inference.first_byte", of("quantile", "0.5"), "s", [SampleFirstByte];
    /// 1 % of the times to first byte are longer.
    FirstByteP99: "first_byte_p99", "palisade.inference.first_byte", of("quantile", "0.99"), "s", [SampleFirstByte];
    /// Mean whole time of a request.
    RequestTime: "request_time", "palisade.inference.duration", None, "s", [SampleCompleted];
    /// Requests under way at a time, on average.
    RequestsInFlight: "requests_in_flight", "palisade.inference.in_flight", None, "{inference}",
        [SampleInference, SampleCompleted];
    /// Bytes sent over TCP.
    NetSent: "net_sent", "process.network.io", of("network.io.direction", "transmit"), "By/s", [SampleNet];
    /// Bytes received over TCP.
    NetReceived: "net_received", "process.network.io", of("network.io.direction", "receive"), "By/s", [SampleNet];
    /// Segments sent again.
    Retransmits: "retransmits", "palisade.tcp.retransmits", None, "{segment}/s", [SampleInference];
    /// Page faults.
    PageFaults: "page_faults", "process.paging.faults", None, "{fault}/s", [SampleFaults];
    /// Memory maps made.
    Maps: "maps", "palisade.memory.maps", None, "{map}/s", [SampleMaps];
    /// Bytes mapped.
    MappedBytes: "mapped_bytes", "palisade.memory.mapped", None, "By/s", [SampleMaps];
    /// Threads stalled in reclaim, on average.
    ReclaimStall: "reclaim_stall", "palisade.memory.reclaim.stall", None, "1", [SampleReclaim];
    /// Processes chosen by the OOM killer.
    OomVictims: "oom_victims", "palisade.memory.oom_victims", None, "{process}", [OomVictim];
    /// Share of time in which some task waited for a CPU.
    PressureCpu: "pressure_cpu", "palisade.pressure.cpu", of("psi", "some"), "1", [SamplePressure];
    /// Share of time in which some task was stalled for memory.
    PressureMemory: "pressure_memory", "palisade.pressure.memory", of("psi", "some"), "1", [SamplePressure];
    /// Share of time in which all tasks were stalled for memory.
    PressureMemoryFull: "pressure_memory_full", "palisade.pressure.memory", of("psi", "full"), "1", [SamplePressure];
    /// Share of time in which some task waited for I/O.
    PressureIo: "pressure_io", "palisade.pressure.io", of("psi", "some"), "1", [SamplePressure];
    /// Share of time in which all tasks waited for I/O.
    PressureIoFull: "pressure_io_full", "palisade.pressure.io", of("psi", "full"), "1", [SamplePressure];
    /// Driver calls.
    GpuCalls: "gpu_calls", "palisade.gpu.driver.calls", None, "{call}/s", [SampleGpuCommand];
    /// Time in driver calls.
    GpuTime: "gpu_time", "palisade.gpu.driver.time", None, "s/s", [SampleGpuCommand];
    /// Half of the driver calls are shorter.
    GpuCallP50: "gpu_call_p50", "palisade.gpu.driver.latency", of("quantile", "0.5"), "s", [SampleGpuLatency];
    /// 1 % of the driver calls are longer.
    GpuCallP99: "gpu_call_p99", "palisade.gpu.driver.latency", of("quantile", "0.99"), "s", [SampleGpuLatency];
    /// The part of it that was the calls' own work.
    GpuHold: "gpu_hold", "palisade.gpu.driver.hold", None, "s/s", [SampleGpu];
    /// Share of the driver time that is over the baseline.
    GpuContention: "gpu_contention", "palisade.gpu.driver.contention", None, "1", [SampleGpuCommand];
    /// Errors that the driver reported.
    GpuErrors: "gpu_errors", "hw.errors", of("hw.type", "gpu"), "{error}", [GpuError];
    /// Model file bytes taken in, as loads per process in 10 minutes.
    ModelReloads: "model_reloads", "palisade.model.reloads", None, "{load}", [ModelMap, SampleReads];
    /// Time of the latest model load.
    ModelLoadTime: "model_load_time", "palisade.model.load_time", None, "s", [ModelOpen, ModelMap, SampleReads];
    /// Time blocked in CUDA calls.
    CudaBlocked: "cuda_blocked", "palisade.cuda.blocked", None, "s/s", [SampleCuda];
    /// Kernel and graph launches.
    CudaLaunches: "cuda_launches", "palisade.cuda.launches", None, "{launch}/s", [SampleCuda];
    /// CUDA allocations that failed.
    CudaFailedAllocs: "cuda_failed_allocs", "palisade.cuda.failed_allocs", None, "{allocation}", [SampleCuda];
}

impl Metric {
    /// The metric of that id.
    pub fn from_id(id: &str) -> Option<Metric> {
        Self::ALL
            .iter()
            .copied()
            .find(|metric| metric.info().id == id)
    }
}

/// What each second of the last minute is drawn for.
pub const GRAPHED: &[Metric] = &[
    Metric::Cpu,
    Metric::RunqP99,
    Metric::SwitchesInvoluntary,
    Metric::Requests,
    Metric::FirstByteP99,
    Metric::Syscalls,
    Metric::PageFaults,
    Metric::GpuTime,
    Metric::GpuContention,
    Metric::PressureMemory,
];

/// The kinds that a look at the metrics subscribes to. Left out: `sample-cuda`, whose probes cost the
/// watched service about 2 µs a call. It is shown while a policy subscribes to it.
pub const KINDS: u64 = Kind::SampleSched.bit()
    | Kind::SampleCpu.bit()
    | Kind::SampleRunq.bit()
    | Kind::SampleMaps.bit()
    | Kind::SampleFaults.bit()
    | Kind::SampleSyscalls.bit()
    | Kind::SampleReclaim.bit()
    | Kind::SamplePressure.bit()
    | Kind::SampleNet.bit()
    | Kind::SampleInference.bit()
    | Kind::SampleCompleted.bit()
    | Kind::SampleFirstByte.bit()
    | Kind::SampleGpu.bit()
    | Kind::SampleGpuCommand.bit()
    | Kind::SampleGpuLatency.bit()
    | Kind::SampleReads.bit()
    | Kind::ModelOpen.bit()
    | Kind::ModelMap.bit()
    | Kind::OomVictim.bit()
    | Kind::GpuError.bit()
    | Kind::Exit.bit();
