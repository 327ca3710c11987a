//! One agent a host.
//!
//! Invariant: whoever holds an [`AgentLock`] is the only agent of that run folder. The kernel
//! drops the lock with the process, however it ends; the pid in the file is for people only.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const FILE: &str = "agent.lock";

/// Held while the agent runs; let go when dropped.
#[derive(Debug)]
pub struct AgentLock {
    _file: Flock<File>,
}

/// Why the lock was not got.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent runs.
    #[error(
        "another agent is already running{} (it holds {}); stop it first",
        pid.map(|pid| format!(", pid {pid}")).unwrap_or_default(), path.display()
    )]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Its holder, as far as the file tells.
        pid: Option<u32>,
    },
    /// The run folder cannot be used.
    #[error("cannot lock {}: {source}; run as root, or set run-dir to a folder of your own", path.display())]
    Io {
        /// Folder or file.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
}

/// Makes the run folder (mode 0700) if need be and takes its lock.
pub fn lock(run_dir: &Path) -> Result<AgentLock, LockError> {
    let path = run_dir.join(FILE);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| LockError::Io { path, source }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .map_err(failed(run_dir))?;
    // The descriptor is close-on-exec: only children that are forked and not executed share it.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(&path)
        .map_err(failed(&path))?;
    let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => file,
        Err((file, Errno::EWOULDBLOCK)) => {
            return Err(LockError::Held {
                path,
                pid: holder(file),
            });
        }
        Err((_, errno)) => return Err(failed(&path)(errno.into())),
    };
    file.set_len(0)
        .and_then(|()| writeln!(&*file, "{}", std::process::id()))
        .and_then(|()| file.flush())
        .map_err(failed(&path))?;
    Ok(AgentLock { _file: file })
}

fn holder(file: File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_second_agent_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("a/run");
        let first = lock(&run_dir).unwrap();
        let Err(LockError::Held { pid, .. }) = lock(&run_dir) else {
            panic!("locked twice");
        };
        assert_eq!(pid, Some(std::process::id()));
        let text = lock(&run_dir).unwrap_err().to_string();
        assert!(text.contains("already running, pid "), "{text}");
        drop(first);
        lock(&run_dir).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let error = lock(Path::new("/proc/palisade/run")).unwrap_err();
        assert!(error.to_string().contains("/proc/palisade/run"), "{error}");
    }
}
