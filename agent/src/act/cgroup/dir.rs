//! A pinned cgroup directory.

use super::CgroupError;
use rustix::fs::{Mode, OFlags, fstat, open, openat};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// More text than any file that is read here may hold.
const TEXT_MAX: u64 = 4 << 20;
/// Deepest tree below a workload that is walked for members.
const DEPTH_MAX: u32 = 32;

/// An open cgroup directory. Holding it does not keep the cgroup alive; once the cgroup is
/// removed, every access answers [`CgroupError::Gone`], whatever took its name.
#[derive(Debug)]
pub struct CgroupDir {
    fd: OwnedFd,
    inode: u64,
    path: PathBuf,
}

impl CgroupDir {
    /// Opens `path` and compares its inode.
    pub fn pin(path: &Path, inode: u64) -> Result<Self, CgroupError> {
        let dir = Self::open(path)?;
        if dir.inode == inode {
            Ok(dir)
        } else {
            Err(CgroupError::Gone)
        }
    }

    /// Opens `path`, whatever its inode is.
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|e| match e {
            Errno::NOENT | Errno::NOTDIR => CgroupError::Gone,
            other => io_error("open", path.to_owned(), other.into()),
        })?;
        let stat = fstat(&fd).map_err(|e| io_error("stat", path.to_owned(), e.into()))?;
        Ok(Self {
            fd,
            inode: stat.st_ino,
            path: path.to_owned(),
        })
    }

    /// Its kernfs id.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Where it was when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads to this very directory through the descriptor, for libraries that take
    /// paths.
    pub fn fd_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Whether it has a file of that name.
    pub fn has(&self, file: &str) -> bool {
        rustix::fs::accessat(
            &self.fd,
            file,
            rustix::fs::Access::EXISTS,
            rustix::fs::AtFlags::empty(),
        )
        .is_ok()
    }

    /// [`CgroupError::Missing`] or [`CgroupError::Gone`] unless it has the file.
    pub fn require(&self, file: &'static str, advice: &str) -> Result<(), CgroupError> {
        if self.has(file) {
            return Ok(());
        }
        if !self.has("cgroup.procs") {
            return Err(CgroupError::Gone);
        }
        Err(CgroupError::Missing {
            dir: self.path.clone(),
            file,
            advice: advice.to_owned(),
        })
    }

    /// The text of a file, without white space around it.
    pub fn read(&self, file: &str) -> Result<String, CgroupError> {
        let path = self.path.join(file);
        let fd = openat(
            &self.fd,
            file,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| gone_or("open", path.clone(), e.into()))?;
        let mut text = String::new();
        File::from(fd)
            .take(TEXT_MAX)
            .read_to_string(&mut text)
            .map_err(|e| gone_or("read", path, e))?;
        Ok(text.trim().to_owned())
    }

    /// One write of `text`.
    pub fn write(&self, file: &str, text: &str) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
        let fd = openat(&self.fd, file, flags, Mode::empty())
            .map_err(|e| gone_or("open", path.clone(), e.into()))?;
        File::from(fd).write_all(text.as_bytes()).map_err(|e| {
            gone_or(
                "write",
                PathBuf::from(format!("{} < {text}", path.display())),
                e,
            )
        })
    }

    /// Whether it is the root of its hierarchy (which has no limits to set).
    pub fn is_root(&self) -> bool {
        // v1 roots alone have a release_agent, v2 roots alone lack cgroup.events.
        self.has("release_agent") || (self.has("cgroup.controllers") && !self.has("cgroup.events"))
    }

    /// The processes in it and in all cgroups below it.
    pub fn members(&self) -> Result<BTreeSet<u32>, CgroupError> {
        let mut found = BTreeSet::new();
        collect(&self.fd_path(), &self.path, 0, &mut found)?;
        Ok(found)
    }
}

fn collect(
    dir: &Path,
    shown: &Path,
    depth: u32,
    found: &mut BTreeSet<u32>,
) -> Result<(), CgroupError> {
    if depth > DEPTH_MAX {
        return Err(CgroupError::Refused(format!(
            "{} is nested deeper than {DEPTH_MAX} levels",
            shown.display()
        )));
    }
    let text = match std::fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => text,
        // Below the top a cgroup may vanish while we walk.
        Err(e) if depth > 0 && is_gone(&e) => return Ok(()),
        Err(e) => return Err(gone_or("read", shown.join("cgroup.procs"), e)),
    };
    for line in text.lines() {
        match line.trim().parse::<u32>() {
            // 0 stands for a process of another PID namespace: it cannot be named, so the
            // member set would be a lie.
            Ok(0) | Err(_) => {
                return Err(CgroupError::Text {
                    file: "cgroup.procs",
                    text: line.to_owned(),
                });
            }
            Ok(pid) => {
                found.insert(pid);
            }
        }
    }
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if depth > 0 && is_gone(&e) => return Ok(()),
        Err(e) => return Err(gone_or("list", shown.to_owned(), e)),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            let name = entry.file_name();
            collect(&dir.join(&name), &shown.join(&name), depth + 1, found)?;
        }
    }
    Ok(())
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NODEV)
    )
}

fn gone_or(call: &'static str, path: PathBuf, source: io::Error) -> CgroupError {
    if is_gone(&source) {
        CgroupError::Gone
    } else {
        io_error(call, path, source)
    }
}

pub(super) fn io_error(call: &'static str, path: PathBuf, source: io::Error) -> CgroupError {
    CgroupError::Io { call, path, source }
}
