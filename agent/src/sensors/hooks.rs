//! The table of hooks: which program goes where, for which kinds of record, in which order of
//! preference. Data only.

mod cpu;
mod cuda;
mod memory;
mod net;
mod opens;
mod reads;

use super::{Way, offsets::Group};
use palisade_abi::Kind;

/// One way to attach a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rung {
    /// BTF-typed tracepoint.
    Btf {
        /// Program in the object.
        program: &'static str,
        /// Tracepoint.
        point: &'static str,
    },
    /// Raw tracepoint.
    Raw {
        /// Program in the object.
        program: &'static str,
        /// Tracepoint.
        point: &'static str,
    },
    /// Return of a kernel function, by trampoline: arguments and result together.
    Fexit {
        /// Program in the object.
        program: &'static str,
        /// Kernel function.
        function: &'static str,
    },
    /// Entry and return of a kernel function, by breakpoints: the first program remembers the
    /// arguments for the second one.
    Kretprobe {
        /// Program in the object for the entry.
        entry: &'static str,
        /// Program in the object for the return.
        program: &'static str,
        /// Kernel function.
        function: &'static str,
    },
    /// Entry and return of a kernel function, by trampolines.
    FentryFexit {
        /// Program in the object for the entry.
        entry: &'static str,
        /// Program in the object for the return.
        program: &'static str,
        /// Kernel function.
        function: &'static str,
    },
    /// Functions of CUDA's library, by breakpoints.
    Uprobe {
        /// Programs in the object, in the order of attaching; each one goes to every function.
        programs: &'static [&'static str],
        /// Functions; those that the library lacks are left out.
        symbols: &'static [&'static str],
    },
    /// Tracepoint of a system call.
    Syscall {
        /// Program in the object.
        program: &'static str,
        /// `sys_enter_*` or `sys_exit_*`.
        point: &'static str,
        /// Arguments that the program reads; 1 at an exit.
        words: usize,
    },
    /// Tracepoints of a system call's entry and return.
    SyscallPair {
        /// Program in the object for the entry.
        entry: &'static str,
        /// Program in the object for the return.
        program: &'static str,
        /// The call.
        call: &'static str,
        /// Arguments that the program at the entry reads.
        words: usize,
    },
    /// Security hook.
    Lsm {
        /// Program in the object.
        program: &'static str,
        /// Hook.
        hook: &'static str,
    },
    /// Tracepoints of several system calls' exits, together.
    Returns {
        /// Programs in the object, one a tracepoint.
        programs: &'static [&'static str],
        /// `sys_exit_*`: the first must be there, the others are left out where the machine lacks them.
        points: &'static [&'static str],
    },
}

impl Rung {
    /// The programs' names in the object.
    pub(super) fn programs(self) -> impl Iterator<Item = &'static str> {
        let (first, second, more): (_, _, &[&str]) = match self {
            Rung::Btf { program, .. }
            | Rung::Raw { program, .. }
            | Rung::Fexit { program, .. }
            | Rung::Lsm { program, .. }
            | Rung::Syscall { program, .. } => (Some(program), None, &[]),
            Rung::Kretprobe { entry, program, .. }
            | Rung::FentryFexit { entry, program, .. }
            | Rung::SyscallPair { entry, program, .. } => (Some(program), Some(entry), &[]),
            Rung::Uprobe { programs, .. } | Rung::Returns { programs, .. } => {
                (None, None, programs)
            }
        };
        first.into_iter().chain(second).chain(more.iter().copied())
    }

    /// Whether its programs can be loaded before they are attached. A library is looked for when its turn comes, once.
    pub(super) fn loads_ahead(self) -> bool {
        !matches!(self, Rung::Uprobe { .. })
    }

    /// Its family.
    pub(super) fn way(self) -> Way {
        match self {
            Rung::Btf { .. } => Way::Btf,
            Rung::Raw { .. } => Way::Raw,
            Rung::Fexit { .. } | Rung::FentryFexit { .. } => Way::Fexit,
            Rung::Kretprobe { .. } => Way::Kprobe,
            Rung::Uprobe { .. } => Way::Uprobe,
            Rung::Syscall { .. } | Rung::SyscallPair { .. } | Rung::Returns { .. } => {
                Way::Tracepoint
            }
            Rung::Lsm { .. } => Way::Lsm,
        }
    }

    /// For people: `tp_btf:sched_switch`.
    pub(super) fn place(self) -> String {
        let way = self.way().name();
        match self {
            Rung::Btf { point, .. } | Rung::Raw { point, .. } => format!("{way}:{point}"),
            Rung::Fexit { function, .. }
            | Rung::FentryFexit { function, .. }
            | Rung::Kretprobe { function, .. } => format!("{way}:{function}"),
            Rung::Uprobe { symbols, .. } => format!("{way}:{}", symbols.join(",")),
            Rung::Syscall { point, .. } => format!("{way}:syscalls:{point}"),
            Rung::SyscallPair { call, .. } => format!("{way}:syscalls:sys_{{enter,exit}}_{call}"),
            Rung::Lsm { hook, .. } => format!("{way}:{hook}"),
            Rung::Returns { points, .. } => format!("{way}:syscalls:{}", points.join(",")),
        }
    }
}

