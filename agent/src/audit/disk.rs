//! The few things that the writer asks of a file system, so that tests can refuse them.
//!
//! Invariant: nothing here decides anything; every call is one system call or two.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Where segments live.
pub(crate) trait Disk: Send {
    /// Opens a segment for writing, made if it does not exist, and syncs its directory.
    fn open(&mut self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Makes a file of length 0 with `bytes` of space set aside for it.
    fn reserve(&mut self, path: &Path, bytes: u64) -> io::Result<()>;
    /// Renames a file and syncs its directory.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
}

/// An open segment.
pub(crate) trait DiskFile: Send {
    /// Writes some of `bytes` at `offset`.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// fdatasync.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

/// The real one.
#[derive(Debug)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn open(&mut self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = options().open(path)?;
        sync_parent(path)?;
        Ok(Box::new(file))
    }

    fn reserve(&mut self, path: &Path, bytes: u64) -> io::Result<()> {
        // One that is there already is kept: on a full disk its space could not be had again.
        let file = options().open(path)?;
        if file.metadata()?.len() > 0 {
            file.set_len(0)?;
        }
        let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&file, flags, 0, bytes) {
            Ok(()) => sync_parent(path),
            Err(error) => {
                let _ = std::fs::remove_file(path);
                Err(error.into())
            }
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)?;
        sync_parent(to)
    }
}

impl DiskFile for File {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
