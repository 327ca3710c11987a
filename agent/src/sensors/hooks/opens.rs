//! Opens of model files: one place, best first. None of them sees what another one saw.

use super::{Hook, Rung, reads};
use crate::sensors::offsets::Group;
use palisade_abi::Kind;

pub(super) const HOOKS: &[Hook] = &[Hook {
    name: "model open",
    kinds: Kind::ModelOpen.bit() | Kind::FileName.bit() | reads::READS,
    groups: &[Group::Files],
    rungs: &[
        Rung::Fexit {
            program: "model_open_exit",
            function: "do_filp_open",
        },
        // Its name from Linux 7.0 on.
        Rung::Fexit {
            program: "model_open_exit",
            function: "do_file_open",
        },
        Rung::Lsm {
            program: "model_open_lsm",
            hook: "file_open",
        },
        Rung::Returns {
            programs: &["model_openat", "model_open", "model_openat2"],
            points: &["sys_exit_openat", "sys_exit_open", "sys_exit_openat2"],
        },
    ],
    optional: false,
    missed: None,
}];
