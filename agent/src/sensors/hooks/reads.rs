//! Reads of model files.

use super::{Hook, Rung, syscall};
use crate::sensors::offsets::Group;
use palisade_abi::Kind;

pub(in crate::sensors) const READS: u64 = Kind::SampleReads.bit();

const GROUPS: &[Group] = &[Group::Files, Group::Registers];

pub(super) const HOOKS: &[Hook] = &[
    syscall!(
        "model read (read)",
        READS,
        GROUPS,
        "model_read",
        "sys_exit_read",
        1
    ),
    syscall!(
        "model read (pread64)",
        READS,
        GROUPS,
        "model_pread",
        "sys_exit_pread64",
        1
    ),
    syscall!(
        "model read (readv)",
        READS,
        GROUPS,
        "model_readv",
        "sys_exit_readv",
        1
    ),
    syscall!(
        "model read (preadv)",
        READS,
        GROUPS,
        "model_preadv",
        "sys_exit_preadv",
        1
    ),
    Hook {
        optional: true,
        missed: None,
        ..syscall!(
            "model read (preadv2)",
            READS,
            GROUPS,
            "model_preadv2",
            "sys_exit_preadv2",
            1
        )
    },
];
