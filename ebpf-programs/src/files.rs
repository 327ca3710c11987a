//! Model files: which files are, and their opens.
//!
//! A regular file is a model file if its name ends in a configured suffix or if it is large:
//! hub caches name files by their hash, without a suffix.

use crate::{
    emit::{file_name, now, record},
    filter::{Who, config, wanted, watched},
    kernel::{Address, File, Task, syscall_word},
    reads,
    tables::{NAMED, SUFFIXES},
};
use aya_ebpf::{macros::tracepoint, programs::TracePointContext};
use palisade_abi::{Config, Kind, MODEL_DIRECT, MODEL_SUFFIX_BYTES, ModelFile, kind};

/// `sys_exit_open`
#[tracepoint]
pub fn model_open(ctx: TracePointContext) -> u32 {
    let _ = opened(&ctx);
    0
}

/// `sys_exit_openat`
#[tracepoint]
pub fn model_openat(ctx: TracePointContext) -> u32 {
    let _ = opened(&ctx);
    0
}

/// `sys_exit_openat2`
#[tracepoint]
pub fn model_openat2(ctx: TracePointContext) -> u32 {
    let _ = opened(&ctx);
    0
}

#[inline(always)]
fn opened(ctx: &TracePointContext) -> Option<()> {
    let fd = syscall_word(ctx, 0) as i64;
    if fd < 0 {
        return None;
    }
    let config = config()?;
    if wanted(config, Kind::SampleReads) {
        reads::forget(fd as u32);
    }
    if !wanted(config, Kind::ModelOpen) && !wanted(config, Kind::FileName) {
        return None;
    }
    let task = Task::current();
    let who = watched(config, task)?;
    let file = File::of(task, fd as u32)?;
    let (model, name) = model_file(config, file, fd as u32)?;
    let time_ns = now();
    tell_name(&who, time_ns, model, name);
    if wanted(config, Kind::ModelOpen) {
        let flags = if reads::is_direct(file) {
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
    let (file, name) = model_file(config, File::of(task, fd)?, fd)?;
    let time_ns = now();
    // Opened before the agent came, or told so long ago that the agent may have forgotten.
    if NAMED.get_ptr(file_key(&file)).is_none() {
        tell_name(who, time_ns, file, name);
    }
    let body = ModelFile { bytes, ..file };
    record(who, time_ns, kind::MODEL_MAP, 0, body);
    Some(())
}

#[inline(always)]
fn tell_name(who: &Who, time_ns: u64, file: ModelFile, name: Address) {
    if file_name(who, time_ns, file, name) {
        // A full cache only means that the name is told again.
        let _ = NAMED.insert(file_key(&file), 1, 0);
    }
}

/// Tells the name of a model file that is being read, unless it was told.
#[inline(always)]
pub fn name_once(
    config: &Config,
    who: &Who,
    key: palisade_abi::FileKey,
    file: File,
    fd: u32,
) -> Option<()> {
    if NAMED.get_ptr(key).is_none() {
        let (file, name) = model_file(config, file, fd)?;
        tell_name(who, now(), file, name);
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

/// The file behind descriptor `fd` if it is a model file, with the address of its name.
#[inline(always)]
pub fn model_file(config: &Config, file: File, fd: u32) -> Option<(ModelFile, Address)> {
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
    let model = ModelFile {
        inode: key.inode,
        bytes,
        device: key.device,
        fd,
    };
    Some((model, name))
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
    // From the last byte, which is the highest of its word, to the dot; the dot and what is in
    // front of it become NULs. Shifts and not indices: the verifier forbids addresses counted
    // down from the stack.
    let mut words = [back, front];
    // 0 for none: an `Option` would leave a register unset, which the verifier may get to see.
    let mut dot_at = 0_u32;
    let mut place = 0_u32;
    for word in &mut words {
        let mut kept = 0;
        for shift in (0..64).step_by(8).rev() {
            let byte = (*word >> shift) & 0xff;
            place += 1;
            if dot_at == 0 {
                if byte == b'.' as u64 {
                    dot_at = place;
                } else {
                    kept |= byte << shift;
                }
            }
        }
        *word = kept;
    }
    let [back, front] = words;
    let suffix: [u8; MODEL_SUFFIX_BYTES] = bytemuck::cast([front, back]);
    dot_at != 0 && dot_at <= length && SUFFIXES.get_ptr(suffix).is_some()
}
