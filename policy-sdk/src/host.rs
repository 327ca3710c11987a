//! What a policy can ask the agent. None of it blocks or does I/O: answers come from the
//! agent's tables, and are `None` where those know nothing.
//!
//! Outside of `wasm32` a scripted stand-in answers: see [`crate::testing::fake`]. The strings
//! are what the observed processes call themselves: put them through [`printable`] before they
//! go into a reason.

use crate::ProcessId;

/// How important a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For the policy's author.
    Debug,
    /// For the record.
    Info,
    /// Something is not as it should be.
    Warn,
    /// The policy cannot do its work.
    Error,
}

/// What the agent knows about a process.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ProcessInfo {
    /// Process id of the parent.
    pub parent: u32,
    /// Name of the first thread; a process can change it.
    pub comm: String,
    /// Path of the executable; only its end if it begins with `…/`; empty where unknown.
    pub exe: String,
    /// Workload that it belongs to.
    pub workload: u64,
}

/// What the agent knows about a workload.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct WorkloadInfo {
    /// Path of its cgroup below the mount point, beginning with a slash.
    pub cgroup: String,
    /// Id of its container, if it is one.
    pub container: Option<String>,
}

#[cfg(not(target_arch = "wasm32"))]
use crate::testing::fake as side;
#[cfg(target_arch = "wasm32")]
use crate::wire as side;

/// Writes to the agent's log. The rate is limited, long messages are cut.
pub fn log(level: Level, message: &str) {
    side::log(level, message);
}

/// Looks up a process.
pub fn process_of(process: ProcessId) -> Option<ProcessInfo> {
    side::process_of(process)
}

/// Looks up a workload.
pub fn workload_of(workload: u64) -> Option<WorkloadInfo> {
    side::workload_of(workload)
}

/// Path of a file seen by a `MODEL_OPEN` record.
pub fn file_path(device: u32, inode: u64) -> Option<String> {
    side::file_path(device, inode)
}

/// At most `limit` characters of a text that a stranger chose, control characters replaced.
///
/// ```
/// use palisade_policy_sdk::host::printable;
/// assert_eq!(printable("a\x1b[2Jb", 5), "a?[2J…");
/// ```
pub fn printable(text: &str, limit: usize) -> String {
    let mut out: String = text
        .chars()
        .take(limit)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    if text.chars().nth(limit).is_some() {
        out.push('…');
    }
    out
}
