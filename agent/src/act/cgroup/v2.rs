//! The v2 files: `cpu.max`, `cpu.weight`, `cgroup.freeze`, `cgroup.events`, `cgroup.kill`.

use super::{CgroupDir, CgroupError, Setting, v1};
use cgroups_rs::fs::cpu::CpuController;
use palisade_core::Knob;

/// The file of a knob.
pub fn file(knob: Knob) -> &'static str {
    match knob {
        Knob::CpuQuota => "cpu.max",
        Knob::CpuWeight => "cpu.weight",
        Knob::Freeze => "cgroup.freeze",
    }
}

/// The value in force. For the freezer that is the cgroup's own request, not an ancestor's.
pub fn read(dir: &CgroupDir, knob: Knob) -> Result<Setting, CgroupError> {
    dir.require(file(knob), &advice(dir, knob))?;
    let text = dir.read(file(knob))?;
    Setting::parse(knob, &text).ok_or(CgroupError::Text {
        file: file(knob),
        text,
    })
}

/// Writes a value.
pub fn write(dir: &CgroupDir, setting: &Setting) -> Result<(), CgroupError> {
    let cpu = CpuController::new(dir.fd_path(), dir.fd_path(), true);
    match *setting {
        Setting::Quota { quota, period } => cpu
            // The library writes "max" for a quota that is not positive.
            .set_cfs_quota_and_period(Some(quota.map_or(-1, |q| q as i64)), Some(period))
            .map_err(|e| v1::library_error(dir, "cpu.max", setting, &e)),
        // The library writes the number as it is; it is on the v2 scale already.
        Setting::Weight(weight) => cpu
            .set_shares(weight)
            .map_err(|e| v1::library_error(dir, "cpu.weight", setting, &e)),
        // By hand: the library's freezer reads the request back instead of the event.
        Setting::Frozen(_) => dir.write("cgroup.freeze", &setting.to_string()),
    }
}

/// Whether the freezer got where it was asked to go: `frozen` in `cgroup.events` is the truth.
pub fn settled(dir: &CgroupDir, frozen: bool) -> Result<bool, CgroupError> {
    event(dir, "frozen").map(|now| now == frozen)
}

/// Whether any process is left in it or below.
pub fn populated(dir: &CgroupDir) -> Result<bool, CgroupError> {
    event(dir, "populated")
}

fn event(dir: &CgroupDir, name: &str) -> Result<bool, CgroupError> {
    let text = dir.read("cgroup.events")?;
    text.lines()
        .find_map(|line| line.split_once(' ').filter(|(key, _)| *key == name))
        .map(|(_, value)| value.trim() == "1")
        .ok_or(CgroupError::Text {
            file: "cgroup.events",
            text,
        })
}

fn advice(dir: &CgroupDir, knob: Knob) -> String {
    if dir.is_root() {
        return "it is the root cgroup, which has no limits".to_owned();
    }
    match knob {
        Knob::Freeze => "cgroup.freeze needs kernel 5.2 or later".to_owned(),
        Knob::CpuQuota | Knob::CpuWeight => match dir.path().parent() {
            Some(parent) => format!(
                "the cpu controller is not enabled for it; `echo +cpu > {}/cgroup.subtree_control` enables it",
                parent.display()
            ),
            None => "the cpu controller is not enabled for it".to_owned(),
        },
    }
}
