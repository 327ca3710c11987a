//! Names of GPU driver commands, for people.
//!
//! Invariant: a number that is not in a table has no name, rather than a guessed one. The same
//! number means different things to different drivers, so the family comes first.
//!
//! Sources: NVIDIA/open-gpu-kernel-modules 595.45.04 (`kernel-open/common/inc/nv-ioctl-numbers.h`,
//! `src/nvidia/arch/nvalloc/unix/include/nv_escape.h`, `kernel-open/nvidia-uvm/uvm_ioctl.h`) and
//! Linux (`include/uapi/linux/kfd_ioctl.h`, `include/uapi/drm/drm.h`).

use palisade_abi::{COMMAND_BITS, ENCODED_COMMAND_BITS, UNKNOWN_COMMAND};
use std::borrow::Cow;

/// Which driver gives a command its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// nvidia.ko: `/dev/nvidia0`, `/dev/nvidiactl`.
    Nvidia,
    /// nvidia-uvm.ko: `/dev/nvidia-uvm`. Its words are raw numbers, not made by `_IOWR`.
    NvidiaUvm,
    /// amdgpu's compute interface: `/dev/kfd`.
    Kfd,
    /// Direct rendering manager: `/dev/dri/*`.
    Drm,
    /// Any other device.
    Unknown,
}

impl Family {
    /// Of a device with that major number; only where Linux has fixed it (Documentation/admin-guide/devices.txt).
    pub fn of_major(major: u32) -> Self {
        match major {
            195 => Family::Nvidia,
            226 => Family::Drm,
            _ => Family::Unknown,
        }
    }

    /// Of a device as the configuration names it: the presets' names, or what its driver is called
    /// in /proc/devices.
    pub fn of_device(name: &str) -> Self {
        match name {
            "nvidia" | "nvidia-frontend" | "nvidiactl" => Family::Nvidia,
            "nvidia-uvm" => Family::NvidiaUvm,
            "kfd" => Family::Kfd,
            "drm" => Family::Drm,
            _ => Family::Unknown,
        }
    }

    /// How much of a command word is the command for that driver.
    pub fn command_bits(self) -> u32 {
        match self {
            // They go by _IOC_NR: nvidia_ioctl, kfd_ioctl, drm_ioctl.
            Family::Nvidia | Family::Kfd | Family::Drm => ENCODED_COMMAND_BITS,
            Family::NvidiaUvm | Family::Unknown => COMMAND_BITS,
        }
    }

    /// The name of a command ([`palisade_abi::command_of`] its word); `None` if it is not known.
    pub fn command(self, number: u16) -> Option<&'static str> {
        let table = match self {
            Family::Nvidia => NVIDIA,
            Family::NvidiaUvm => UVM,
            Family::Kfd => KFD,
            Family::Drm => DRM,
            Family::Unknown => &[],
        };
        table
            .iter()
            .find(|(known, _)| *known == number)
            .map(|(_, name)| *name)
    }

    /// The command's name, or its number (`0x2a`).
    pub fn describe(self, number: u16) -> Cow<'static, str> {
        match self.command(number) {
            Some(name) => Cow::Borrowed(name),
            // What a DRM driver defines itself begins at DRM_COMMAND_BASE.
            None if self == Family::Drm && (0x40..0xa0).contains(&number) => {
                Cow::Owned(format!("DRIVER+{:#04x}", number - 0x40))
            }
            // No call with it has ever succeeded.
            None if number == UNKNOWN_COMMAND => Cow::Borrowed("OTHER"),
            None => Cow::Owned(format!("{number:#04x}")),
        }
    }
}

const NVIDIA: &[(u16, &str)] = &[
    (0x27, "RM_ALLOC_MEMORY"),
    (0x29, "RM_FREE"),
    (0x2a, "RM_CONTROL"),
    (0x2b, "RM_ALLOC"),
    (0x34, "RM_DUP_OBJECT"),
    (0x35, "RM_SHARE"),
    (0x41, "RM_IDLE_CHANNELS"),
    (0x4a, "RM_VID_HEAP_CONTROL"),
    (0x4e, "RM_MAP_MEMORY"),
    (0x4f, "RM_UNMAP_MEMORY"),
    (0x57, "RM_MAP_MEMORY_DMA"),
    (0x58, "RM_UNMAP_MEMORY_DMA"),
    (200, "CARD_INFO"),
    (201, "REGISTER_FD"),
    (206, "ALLOC_OS_EVENT"),
    (210, "CHECK_VERSION_STR"),
    (211, "IOCTL_XFER_CMD"),
    (218, "WAIT_OPEN_COMPLETE"),
];

