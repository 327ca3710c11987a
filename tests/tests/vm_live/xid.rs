//! Errors that a GPU's driver reports (Xid), from a module that has NVIDIA's tracepoint.
//!
//! Invariant: the module reports what the test wrote, when it wrote it, on a device that the guest has.

use super::object_in_guest;
use crate::support::{Cgroup, PATIENCE, Watch, options};
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use palisade_abi::{GpuError, Kind, kind};
use std::ffi::CStr;
use std::fs::{self, File};
use std::time::{Duration, Instant};

const NAME: &CStr = c"fake_xid";
const REPORT: &str = "/sys/module/fake_xid/parameters/report";
/// GPU off the bus, double-bit ECC error, MMU fault, and the largest that fits.
const CODES: [u32; 4] = [79, 48, 31, u32::MAX];

/// The module; unloaded when dropped.
struct Driver;

impl Driver {
    /// `None` after a word on standard error where no module could be built for this kernel.
    fn load(test: &str) -> Option<Self> {
        let Some(path) = std::env::var_os("PALISADE_XID_MODULE") else {
            eprintln!("SKIPPED {test}: no module can be built for this kernel (docs/kernels.md)");
            return None;
        };
        let file = File::open(path).expect("the module");
        finit_module(file, c"", ModuleInitFlags::empty()).expect("finit_module");
        Some(Self)
    }

    /// The kernel lets go of a program that was detached in its own time.
    fn unload(self) {
        let end = Instant::now() + PATIENCE;
        while let Err(error) = delete_module(NAME, DeleteModuleFlags::O_NONBLOCK) {
            assert!(Instant::now() < end, "the driver stays loaded: {error}");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::mem::forget(self);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = delete_module(NAME, DeleteModuleFlags::O_NONBLOCK);
    }
}

/// Every PCI device: as sysfs names it, and as records do.
fn devices() -> Vec<(String, u32)> {
    let mut devices: Vec<(String, u32)> = fs::read_dir("/sys/bus/pci/devices")
        .expect("PCI devices")
        .map(|entry| {
            let entry = entry.expect("a device");
            let name = entry.file_name().into_string().expect("a name");
            let number = |part: &str| u32::from_str_radix(part, 16).expect("a hexadecimal number");
            let (domain, rest) = name.split_once(':').expect("a domain");
            let (bus, rest) = rest.split_once(':').expect("a bus");
            let (slot, function) = rest.split_once('.').expect("a function");
            let address =
                number(domain) << 16 | number(bus) << 8 | number(slot) << 3 | number(function);
            (name, address)
        })
        .collect();
    devices.sort();
    devices
}

#[test]
fn every_error_is_told_with_its_code_device_and_task() {
    let name = "every_error_is_told_with_its_code_device_and_task";
    let Some(object) = object_in_guest(name) else {
        return;
    };
    let Some(driver) = Driver::load(name) else {
        return;
    };
    // Errors are of the whole host: the test itself is not watched.
    let inside = Cgroup::new();
    let watch = Watch::new(object, options(&[&inside], &[Kind::GpuError]));

    let plan: Vec<(String, u32, u32)> = devices()
        .into_iter()
        .flat_map(|(name, address)| CODES.map(|code| (name.clone(), address, code)))
        .collect();
    assert!(plan.len() >= 2 * CODES.len(), "{plan:?}");
    for (device, _, code) in &plan {
        fs::write(REPORT, format!("{device} {code}")).expect("a report");
    }
    watch.settle();
    // As docs/signals.md says.
    let error = delete_module(NAME, DeleteModuleFlags::O_NONBLOCK);
    assert!(
        matches!(error, Err(Errno::EBUSY | Errno::EAGAIN)),
        "the driver could be unloaded: {error:?}"
    );
    let seen = watch.stop();
    seen.assert_none_lost();

    let told: Vec<(u32, u32)> = seen
        .bodies::<GpuError>(kind::GPU_ERROR)
        .iter()
        .map(|error| (error.pci, error.code))
        .collect();
    let made: Vec<(u32, u32)> = plan
        .iter()
        .map(|(_, address, code)| (*address, *code))
        .collect();
    assert_eq!(told, made);
    let tid = nix::unistd::gettid().as_raw().cast_unsigned();
    for record in seen.of(kind::GPU_ERROR) {
        let header = record.header;
        assert_eq!((header.pid, header.tid), (std::process::id(), tid));
    }
    driver.unload();
}