/// One place to watch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    /// For people.
    pub name: &'static str,
    /// It is attached while any of these kinds is wanted.
    pub kinds: u64,
    /// Members that its programs read, besides [`Group::Identity`].
    pub groups: &'static [Group],
    /// Best first.
    pub rungs: &'static [Rung],
    /// Not every kernel has the place; its absence is no fault.
    pub optional: bool,
    /// The map, an array of one, in which its programs count the returns that they found out not to have been shown.
    pub missed: Option<&'static str>,
}

pub(super) const GPU: u64 = Kind::GpuEnter.bit()
    | Kind::GpuExit.bit()
    | Kind::SampleGpu.bit()
    | Kind::SampleGpuCommand.bit()
    | Kind::SampleGpuLatency.bit();
pub(super) const MAPS: u64 = Kind::Mmap.bit() | Kind::ModelMap.bit() | Kind::SampleMaps.bit();
pub(super) const UNMAPS: u64 = Kind::Munmap.bit() | Kind::SampleMaps.bit();
/// The kinds whose per-process state is given up at the process's end.
pub(super) const NEED_EXIT: u64 = GPU
    | MAPS
    | UNMAPS
    | SCHED
    | CALLS
    | FAULTS
    | RECLAIM
    | VICTIMS
    | TRANSFERS
    | CUDA
    | reads::READS;

/// A hook at a system call's tracepoint.
macro_rules! syscall {
    ($name:literal, $kinds:expr, $groups:expr, $program:literal, $point:literal, $words:literal) => {
        Hook {
            name: $name,
            kinds: $kinds,
            groups: $groups,
            rungs: &[Rung::Syscall {
                program: $program,
                point: $point,
                words: $words,
            }],
            optional: false,
            missed: None,
        }
    };
}

/// The kernel's function for a system call of programs of this machine's own kind.
macro_rules! kernel_function {
    ($call:literal) => {
        if cfg!(target_arch = "aarch64") {
            concat!("__arm64_sys_", $call)
        } else {
            concat!("__x64_sys_", $call)
        }
    };
}

/// The return of a system call, of which nothing else needs to be seen: that of the kernel's
/// function, or where trampolines are refused, its tracepoint.
macro_rules! syscall_return {
    ($name:literal, $kinds:expr, $groups:expr, $program:literal, $tracepoint:literal, $call:literal) => {
        Hook {
            name: $name,
            kinds: $kinds,
            groups: $groups,
            rungs: &[
                Rung::Fexit {
                    program: $program,
                    function: kernel_function!($call),
                },
                Rung::Syscall {
                    program: $tracepoint,
                    point: concat!("sys_exit_", $call),
                    words: 1,
                },
            ],
            optional: false,
            missed: None,
        }
    };
}

