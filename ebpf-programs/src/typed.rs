//! Reading the kernel's structures directly, where the verifier knows their types.
//!
//! Invariants:
//! - [`Typed`] is only made from a pointer that the verifier knows as one to a kernel structure: an
//!   argument of a BTF tracepoint, or what `bpf_get_current_task_btf` or `bpf_task_pt_regs`
//!   answers. A load through it is one instruction, where [`Address::read`] is a call.
//! - Offsets are constants to the verifier; a wrong one is refused at load.
//! - A fault answers 0, as a null pointer does.

use crate::{
    filter::{self, Who},
    kernel::Address,
    pids,
    tables::offset,
};
use aya_ebpf::helpers::bpf_get_current_task_btf;
use palisade_abi::Config;

/// A place in the kernel's memory, by one of two ways to read it.
pub trait Memory: Copy {
    /// Reads a plain value `offset` bytes behind the place.
    fn read<T: bytemuck::Pod>(self, offset: usize) -> Option<T>;
    /// Follows a pointer member; `None` for a null pointer.
    fn follow(self, offset: usize) -> Option<Self>;
    /// Its address.
    fn address(self) -> Address;
}

/// A kernel structure of a type that the verifier knows.
#[derive(Clone, Copy)]
pub struct Typed(pub *const u8);

impl Typed {
    /// The task that runs now.
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: the helper has no preconditions.
        Self(unsafe { bpf_get_current_task_btf() }.cast())
    }
}

impl Memory for Typed {
    #[inline(always)]
    fn read<T: bytemuck::Pod>(self, offset: usize) -> Option<T> {
        // SAFETY: a direct load is needed for speed; the verifier checks it against the kernel's
        // types, the kernel turns a fault into 0, and every bit pattern is a valid `T`. Volatile:
        // the kernel changes these values at any time.
        Some(unsafe { core::ptr::read_volatile(self.0.wrapping_add(offset).cast::<T>()) })
    }

    #[inline(always)]
    fn follow(self, offset: usize) -> Option<Self> {
        let pointer: usize = self.read(offset)?;
        if pointer == 0 {
            None
        } else {
            Some(Self(pointer as *const u8))
        }
    }

    #[inline(always)]
    fn address(self) -> Address {
        Address(self.0 as u64)
    }
}

impl Memory for Address {
    #[inline(always)]
    fn read<T: bytemuck::Pod>(self, offset: usize) -> Option<T> {
        Address::read(self, offset)
    }

    #[inline(always)]
    fn follow(self, offset: usize) -> Option<Self> {
        Address::follow(self, offset)
    }

    #[inline(always)]
    fn address(self) -> Address {
        self
    }
}

/// [`filter::watched`], by either way of reading.
#[inline(always)]
pub fn watched<M: Memory>(config: &Config, task: M) -> Option<Who> {
    let workload = watched_workload(config, task)?;
    let pid: u32 = task.read(offset!(task_tgid))?;
    if pid == config.own_pid || pid == 0 {
        return None;
    }
    Some(Who {
        workload,
        start_ns: task
            .follow(offset!(task_leader))?
            .read(offset!(task_start))?,
        pid,
        tid: task.read(offset!(task_pid))?,
    })
}

/// [`filter::watched_workload`], by either way of reading.
#[inline(always)]
pub fn watched_workload<M: Memory>(config: &Config, task: M) -> Option<u64> {
    let entry = entry(task)?;
    let id = id(entry)?;
    let css = if offset!(cset_is_css) == 1 {
        entry.address()
    } else {
        Address(entry.address().0 + offset!(cgroup_self) as u64)
    };
    filter::verdict(config, id, css).or_else(|| {
        if pids::counts(config, task) {
            Some(id)
        } else {
            None
        }
    })
}

/// The task's workload, watched or not.
#[inline(always)]
pub fn workload<M: Memory>(task: M) -> Option<u64> {
    id(entry(task)?)
}

#[inline(always)]
fn entry<M: Memory>(task: M) -> Option<M> {
    task.follow(offset!(task_cgroups))?
        .follow(offset!(cset_entry))
}

#[inline(always)]
fn id<M: Memory>(entry: M) -> Option<u64> {
    let cgroup = if offset!(cset_is_css) == 1 {
        entry.follow(offset!(css_cgroup))?
    } else {
        entry
    };
    cgroup.follow(offset!(cgroup_kn))?.read(offset!(kn_id))
}
