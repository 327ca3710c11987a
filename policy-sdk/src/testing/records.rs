use crate::abi::{
    Absent, Body, Exec, Exit, Fork, GpuCall, Header, Histogram, Lost, MODEL_DIRECT, MapCall,
    ModelFile, SampleGpu, SampleMaps, SampleSched, kind,
};
use crate::{Kind, ProcessId, Record};

/// `ABSENT`: the agent says that these kinds cannot be had.
pub fn absent(kinds: &[Kind]) -> Record {
    let body = Absent {
        kinds: kinds.iter().fold(0, |bits, kind| bits | kind.bit()),
        ..Absent::default()
    };
    Record::new(Header::default(), body)
}

/// A scripted process: makes records with its header. The harness sets their time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proc {
    /// Pid and start.
    pub id: ProcessId,
    /// Workload (cgroup id).
    pub workload: u64,
}

impl Proc {
    /// A process of a workload; it started at `pid` seconds.
    pub fn new(pid: u32, workload: u64) -> Self {
        Self {
            id: ProcessId {
                pid,
                start_ns: u64::from(pid) * crate::SECOND,
            },
            workload,
        }
    }

    fn header(&self) -> Header {
        Header {
            workload: self.workload,
            start_ns: self.id.start_ns,
            pid: self.id.pid,
            tid: self.id.pid,
            ..Header::default()
        }
    }

    /// A record with that body, whose first kind it is of. For the bodies that belong to one kind
    /// alone, like `SampleCpu` (time on and off the CPU), `SampleFaults`, `SampleSyscalls`,
    /// `SampleReclaim`, `OomVictim`, `SamplePressure`, `SampleNet`, `SampleInference`,
    /// `SampleGpuCommand`, `SampleReads`, `SampleCuda` and `GpuError`.
    pub fn sample<B: Body>(&self, body: B) -> Record {
        Record::new(self.header(), body)
    }

    /// `SAMPLE_RUNQ` or `SAMPLE_FIRST_BYTE`: a part of a histogram from `first_bucket` on, a multiple
    /// of 6. Bucket 0 is under 1 µs, bucket n from 2ⁿ⁻¹ to under 2ⁿ µs.
    pub fn histogram(&self, kind: Kind, first_bucket: u16, counts: [u32; 6]) -> Record {
        let mut record = Record::new(self.header(), Histogram { counts });
        (record.header.kind, record.header.flags) = (kind as u16, first_bucket);
        record
    }

    /// `SAMPLE_GPU_LATENCY`: the same of the driver calls on a device class.
    pub fn gpu_latency(&self, class: u32, first_bucket: u16, counts: [u32; 6]) -> Record {
        let flags = Histogram::flags(class, first_bucket.into());
        self.histogram(Kind::SampleGpuLatency, flags, counts)
    }

    /// `SAMPLE_GPU`: driver calls on a device class in one sampling window.
    pub fn sample_gpu(&self, class: u32, calls: u32, latency_ns: u64, hold_ns: u64) -> Record {
        Record::new(
            self.header(),
            SampleGpu {
                calls,
                class,
                latency_ns,
                hold_ns,
            },
        )
    }

    /// `GPU_EXIT`: one driver call.
    pub fn gpu_exit(&self, device: u32, command: u32, latency_ns: u64, hold_ns: u64) -> Record {
        Record::new(
            self.header(),
            GpuCall {
                latency_ns,
                hold_ns,
                device,
                command,
            },
        )
    }

    /// `SAMPLE_SCHED`: scheduling in one sampling window.
    pub fn sample_sched(&self, body: SampleSched) -> Record {
        Record::new(self.header(), body)
    }

    /// `SAMPLE_MAPS`: memory maps in one sampling window.
    pub fn sample_maps(
        &self,
        maps: u32,
        unmaps: u32,
        mapped_bytes: u64,
        unmapped_bytes: u64,
    ) -> Record {
        Record::new(
            self.header(),
            SampleMaps {
                maps,
                unmaps,
                mapped_bytes,
                unmapped_bytes,
            },
        )
    }

    /// `MODEL_OPEN`: a model file of `bytes` was opened.
    pub fn model_open(&self, device: u32, inode: u64, bytes: u64) -> Record {
        Record::new(
            self.header(),
            ModelFile {
                inode,
                bytes,
                device,
                fd: 3,
            },
        )
    }

    /// `MODEL_OPEN` with `O_DIRECT`: past the page cache.
    pub fn model_open_direct(&self, device: u32, inode: u64, bytes: u64) -> Record {
        let mut record = self.model_open(device, inode, bytes);
        record.header.flags = MODEL_DIRECT;
        record
    }

    /// `MODEL_MAP`: `bytes` of a model file were mapped.
    pub fn model_map(&self, device: u32, inode: u64, bytes: u64) -> Record {
        let mut record = self.model_open(device, inode, bytes);
        record.header.kind = kind::MODEL_MAP;
        record
    }

    /// `MMAP`.
    pub fn mmap(&self, address: u64, bytes: u64) -> Record {
        Record::new(
            self.header(),
            MapCall {
                address,
                bytes,
                ..MapCall::default()
            },
        )
    }

    /// `MUNMAP`.
    pub fn munmap(&self, address: u64, bytes: u64) -> Record {
        let mut record = self.mmap(address, bytes);
        record.header.kind = kind::MUNMAP;
        record
    }

    /// `FORK`: this process forked `child`.
    pub fn fork(&self, child: ProcessId) -> Record {
        let body = Fork {
            child: child.pid,
            child_start_ns: child.start_ns,
            ..Fork::default()
        };
        Record::new(self.header(), body)
    }

    /// `EXEC`: a new program; names over 15 bytes are cut.
    pub fn exec(&self, parent: u32, comm: &str) -> Record {
        let mut body = Exec {
            parent,
            ..Exec::default()
        };
        for (to, from) in body.comm.iter_mut().take(15).zip(comm.bytes()) {
            *to = from;
        }
        Record::new(self.header(), body)
    }

    /// `EXIT` with a `wait` status.
    pub fn exit(&self, code: u32) -> Record {
        Record::new(
            self.header(),
            Exit {
                code,
                ..Exit::default()
            },
        )
    }

    /// `LOST`: `count` records of this process's workload were lost at `source`
    /// (index into [`crate::abi::LOSS_SOURCES`]).
    pub fn lost(&self, count: u64, source: u32) -> Record {
        Record::new(
            self.header(),
            Lost {
                count,
                source,
                ..Lost::default()
            },
        )
    }
}
