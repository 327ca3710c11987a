//! Bytes of model files that come in by `read`, `pread64`, `readv`, `preadv` and `preadv2`.
//!
//! These calls are frequent and few of them are of interest. Only their return is watched, where
//! the kernel still has the descriptor among the caller's registers; nothing is kept from entry to
//! return. What a descriptor is gets remembered by its number: one that is a model file's is compared
//! with the file each time, and one that is none is looked at again once its process opened a
//! model file, or after [`LOOK_AGAIN`] reads, for a number that changed hands without an open (`dup2`).

use crate::{
    emit::add,
    files::{model_file, name_once},
    filter::{config, watched},
    kernel::{File, Task, syscall_word},
    quotas::slot_within,
    registers::Registers,
    tables::READS,
};
use aya_ebpf::{
    Global,
    helpers::bpf_get_current_pid_tgid,
    macros::{map, tracepoint},
    maps::{Array, LruHashMap},
    programs::TracePointContext,
};
use palisade_abi::{Config, QUOTA_READS, ReadCounters, ReadFd, ReadFdKey, ReadKey, ReadOffsets};

/// Reads from a descriptor that was no model file until it is looked at again.
const LOOK_AGAIN: u32 = 64;

/// What descriptors are, of all processes. One pushed out is looked at again. Resized by the agent.
#[map]
static READ_FDS: LruHashMap<ReadFdKey, ReadFd> = LruHashMap::with_max_entries(16_384, 0);

/// Slots of [`MODEL_OPENS`].
const OPENERS: u32 = 1024;

/// Opens of model files so far, by process id modulo [`OPENERS`]: who opens them all day long makes few
/// others look again.
#[map]
static MODEL_OPENS: Array<u64> = Array::with_max_entries(OPENERS, 0);

/// Offsets for this family.
#[unsafe(no_mangle)]
static OFFSETS_READS: Global<ReadOffsets> = Global::new(ReadOffsets {
    file_flags: 0,
    direct: 0,
});

/// One member of [`OFFSETS_READS`], as `offset!` reads those of `OFFSETS`.
macro_rules! read_offset {
    ($member:ident) => {{
        let table = (&raw const OFFSETS_READS).cast::<ReadOffsets>();
        // SAFETY: `Global` is transparent over an initialised value; the volatile read keeps the
        // compiler from using the zeros above instead of what the agent put there.
        unsafe { core::ptr::read_volatile(&raw const (*table).$member) }
    }};
}

macro_rules! at_return_of {
    ($($program:ident: $call:literal),*) => {$(
        #[doc = $call]
        #[tracepoint]
        pub fn $program(ctx: TracePointContext) -> u32 {
            let _ = read(&ctx);
            0
        }
    )*};
}
at_return_of!(
    model_read: "`sys_exit_read`",
    model_pread: "`sys_exit_pread64`",
    model_readv: "`sys_exit_readv`",
    model_preadv: "`sys_exit_preadv`",
    model_preadv2: "`sys_exit_preadv2`"
);

/// A model file is about to get a number of the running process's, which may have been another file's.
#[inline(always)]
pub fn model_opened() {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if let Some(opens) = MODEL_OPENS.get_ptr_mut(pid % OPENERS) {
        add(opens, 1);
    }
}

#[inline(always)]
fn opens(pid: u32) -> u64 {
    match MODEL_OPENS.get_ptr(pid % OPENERS) {
        // SAFETY: an aligned word of a map value.
        Some(opens) => unsafe { core::ptr::read_volatile(opens) },
        None => 0,
    }
}

/// The flags that a file was opened with.
#[inline(always)]
pub fn flags(file: File) -> Option<u32> {
    file.read(read_offset!(file_flags) as usize)
}

/// Whether a file with these flags bypasses the page cache.
#[inline(always)]
pub fn is_direct(flags: u32) -> bool {
    flags & read_offset!(direct) != 0
}

#[inline(always)]
fn read(ctx: &TracePointContext) -> Option<()> {
    let bytes = syscall_word(ctx, 0) as i64;
    if bytes <= 0 {
        return None;
    }
    let fd = Registers::current().argument::<0>()? as u32;
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let key = ReadFdKey { pid, fd };
    let known = READ_FDS.get_ptr_mut(key);
    if let Some(known) = known {
        // SAFETY: an aligned word of a map value; a count lost to another thread's is made
        // up for by the next.
        let (left, then) = unsafe { ((*known).left, (*known).opens) };
        if left > 0 && then == opens(pid) {
            // SAFETY: as above.
            unsafe { (*known).left = left - 1 };
            return None;
        }
    }
    let config = config()?;
    let task = Task::current();
    // Before the file is found: what is opened meanwhile makes void what is remembered of it.
    let opens = opens(pid);
    let file = File::of(task, fd)?;
    let now = file.inode()?.key()?;
    let is_the_same = known.is_some_and(|known| {
        // SAFETY: a map value; an entry that another thread replaces meanwhile is of the same
        // number, and is compared with the file like this one.
        let known = unsafe { *known };
        known.inode == now.inode && known.device == now.device
    });
    if !is_the_same {
        look(config, key, file, opens)?;
    }
    let who = watched(config, task)?;
    let counters: &mut ReadCounters = slot_within(
        &READS,
        &ReadKey {
            start_ns: who.start_ns,
            workload: who.workload,
            inode: now.inode,
            pid: who.pid,
            device: now.device,
        },
        &who,
        QUOTA_READS,
    )?;
    counters.bytes += bytes as u64;
    counters.reads += 1;
    name_once(config, &who, now, file, fd);
    Some(())
}

/// Finds out whether a descriptor is a model file's, and remembers it; `None` if it is not.
#[inline(always)]
fn look(config: &Config, key: ReadFdKey, file: File, opens: u64) -> Option<()> {
    let found = model_file(config, file, key.fd);
    let entry = match &found {
        Some(model) => ReadFd {
            inode: model.inode,
            device: model.device,
            left: 0,
            opens,
        },
        None => ReadFd {
            inode: 0,
            device: 0,
            left: LOOK_AGAIN,
            opens,
        },
    };
    // Without room it is looked at again.
    let _ = READ_FDS.insert(key, entry, 0);
    found.map(|_| ())
}
