//! Between the types of the component's world and those that policies use; `wasm32` only.

use crate::bindings::palisade::policy::{host as wire_host, types as wire};
use crate::{Action, Level, ProcessId, Request, Setting, Severity, Target, host};

/// A setting as the host hands it over.
pub(crate) fn setting(from: wire::Setting) -> Setting {
    match from {
        wire::Setting::Integer(value) => Setting::Integer(value),
        wire::Setting::Number(value) => Setting::Number(value),
        wire::Setting::Text(value) => Setting::Text(value),
        wire::Setting::Flag(value) => Setting::Flag(value),
    }
}

/// A request as the host wants it.
pub(crate) fn request(from: Request) -> wire::Request {
    wire::Request {
        target: match from.target {
            Target::Process(id) => wire::Target::Process(process(id)),
            Target::Workload(id) => wire::Target::Workload(id),
        },
        action: match from.action {
            Action::Alert => wire::Action::Alert,
            Action::CpuWeight(weight) => wire::Action::CpuWeight(weight),
            Action::CpuQuota(permille) => wire::Action::CpuQuota(permille),
            Action::Freeze => wire::Action::Freeze,
            Action::Terminate => wire::Action::Terminate,
            Action::Kill => wire::Action::Kill,
        },
        lease_ms: from.lease_ms,
        severity: match from.severity {
            Severity::Info => wire::Severity::Info,
            Severity::Warning => wire::Severity::Warning,
            Severity::Critical => wire::Severity::Critical,
        },
        reason: from.reason,
        evidence: from
            .evidence
            .into_iter()
            .map(|item| wire::Evidence {
                name: item.name.into_owned(),
                value: item.value,
                unit: item.unit.into_owned(),
            })
            .collect(),
    }
}

fn process(id: ProcessId) -> wire::Process {
    wire::Process {
        pid: id.pid,
        start_ns: id.start_ns,
    }
}

pub(crate) fn log(level: Level, message: &str) {
    let level = match level {
        Level::Debug => wire::Level::Debug,
        Level::Info => wire::Level::Info,
        Level::Warn => wire::Level::Warn,
        Level::Error => wire::Level::Error,
    };
    wire_host::log(level, message);
}

pub(crate) fn process_of(id: ProcessId) -> Option<host::ProcessInfo> {
    wire_host::process_of(process(id)).map(|info| host::ProcessInfo {
        parent: info.parent,
        comm: info.comm,
        exe: info.exe,
        workload: info.workload,
    })
}

pub(crate) fn workload_of(id: u64) -> Option<host::WorkloadInfo> {
    wire_host::workload_of(id).map(|info| host::WorkloadInfo {
        cgroup: info.cgroup,
        container: info.container,
    })
}

pub(crate) fn file_path(device: u32, inode: u64) -> Option<String> {
    wire_host::file_path(device, inode)
}
