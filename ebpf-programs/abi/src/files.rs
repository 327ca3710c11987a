//! Paths of files, and the offsets that walking them takes.

use bytemuck::{Pod, Zeroable};

/// 64-byte slots of an entry with a path (`FILE_NAME`, `EXEC`): the record's and the path's.
pub const PATH_SLOTS: usize = 10;
/// [`crate::ModelFile::fd`]: the hook does not tell the descriptor, or there is none (io_uring).
pub const NO_FD: u32 = u32::MAX;
/// [`FilePath::flags`]: the walk came to the root; without it, the names are only the path's end.
pub const PATH_WHOLE: u32 = 1;
/// [`FilePath::flags`]: the file has no name any more.
pub const PATH_DELETED: u32 = 2;

/// The path that follows the record in an entry of several slots. What is behind `length` means
/// nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FilePath {
    /// Bytes of `names` that are used.
    pub length: u32,
    /// [`PATH_WHOLE`], [`PATH_DELETED`]
    pub flags: u32,
    /// The components, the last one first, a NUL behind each.
    pub names: [u8; 512],
    /// Up to a whole number of slots.
    pub reserved: [u64; 7],
}

/// Offsets for walking a path and for telling opens apart; see [`crate::Offsets`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PathOffsets {
    /// `file.f_mode`
    pub file_mode: u32,
    /// `file.f_path` + `path.mnt`
    pub file_mount: u32,
    /// `vfsmount.mnt_root`
    pub mount_root: u32,
    /// `mount.mnt`, the `vfsmount` in a `mount`.
    pub mount_inner: u32,
    /// `mount.mnt_parent`
    pub mount_parent: u32,
    /// `mount.mnt_mountpoint`
    pub mount_point: u32,
    /// `dentry.d_parent`
    pub dentry_parent: u32,
    /// `dentry.d_hash` + `hlist_bl_node.pprev`; null if the name is gone.
    pub dentry_hashed: u32,
}

const _: () = assert!(size_of::<FilePath>() == (PATH_SLOTS - 1) * crate::RECORD_BYTES);
