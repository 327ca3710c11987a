//! The file table: which path an inode had when it was opened.
//!
//! Invariant: paths are for people and for naming a model in a finding; nothing is opened or
//! changed by them. A path that could not be checked against the inode is marked so.

use super::{is_whole, proc};
use palisade_abi::{FileKey, NO_FD};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Whole path, or only its end: the last component, or what is behind `…/`. Lossy.
    pub path: String,
    /// Size when opened, bytes.
    pub bytes: u64,
    /// The path led to that very inode when the kernel told it or when it was looked up.
    pub verified: bool,
}

/// The kernel's `dev_t` of a `stat` device number.
pub fn kernel_device(st_dev: u64) -> u32 {
    (rustix::fs::major(st_dev) << 20) | (rustix::fs::minor(st_dev) & 0xf_ffff)
}

/// `name` is the path as the kernel saw it. If that is not whole, the open descriptor is looked at while it
/// lasts.
pub(super) fn identify(key: FileKey, name: &str, pid: u32, fd: u32, bytes: u64) -> FileInfo {
    let bare = FileInfo {
        path: name.to_owned(),
        bytes,
        verified: is_whole(name),
    };
    if bare.verified || fd == NO_FD {
        return bare;
    }
    let name = name.rsplit('/').next().unwrap_or_default();
    let link = PathBuf::from(format!("/proc/{pid}/fd/{fd}"));
    let (Some(path), Ok(meta)) = (proc::link(&link), fs::metadata(&link)) else {
        return bare;
    };
    let same_inode = meta.ino() == key.inode;
    let same_device = kernel_device(meta.dev()) == key.device;
    // The file may be deleted by now; the kernel then appends this to the link.
    let plain = path.strip_suffix(" (deleted)").unwrap_or(&path);
    let same_name = !name.is_empty() && plain.rsplit('/').next() == Some(name);
    // btrfs subvolumes and overlayfs show another device, overlayfs even another inode, to stat
    // than the kernel's own: there, name and size must do.
    let verified = same_inode && same_device;
    if verified || (same_name && (same_inode || meta.len() == bytes)) {
        return FileInfo {
            path,
            bytes,
            verified,
        };
    }
    bare
}
