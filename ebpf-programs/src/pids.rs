//! Processes that are watched whatever their cgroup: those that execute a watched program or call
//! a watched device's driver, and their children.
//!
//! Invariants:
//! - Without [`WATCH_PIDS`] nothing here costs more than a look at the switch.
//! - A process is meant by its id and start; an entry says nothing about a later process of that
//!   id. The agent removes the entries of processes that ended, and makes those of processes that
//!   were there before.

use crate::{
    emit::lost,
    kernel::{Address, File, Task, cgroup_id},
    tables::{ON_DEMAND, offset},
    typed::Memory,
};
use aya_ebpf::{
    Global,
    helpers::bpf_probe_read_kernel_str_bytes,
    macros::map,
    maps::{HashMap, PerCpuArray},
};
use palisade_abi::{
    Config, ExecOffsets, ExecutablePath, FileKey, LOSS_STATE_MAP, WATCH_GPU_USERS, WATCH_PIDS,
    WatchedPid,
};

/// Watched processes by id. One that finds no room is not watched, and counted as lost.
#[map]
static WATCHED_PIDS: HashMap<u32, WatchedPid> = HashMap::with_max_entries(16_384, ON_DEMAND);

/// Watched programs by file. Written by the agent.
#[map]
static EXECUTABLES: HashMap<FileKey, u32> = HashMap::with_max_entries(256, 0);

/// Watched programs by the path that they are executed by: scripts, and programs in containers.
/// Written by the agent.
#[map]
static EXECUTABLE_PATHS: HashMap<ExecutablePath, u32> = HashMap::with_max_entries(256, 0);

/// Room for the path of a program that is being executed.
#[map]
static PATH: PerCpuArray<ExecutablePath> = PerCpuArray::with_max_entries(1, 0);

/// Offsets for this family.
#[unsafe(no_mangle)]
static OFFSETS_EXEC: Global<ExecOffsets> = Global::new(ExecOffsets {
    task_mm: 0,
    mm_exe_file: 0,
    bprm_filename: 0,
});

#[inline(always)]
fn offsets() -> ExecOffsets {
    // SAFETY: `Global` is transparent over an initialised value; the volatile read keeps the
    // compiler from using the zeros above instead of what the agent put there.
    unsafe { core::ptr::read_volatile((&raw const OFFSETS_EXEC).cast()) }
}

/// Whether the task's process is watched by itself.
#[inline(always)]
pub fn counts<M: Memory>(config: &Config, task: M) -> bool {
    config.watch & WATCH_PIDS != 0 && is_listed(task) == Some(true)
}

#[inline(always)]
fn is_listed<M: Memory>(task: M) -> Option<bool> {
    let pid: u32 = task.read(offset!(task_tgid))?;
    // SAFETY: an entry that is replaced while it is read is of the same process, or of one whose
    // start does not fit.
    let entry = *unsafe { WATCHED_PIDS.get(pid) }?;
    let start_ns: u64 = task
        .follow(offset!(task_leader))?
        .read(offset!(task_start))?;
    Some(start_ns.wrapping_sub(entry.start_ns) < entry.within_ns)
}

#[inline(always)]
fn add(config: &Config, task: Task) -> Option<()> {
    let pid = task.pid()?;
    if pid == config.own_pid || pid == 0 {
        return None;
    }
    let entry = WatchedPid {
        start_ns: task.leader()?.own_start()?,
        within_ns: 1,
    };
    if WATCHED_PIDS.insert(pid, entry, 0).is_err() {
        lost(cgroup_id(task.css()?)?, LOSS_STATE_MAP);
    }
    Some(())
}

/// A process forked: the child of a watched one is watched.
#[inline(always)]
pub fn forks(config: &Config, parent: Task, child: Task) -> Option<()> {
    if !counts(config, parent.0) {
        return None;
    }
    add(config, child)
}

/// A process executed a program.
#[inline(always)]
pub fn executes(config: &Config, task: Task, program: Address) -> Option<()> {
    if config.watch & WATCH_PIDS == 0 || counts(config, task.0) {
        return None;
    }
    if is_watched_file(task) == Some(true) || is_watched_path(program) == Some(true) {
        add(config, task);
    }
    Some(())
}

/// The file that the task executes.
#[inline(always)]
pub fn executable(task: Task) -> Option<File> {
    let offsets = offsets();
    task.0
        .follow(offsets.task_mm as usize)?
        .follow(offsets.mm_exe_file as usize)
        .map(File::at)
}

#[inline(always)]
fn is_watched_file(task: Task) -> Option<bool> {
    let key = executable(task)?.inode()?.key()?;
    Some(EXECUTABLES.get_ptr(key).is_some())
}

#[inline(always)]
fn is_watched_path(program: Address) -> Option<bool> {
    let path = program.follow(offsets().bprm_filename as usize)?;
    let room = PATH.get_ptr_mut(0)?;
    // SAFETY: the room belongs to this CPU, and nothing that interrupts this program writes to it.
    // It is zeroed word by word first, so that no earlier path's bytes stay behind the new one.
    unsafe {
        let words = room.cast::<u64>();
        for word in 0..size_of::<ExecutablePath>() / 8 {
            words.add(word).write_volatile(0);
        }
        bpf_probe_read_kernel_str_bytes(path.0 as *const u8, &mut (*room).bytes).ok()?;
        Some(EXECUTABLE_PATHS.get_ptr(&*room).is_some())
    }
}

/// An unwatched process called a watched device's driver: whether it is watched from now on.
#[inline(always)]
pub fn uses_gpu(config: &Config, task: Task) -> Option<()> {
    if config.watch & WATCH_GPU_USERS == 0 {
        return None;
    }
    add(config, task)
}
