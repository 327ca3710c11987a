//! CUDA's driver API, and the errors that the GPU driver reports. Few hosts have either.
//!
//! Calls have a name for each of CUDA's notions of the default stream (`_ptds`, `_ptsz`), and a
//! `_v2` where a newer CUDA changed them. Those that the library lacks are left out.

use super::{Hook, Rung};
use crate::sensors::offsets::Group;
use palisade_abi::Kind;

pub(in crate::sensors) const CUDA: u64 = Kind::SampleCuda.bit();

/// Every version of the library has some of them.
pub(in crate::sensors) const LAUNCHES: &[&str] = &[
    "cuLaunchKernel",
    "cuLaunchKernel_ptsz",
    "cuLaunchKernelEx",
    "cuLaunchKernelEx_ptsz",
    "cuLaunchCooperativeKernel",
    "cuLaunchCooperativeKernel_ptsz",
    "cuGraphLaunch",
    "cuGraphLaunch_ptsz",
];
const ALLOCATIONS: &[&str] = &[
    "cuMemAlloc_v2",
    "cuMemAllocPitch_v2",
    "cuMemAllocManaged",
    "cuMemAllocHost_v2",
    "cuMemAllocAsync",
    "cuMemAllocAsync_ptsz",
    "cuMemAllocFromPoolAsync",
    "cuMemAllocFromPoolAsync_ptsz",
    "cuMemCreate",
];
const SYNCS: &[&str] = &[
    "cuStreamSynchronize",
    "cuStreamSynchronize_ptsz",
    "cuCtxSynchronize",
    "cuCtxSynchronize_v2",
    "cuEventSynchronize",
];
const COPIES: &[&str] = &[
    "cuMemcpy",
    "cuMemcpy_ptds",
    "cuMemcpyHtoD_v2",
    "cuMemcpyHtoD_v2_ptds",
    "cuMemcpyDtoH_v2",
    "cuMemcpyDtoH_v2_ptds",
];

/// Breakpoints in the library: the programs in the order of attaching.
const fn library(name: &'static str, rungs: &'static [Rung]) -> Hook {
    Hook {
        name,
        kinds: CUDA,
        groups: &[],
        rungs,
        optional: true,
        missed: None,
    }
}

pub(super) const HOOKS: &[Hook] = &[
    library(
        "CUDA launch",
        &[Rung::Uprobe {
            programs: &["cuda_launch"],
            symbols: LAUNCHES,
        }],
    ),
    library(
        "CUDA allocation",
        &[Rung::Uprobe {
            programs: &["cuda_alloc"],
            symbols: ALLOCATIONS,
        }],
    ),
    library(
        "CUDA synchronisation",
        &[Rung::Uprobe {
            programs: &["cuda_sync_exit", "cuda_sync_enter"],
            symbols: SYNCS,
        }],
    ),
    library(
        "CUDA copy",
        &[Rung::Uprobe {
            programs: &["cuda_copy_exit", "cuda_copy_enter"],
            symbols: COPIES,
        }],
    ),
    Hook {
        name: "GPU driver error",
        kinds: Kind::GpuError.bit(),
        groups: &[Group::Pci],
        rungs: &[Rung::Raw {
            program: "gpu_error",
            point: "nvidia_dev_xid",
        }],
        optional: true,
        missed: None,
    },
];
