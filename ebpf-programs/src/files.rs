//! Model files: which files are, and their opens.
//!
//! A regular file is a model file if its name ends in a configured suffix or if it is large:
//! hub caches name files by their hash, without a suffix.
//!
//! Opens are seen at one of three places, never at two: the return of the function that all opens by
//! path go through, io_uring's too; the security hook, before the open is known to succeed; the return
//! of the system calls. Opens for executing, or of the name alone (`O_PATH`), are none.

use crate::{
    emit::{now, record, record_with_path},
    filter::{Who, config, wanted, watched},
    kernel::{Address, File, Task, syscall_word},
    path, reads,
    tables::{NAMED, SUFFIXES},
    typed::{Typed, watched_workload},
};
use aya_ebpf::{
    macros::{fexit, lsm, tracepoint},
    programs::{FExitContext, LsmContext, TracePointContext},
};
use palisade_abi::{
    Config, Kind, MODEL_DIRECT, MODEL_SUFFIX_BYTES, ModelFile, NO_FD, NO_SUFFIX, behind_the_dot,
    kind,
};

/// `O_PATH`, on all machines that Linux and Rust both know but SPARC.
const ONLY_THE_NAME: u32 = 0o10_000_000;
/// `__FMODE_EXEC`, which no system call's flags can have.
const FOR_EXECUTING: u32 = 0x20;
/// Results from here on are negated errnos, not addresses.
const FIRST_ERROR: u64 = -4095_i64 as u64;

/// `do_filp_open`, from Linux 7.0 on `do_file_open`: (folder, name, how), result
#[fexit(function = "do_filp_open")]
pub fn model_open_exit(ctx: FExitContext) -> i32 {
    let file: u64 = ctx.arg(3);
    if file < FIRST_ERROR {
        let _ = opened(File::at(Address(file)), NO_FD);
    }
    0
}

/// `file_open`: (file). It always allows.
#[lsm(hook = "file_open")]
pub fn model_open_lsm(ctx: LsmContext) -> i32 {
    let file: *const u8 = ctx.arg(0);
    let _ = opened(File::at(Address(file as u64)), NO_FD);
    0
}

/// `sys_exit_open`
#[tracepoint]
pub fn model_open(ctx: TracePointContext) -> u32 {
    let _ = returned(&ctx);
    0
}

/// `sys_exit_openat`
#[tracepoint]
pub fn model_openat(ctx: TracePointContext) -> u32 {
    let _ = returned(&ctx);
    0
}

/// `sys_exit_openat2`
#[tracepoint]
pub fn model_openat2(ctx: TracePointContext) -> u32 {
    let _ = returned(&ctx);
    0
}

#[inline(always)]
fn returned(ctx: &TracePointContext) -> Option<()> {
    let fd = syscall_word(ctx, 0) as i64;
    if fd < 0 {
        return None;
    }
    opened(File::of(Task::current(), fd as u32)?, fd as u32)
}

#[inline(always)]
fn opened(file: File, fd: u32) -> Option<()> {
    let config = config()?;
    let reads = wanted(config, Kind::SampleReads);
    // Reads are counted from the first one on also for who is moved into a watched cgroup later.
    if !reads {
        watched_workload(config, Typed::current())?;
    }
    let flags = reads::flags(file)?;
    if flags & (ONLY_THE_NAME | FOR_EXECUTING) != 0 || path::is_of_the_kernel(file) {
        return None;
    }
    let model = model_file(config, file, fd)?;
    if reads {
        reads::model_opened();
    }
    if !wanted(config, Kind::ModelOpen) && !wanted(config, Kind::FileName) {
        return None;
    }
    let who = watched(config, Task::current())?;
    let time_ns = now();
    tell_path(&who, time_ns, model, file);
    if wanted(config, Kind::ModelOpen) {
        let flags = if reads::is_direct(flags) {
            MODEL_DIRECT
        } else {
            0
        };
        record(&who, time_ns, kind::MODEL_OPEN, flags, model);
    }
    Some(())
}

/// A successful map of a descriptor: tells of it if it is a model file.
#[inline(always)]
pub fn mapped(config: &Config, who: &Who, task: Task, fd: u32, bytes: u64) -> Option<()> {
    let file = File::of(task, fd)?;
    let model = model_file(config, file, fd)?;
    let time_ns = now();
    // Opened before the agent came, or told so long ago that the agent may have forgotten.
    if NAMED.get_ptr(file_key(&model)).is_none() {
        tell_path(who, time_ns, model, file);
    }
    let body = ModelFile { bytes, ..model };
    record(who, time_ns, kind::MODEL_MAP, 0, body);
    Some(())
}

#[inline(always)]
fn tell_path(who: &Who, time_ns: u64, model: ModelFile, file: File) {
    if record_with_path(who, time_ns, kind::FILE_NAME, model, file) {
        // A full cache only means that the path is told again.
        let _ = NAMED.insert(file_key(&model), 1, 0);
    }
}

/// Tells the path of a model file that is being read, unless it was told.
#[inline(always)]
pub fn name_once(
    config: &Config,
    who: &Who,
    key: palisade_abi::FileKey,
    file: File,
    fd: u32,
) -> Option<()> {
    if NAMED.get_ptr(key).is_none() {
        let model = model_file(config, file, fd)?;
        tell_path(who, now(), model, file);
    }
    Some(())
}

#[inline(always)]
fn file_key(file: &ModelFile) -> palisade_abi::FileKey {
    palisade_abi::FileKey {
        inode: file.inode,
        device: file.device,
        pad: 0,
    }
}

/// The file behind descriptor `fd` if it is a model file.
#[inline(always)]
pub fn model_file(config: &Config, file: File, fd: u32) -> Option<ModelFile> {
    let inode = file.inode()?;
    if !inode.is_regular() {
        return None;
    }
    let bytes = inode.size()?;
    let (name, length) = file.name()?;
    if bytes < config.model_min_bytes && !has_model_suffix(name, length) {
        return None;
    }
    let key = inode.key()?;
    Some(ModelFile {
        inode: key.inode,
        bytes,
        device: key.device,
        fd,
    })
}

/// Whether what follows the last dot is a configured suffix.
#[inline(always)]
fn has_model_suffix(name: Address, length: u32) -> bool {
    // The last 16 bytes up to the end of the name. A shorter name drags in bytes in front of it,
    // which lie in the same allocation (a dentry or its external name) and are ignored below.
    let start = (name.0 + length as u64).wrapping_sub(MODEL_SUFFIX_BYTES as u64);
    let Some([front, back]) = Address(start).read::<[u64; MODEL_SUFFIX_BYTES / 8]>(0) else {
        return false;
    };
    let suffix = behind_the_dot([front, back]);
    suffix.bytes < NO_SUFFIX
        && suffix.bytes < length
        && SUFFIXES
            .get_ptr(bytemuck::cast::<_, [u8; MODEL_SUFFIX_BYTES]>(suffix.words))
            .is_some()
}
