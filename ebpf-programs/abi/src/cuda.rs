//! Maps and globals of the CUDA and driver-error sensors.

use bytemuck::{Pod, Zeroable};

/// A blocking CUDA call under way, keyed by `pid << 32 | tid`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CudaCall {
    /// Entry, `CLOCK_BOOTTIME` nanoseconds.
    pub entered_ns: u64,
    /// Stack pointer at the entry: tells the call from one made inside it.
    pub stack: u64,
}

/// Offsets of kernel structure members in bytes for the driver-error program; see
/// [`crate::Offsets`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PciOffsets {
    /// `pci_dev.bus`
    pub dev_bus: u32,
    /// `pci_dev.devfn`
    pub dev_devfn: u32,
    /// `pci_bus.number`
    pub bus_number: u32,
    /// `pci_bus.domain_nr`, or `pci_bus.sysdata` where the domain is kept behind it.
    pub bus_domain: u32,
    /// 1 if `bus_domain` is a pointer to follow.
    pub domain_is_behind: u32,
    /// `pci_sysdata.domain`; only read where `domain_is_behind` is 1.
    pub sysdata_domain: u32,
}
