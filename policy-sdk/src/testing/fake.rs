//! The stand-in for the agent behind [`crate::host`]: answers what a test told it, per thread.

use crate::ProcessId;
use crate::host::{Level, ProcessInfo, WorkloadInfo};
use std::cell::RefCell;
use std::collections::BTreeMap;

#[derive(Default)]
struct Script {
    processes: BTreeMap<ProcessId, ProcessInfo>,
    workloads: BTreeMap<u64, WorkloadInfo>,
    files: BTreeMap<(u32, u64), String>,
    logs: Vec<(Level, String)>,
}

thread_local! {
    static SCRIPT: RefCell<Script> = RefCell::default();
}

/// Forgets everything.
pub fn reset() {
    SCRIPT.with_borrow_mut(|script| *script = Script::default());
}

/// Makes a process known.
pub fn set_process(id: ProcessId, info: ProcessInfo) {
    SCRIPT.with_borrow_mut(|script| script.processes.insert(id, info));
}

/// Makes a workload known.
pub fn set_workload(id: u64, info: WorkloadInfo) {
    SCRIPT.with_borrow_mut(|script| script.workloads.insert(id, info));
}

/// Makes a file known.
pub fn set_file(device: u32, inode: u64, path: &str) {
    SCRIPT.with_borrow_mut(|script| script.files.insert((device, inode), path.to_owned()));
}

/// What was logged since the last call.
pub fn take_logs() -> Vec<(Level, String)> {
    SCRIPT.with_borrow_mut(|script| std::mem::take(&mut script.logs))
}

pub(crate) fn log(level: Level, message: &str) {
    SCRIPT.with_borrow_mut(|script| script.logs.push((level, message.to_owned())));
}

pub(crate) fn process_of(id: ProcessId) -> Option<ProcessInfo> {
    SCRIPT.with_borrow(|script| script.processes.get(&id).cloned())
}

pub(crate) fn workload_of(id: u64) -> Option<WorkloadInfo> {
    SCRIPT.with_borrow(|script| script.workloads.get(&id).cloned())
}

pub(crate) fn file_path(device: u32, inode: u64) -> Option<String> {
    SCRIPT.with_borrow(|script| script.files.get(&(device, inode)).cloned())
}
