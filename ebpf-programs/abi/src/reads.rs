//! Reads of model files: which descriptors are theirs, and the offsets that finding out takes.

use bytemuck::{Pod, Zeroable};

/// A descriptor of a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ReadFdKey {
    /// Process id.
    pub pid: u32,
    /// File descriptor.
    pub fd: u32,
}

/// What a descriptor was when it was looked at.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReadFd {
    /// Inode number of the model file; 0: it is none.
    pub inode: u64,
    /// Device of its file system, kernel `dev_t`.
    pub device: u32,
    /// Reads until a descriptor that is none is looked at again.
    pub left: u32,
    /// Opens of model files on the host when it was looked at.
    pub opens: u64,
}

/// Offsets and values that differ between kernels and machines; see [`crate::Offsets`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReadOffsets {
    /// `file.f_flags`
    pub file_flags: u32,
    /// `O_DIRECT`
    pub direct: u32,
}
