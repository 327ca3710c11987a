//! Reading the kernel's structures.
//!
//! Every address may be stale or zero: `bpf_probe_read_kernel` answers an error instead of
//! faulting, and that error ends the program's interest in the event.

use crate::{
    tables::offset,
    typed::{Memory, Typed},
};
use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_task, bpf_probe_read_kernel},
    programs::TracePointContext,
};

/// Where the arguments of a system call start in its enter record, and the return value in its
/// exit record: `struct syscall_tp_t` of the kernel's `trace_syscalls.c`. The agent compares it
/// with tracefs before it attaches.
const SYSCALL_WORDS_AT: usize = 16;

/// Address of a kernel object.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address(pub u64);

impl Address {
    /// Reads a plain value `offset` bytes behind the address.
    #[inline(always)]
    pub fn read<T: bytemuck::Pod>(self, offset: usize) -> Option<T> {
        if self.0 == 0 {
            return None;
        }
        // SAFETY: the helper is how a program may read any kernel address; it checks the access
        // at run time, and every bit pattern is a valid `T`.
        unsafe { bpf_probe_read_kernel((self.0 + offset as u64) as *const T) }.ok()
    }

    /// Follows a pointer member; `None` for a null pointer.
    #[inline(always)]
    pub fn follow(self, offset: usize) -> Option<Address> {
        match self.read::<u64>(offset)? {
            0 => None,
            address => Some(Address(address)),
        }
    }
}

/// The `n`th argument at a system call's entry, or with `n` = 0 the return value at its exit.
#[inline(always)]
pub fn syscall_word(ctx: &TracePointContext, n: usize) -> u64 {
    let word = (ctx.as_ptr() as usize + SYSCALL_WORDS_AT + 8 * n) as *const u64;
    // SAFETY: a direct load from the context is needed for speed; the verifier bounds it, and the
    // kernel refuses to attach a program that reads past the record's end.
    unsafe { core::ptr::read_volatile(word) }
}

/// A `task_struct`.
#[derive(Clone, Copy)]
pub struct Task(pub Address);

impl Task {
    /// The task that runs now.
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: the helper has no preconditions.
        Self(Address(unsafe { bpf_get_current_task() }))
    }

    /// Thread id in the initial PID namespace.
    #[inline(always)]
    pub fn tid(self) -> Option<u32> {
        self.0.read(offset!(task_pid))
    }

    /// Process id in the initial PID namespace.
    #[inline(always)]
    pub fn pid(self) -> Option<u32> {
        self.0.read(offset!(task_tgid))
    }

    /// The first thread of the process.
    #[inline(always)]
    pub fn leader(self) -> Option<Task> {
        self.0.follow(offset!(task_leader)).map(Task)
    }

    /// Start of this thread, `CLOCK_BOOTTIME` nanoseconds.
    #[inline(always)]
    pub fn own_start(self) -> Option<u64> {
        self.0.read(offset!(task_start))
    }

    /// The `cgroup_subsys_state` of the task's cgroup in the hierarchy that names workloads.
    #[inline(always)]
    pub fn css(self) -> Option<Address> {
        let entry = self
            .0
            .follow(offset!(task_cgroups))?
            .follow(offset!(cset_entry))?;
        if offset!(cset_is_css) == 1 {
            Some(entry)
        } else {
            Some(Address(entry.0 + offset!(cgroup_self) as u64))
        }
    }
}

/// The kernfs id of a `cgroup_subsys_state`'s cgroup.
#[inline(always)]
pub fn cgroup_id(css: Address) -> Option<u64> {
    css.follow(offset!(css_cgroup))?
        .follow(offset!(cgroup_kn))?
        .read(offset!(kn_id))
}

/// A `file`.
#[derive(Clone, Copy)]
pub struct File(Address);

/// An `inode`.
#[derive(Clone, Copy)]
pub struct Inode(Address);

const S_IFMT: u16 = 0o170_000;
const S_IFREG: u16 = 0o100_000;
const S_IFCHR: u16 = 0o020_000;

impl File {
    /// The `file` at an address.
    #[inline(always)]
    pub fn at(address: Address) -> Self {
        Self(address)
    }

    /// The open file behind a descriptor of `task`.
    #[inline(always)]
    pub fn of(task: Task, fd: u32) -> Option<Self> {
        Self::behind(task.0, fd)
    }

    /// The same for the task that runs, at half the cost.
    #[inline(always)]
    pub fn of_current(fd: u32) -> Option<Self> {
        Self::behind(Typed::current(), fd)
    }

    #[inline(always)]
    fn behind<M: Memory>(task: M, fd: u32) -> Option<Self> {
        let table = task
            .follow(offset!(task_files))?
            .follow(offset!(files_fdt))?;
        let slots: u32 = table.read(offset!(fdt_max_fds))?;
        if fd >= slots {
            return None;
        }
        // Types end here: the verifier knows no pointers to pointers.
        let files: u64 = table.read(offset!(fdt_fd))?;
        Address(files).follow(fd as usize * 8).map(File)
    }

    /// Reads a plain member.
    #[inline(always)]
    pub fn read<T: bytemuck::Pod>(self, offset: usize) -> Option<T> {
        self.0.read(offset)
    }

    /// Its inode.
    #[inline(always)]
    pub fn inode(self) -> Option<Inode> {
        self.0.follow(offset!(file_inode)).map(Inode)
    }

    /// The entry of its name in its folder.
    #[inline(always)]
    pub fn dentry(self) -> Option<Address> {
        self.0.follow(offset!(file_dentry))
    }

    /// Address and length of the last component of its path.
    #[inline(always)]
    pub fn name(self) -> Option<(Address, u32)> {
        let dentry = self.dentry()?;
        Some((
            dentry.follow(offset!(dentry_name))?,
            dentry.read(offset!(dentry_name_len))?,
        ))
    }
}

impl Inode {
    /// Device number of a device's file; 0 of any other file.
    #[inline(always)]
    pub fn device(self) -> Option<u32> {
        self.0.read(offset!(inode_rdev))
    }

    /// Whether it is a character device.
    #[inline(always)]
    pub fn is_char_device(self) -> bool {
        self.is(S_IFCHR)
    }

    /// Whether it is a regular file.
    #[inline(always)]
    pub fn is_regular(self) -> bool {
        self.is(S_IFREG)
    }

    #[inline(always)]
    fn is(self, kind: u16) -> bool {
        self.0
            .read::<u16>(offset!(inode_mode))
            .is_some_and(|mode| mode & S_IFMT == kind)
    }

    /// Size in bytes.
    #[inline(always)]
    pub fn size(self) -> Option<u64> {
        self.0.read(offset!(inode_size))
    }

    /// Inode number and device of its file system.
    #[inline(always)]
    pub fn key(self) -> Option<palisade_abi::FileKey> {
        Some(palisade_abi::FileKey {
            inode: self.0.read(offset!(inode_ino))?,
            device: self.0.follow(offset!(inode_sb))?.read(offset!(sb_dev))?,
            pad: 0,
        })
    }
}