/// A hook at a tracepoint with kernel types, or without where those are refused.
macro_rules! sched {
    ($name:literal, $kinds:expr, $groups:expr, $program:literal, $raw:literal, $point:literal) => {
        Hook {
            name: $name,
            kinds: $kinds,
            groups: $groups,
            rungs: &[
                Rung::Btf {
                    program: $program,
                    point: $point,
                },
                Rung::Raw {
                    program: $raw,
                    point: $point,
                },
            ],
            optional: false,
            missed: None,
        }
    };
}

use {sched, syscall};

pub(super) use cpu::{CALLS, SCHED};
pub(super) use cuda::{CUDA, LAUNCHES as CUDA_LAUNCHES};
pub(super) use memory::{FAULTS, RECLAIM, VICTIMS};
pub(super) use net::{SOCKETS, TRANSFERS};

/// All hooks, in the order of attaching; detaching goes backwards.
pub(super) fn all() -> impl Iterator<Item = &'static Hook> {
    HOOKS
        .iter()
        .chain(opens::HOOKS)
        .chain(cpu::HOOKS)
        .chain(memory::HOOKS)
        .chain(net::HOOKS)
        .chain(reads::HOOKS)
        .chain(cuda::HOOKS)
}

const HOOKS: &[Hook] = &[
    sched!(
        "process exit",
        Kind::Exit.bit() | NEED_EXIT,
        &[Group::Exit],
        "process_exit",
        "process_exit_raw",
        "sched_process_exit"
    ),
    sched!(
        "process exec",
        Kind::Exec.bit(),
        &[Group::Files, Group::Executable],
        "process_exec",
        "process_exec_raw",
        "sched_process_exec"
    ),
    sched!(
        "process fork",
        Kind::Fork.bit(),
        &[],
        "process_fork",
        "process_fork_raw",
        "sched_process_fork"
    ),
    Hook {
        name: "driver call",
        kinds: GPU,
        groups: &[Group::Files, Group::Registers],
        rungs: &[
            Rung::FentryFexit {
                entry: "gpu_call",
                program: "gpu_return",
                function: kernel_function!("ioctl"),
            },
            Rung::SyscallPair {
                entry: "gpu_enter",
                program: "gpu_exit",
                call: "ioctl",
                words: 2,
            },
        ],
        optional: false,
        missed: Some("MISSED_RETURNS"),
    },
    syscall_return!(
        "map",
        MAPS,
        &[Group::Files, Group::Registers],
        "map_return",
        "map_exit",
        "mmap"
    ),
    syscall_return!(
        "unmap",
        UNMAPS,
        &[Group::Registers],
        "unmap_return",
        "unmap_exit",
        "munmap"
    ),
];

/// The kinds that a hook makes. That at a process's end only clears up after [`NEED_EXIT`].
pub(super) fn made_by(hook: &Hook) -> u64 {
    if hook.kinds & Kind::Exit.bit() == 0 {
        hook.kinds
    } else {
        hook.kinds & !NEED_EXIT
    }
}

/// What the kernel programs must record so that `wanted` can be delivered.
pub(super) fn needed(wanted: u64) -> u64 {
    if wanted & NEED_EXIT == 0 {
        wanted
    } else {
        wanted | Kind::Exit.bit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made in user space.
    const UNHOOKED: &[Kind] = &[Kind::Lost, Kind::Absent, Kind::SamplePressure];

    #[test]
    fn every_kind_that_the_kernel_makes_has_a_hook() {
        for kind in Kind::ALL {
            let hooked = all().any(|hook| hook.kinds & kind.bit() != 0);
            assert_eq!(hooked, !UNHOOKED.contains(kind), "{}", kind.name());
        }
    }

    #[test]
    fn samples_bring_the_exit_hook_along() {
        let exit = Kind::Exit.bit();
        assert_eq!(needed(Kind::SampleGpu.bit()) & exit, exit);
        assert_eq!(needed(Kind::Exec.bit()) & exit, 0);
    }
}
