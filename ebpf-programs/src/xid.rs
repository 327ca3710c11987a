//! Errors that the NVIDIA driver reports (Xid).
//!
//! They belong to a device, not to a process: the driver reports them from whatever task happens to
//! run its code. So they are recorded for the whole host, whoever is watched.

use crate::{
    emit::{now, record},
    filter::{Who, config, wanted},
    kernel::{Address, Task, cgroup_id},
};
use aya_ebpf::{Global, macros::raw_tracepoint, programs::RawTracePointContext};
use palisade_abi::{GpuError, Kind, PciOffsets, kind};

/// Offsets of kernel structure members.
#[unsafe(no_mangle)]
pub static OFFSETS_PCI: Global<PciOffsets> = Global::new(PciOffsets {
    dev_bus: 0,
    dev_devfn: 0,
    bus_number: 0,
    bus_domain: 0,
    domain_is_behind: 0,
    sysdata_domain: 0,
});

/// One member of [`OFFSETS_PCI`]; see `tables::offset`.
macro_rules! pci_offset {
    ($member:ident) => {{
        let table = (&raw const OFFSETS_PCI).cast::<PciOffsets>();
        // SAFETY: as for `tables::offset`.
        unsafe { core::ptr::read_volatile(&raw const (*table).$member) as usize }
    }};
}

/// `nvidia_dev_xid`, a raw tracepoint of the driver's module: (PCI device, code, message)
#[raw_tracepoint(tracepoint = "nvidia_dev_xid")]
pub fn gpu_error(ctx: RawTracePointContext) -> i32 {
    let _ = reported(Address(ctx.arg(0)), ctx.arg(1));
    0
}

#[inline(always)]
fn reported(device: Address, code: u32) -> Option<()> {
    if !wanted(config()?, Kind::GpuError) {
        return None;
    }
    let body = GpuError {
        code,
        pci: pci_address(device).unwrap_or(u32::MAX),
        reserved: [0; 2],
    };
    record(&running(), now(), kind::GPU_ERROR, 0, body);
    Some(())
}

/// The task that runs now, watched or not; what cannot be told is 0.
#[inline(always)]
fn running() -> Who {
    let task = Task::current();
    Who {
        workload: task.css().and_then(cgroup_id).unwrap_or(0),
        start_ns: task.leader().and_then(Task::own_start).unwrap_or(0),
        pid: task.pid().unwrap_or(0),
        tid: task.tid().unwrap_or(0),
    }
}

/// Domain << 16 | bus << 8 | device << 3 | function.
#[inline(always)]
fn pci_address(device: Address) -> Option<u32> {
    let bus = device.follow(pci_offset!(dev_bus))?;
    let domain: u32 = if pci_offset!(domain_is_behind) == 1 {
        bus.follow(pci_offset!(bus_domain))?
            .read(pci_offset!(sysdata_domain))?
    } else {
        bus.read(pci_offset!(bus_domain))?
    };
    let number: u8 = bus.read(pci_offset!(bus_number))?;
    let devfn: u32 = device.read(pci_offset!(dev_devfn))?;
    Some(domain << 16 | (number as u32) << 8 | devfn & 0xff)
}