const UVM: &[(u16, &str)] = &[
    // 0x30000001 and 0x30000002, which look encoded and are not.
    (1, "UVM_INITIALIZE"),
    (2, "UVM_DEINITIALIZE"),
    (25, "UVM_REGISTER_GPU_VASPACE"),
    (27, "UVM_REGISTER_CHANNEL"),
    (33, "UVM_MAP_EXTERNAL_ALLOCATION"),
    (34, "UVM_FREE"),
    (37, "UVM_REGISTER_GPU"),
    (51, "UVM_MIGRATE"),
    (66, "UVM_UNMAP_EXTERNAL"),
    (72, "UVM_VALIDATE_VA_RANGE"),
    (73, "UVM_CREATE_EXTERNAL_RANGE"),
    (75, "UVM_MM_INITIALIZE"),
];

const KFD: &[(u16, &str)] = &[
    (0x02, "KFD_CREATE_QUEUE"),
    (0x0c, "KFD_WAIT_EVENTS"),
    (0x16, "KFD_ALLOC_MEMORY_OF_GPU"),
    (0x17, "KFD_FREE_MEMORY_OF_GPU"),
    (0x18, "KFD_MAP_MEMORY_TO_GPU"),
    (0x19, "KFD_UNMAP_MEMORY_FROM_GPU"),
    (0x1f, "KFD_SMI_EVENTS"),
    (0x20, "KFD_SVM"),
];

const DRM: &[(u16, &str)] = &[
    (0x00, "DRM_VERSION"),
    (0x09, "DRM_GEM_CLOSE"),
    (0x0c, "DRM_GET_CAP"),
    (0x2d, "DRM_PRIME_HANDLE_TO_FD"),
    (0x2e, "DRM_PRIME_FD_TO_HANDLE"),
    (0xbf, "DRM_SYNCOBJ_CREATE"),
    (0xc0, "DRM_SYNCOBJ_DESTROY"),
    (0xc3, "DRM_SYNCOBJ_WAIT"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_means_what_its_driver_says() {
        let table = [
            (Family::Nvidia, 0xc020_462a_u32, "RM_CONTROL"),
            (Family::Nvidia, 0xc030_462b, "RM_ALLOC"),
            (Family::Nvidia, 0xc010_4629, "RM_FREE"),
            (Family::Nvidia, 0xc010_46d3, "IOCTL_XFER_CMD"),
            (Family::NvidiaUvm, 0x3000_0001, "UVM_INITIALIZE"),
            (Family::NvidiaUvm, 0x3000_0002, "UVM_DEINITIALIZE"),
            (Family::NvidiaUvm, 37, "UVM_REGISTER_GPU"),
            (Family::NvidiaUvm, 0x2a, "0x2a"),
            (Family::Kfd, 0xc018_4b0c, "KFD_WAIT_EVENTS"),
            (Family::Drm, 0xc040_6400, "DRM_VERSION"),
            (Family::Drm, 0xc018_6444, "DRIVER+0x04"),
            (Family::Unknown, 0x5413, "0x5413"),
        ];
        for (family, word, name) in table {
            assert_eq!(
                family.describe(palisade_abi::command_of(word, family.command_bits())),
                name,
                "{family:?} {word:#x}"
            );
        }
        assert_eq!(Family::Nvidia.describe(UNKNOWN_COMMAND), "OTHER");
    }

    #[test]
    fn no_table_names_a_number_twice() {
        for table in [NVIDIA, UVM, KFD, DRM] {
            assert!(table.is_sorted_by(|a, b| a.0 < b.0), "{table:?}");
        }
    }

    #[test]
    fn devices_are_known_by_their_preset_s_name() {
        assert_eq!(Family::of_device("nvidia-uvm"), Family::NvidiaUvm);
        assert_eq!(Family::of_device("my-tty"), Family::Unknown);
        assert_eq!(Family::of_major(195), Family::Nvidia);
    }
}
