//! Cgroups as open directories, and the three knobs on them.
//!
//! Invariant: every read and write goes through a directory descriptor whose inode was compared
//! with the expected one, so a cgroup that was removed and made again under the same name is
//! never touched. Nothing here decides which value is right, or enables a controller.

mod dir;
mod freezer;
mod knob;
mod setting;
mod v1;
pub mod v2;

pub use dir::CgroupDir;
pub use freezer::{freezer_of, is_within};
pub use knob::KnobHandle;
pub use setting::{Setting, shares_of_weight};

use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// Which interface files a directory has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// `cpu.cfs_quota_us`, `cpu.shares`, `freezer.state`.
    V1,
    /// `cpu.max`, `cpu.weight`, `cgroup.freeze`.
    V2,
}

/// What can go wrong on a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The directory is gone, or another one has its name now.
    #[error("the cgroup is gone")]
    Gone,
    /// It has no such file: the controller is not enabled, or it is the root.
    #[error("{dir}/{file} does not exist: {advice}", dir = dir.display())]
    Missing {
        /// The cgroup.
        dir: PathBuf,
        /// The file.
        file: &'static str,
        /// What a person can do about it.
        advice: String,
    },
    /// A system call failed.
    #[error("{call} {path}: {source}", path = path.display())]
    Io {
        /// "open", "read", "write" …
        call: &'static str,
        /// On which file, with the value for a write.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file's text is not what the kernel documents.
    #[error("{file} holds {text:?}")]
    Text {
        /// The file.
        file: &'static str,
        /// Its text.
        text: String,
    },
    /// It would hit others than the workload, or is not possible on this host.
    #[error("{0}")]
    Refused(String),
    /// The kernel took the value but did not get there in time.
    #[error("{0}")]
    Timeout(String),
}
