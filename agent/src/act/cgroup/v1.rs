//! The v1 files: `cpu.cfs_quota_us` with `cpu.cfs_period_us`, `cpu.shares`, `freezer.state`.

use super::{CgroupDir, CgroupError, Setting};
use cgroups_rs::fs::cpu::CpuController;
use palisade_core::Knob;
use std::error::Error as _;
use std::io;

/// The file of a knob, the first of two for the quota.
pub fn file(knob: Knob) -> &'static str {
    match knob {
        Knob::CpuQuota => "cpu.cfs_quota_us",
        Knob::CpuWeight => "cpu.shares",
        Knob::Freeze => "freezer.state",
    }
}

/// The value in force. For the freezer that is the cgroup's own request, not an ancestor's.
pub fn read(dir: &CgroupDir, knob: Knob) -> Result<Setting, CgroupError> {
    let advice = match knob {
        Knob::Freeze => "the root of the freezer hierarchy cannot be frozen",
        Knob::CpuQuota => "the kernel lacks CONFIG_CFS_BANDWIDTH, or it is another hierarchy",
        Knob::CpuWeight => "it is not in the cpu hierarchy",
    };
    dir.require(file(knob), advice)?;
    match knob {
        Knob::CpuQuota => Ok(Setting::Quota {
            // -1 is "no limit".
            quota: u64::try_from(number(dir, "cpu.cfs_quota_us")?).ok(),
            period: positive(dir, "cpu.cfs_period_us")?,
        }),
        Knob::CpuWeight => Ok(Setting::Weight(positive(dir, "cpu.shares")?)),
        Knob::Freeze => Ok(Setting::Frozen(number(dir, "freezer.self_freezing")? == 1)),
    }
}

/// Writes a value.
pub fn write(dir: &CgroupDir, setting: &Setting) -> Result<(), CgroupError> {
    let cpu = CpuController::new(dir.fd_path(), dir.fd_path(), false);
    let wrong = |file, e| library_error(dir, file, setting, &e);
    match *setting {
        Setting::Quota { quota, period } => {
            let quota = quota.map_or(-1, |q| q as i64);
            let set_quota = || {
                cpu.set_cfs_quota(quota)
                    .map_err(|e| wrong("cpu.cfs_quota_us", e))
            };
            let set_period = || {
                cpu.set_cfs_period(period)
                    .map_err(|e| wrong("cpu.cfs_period_us", e))
            };
            // The kernel refuses a cgroup more than its parent has, also in between the two
            // writes: in this order the ratio in between is never above both ends.
            let old_period = number(dir, "cpu.cfs_period_us")?;
            if i64::try_from(period).is_ok_and(|new| new > old_period) {
                set_period()?;
                set_quota()
            } else {
                set_quota()?;
                set_period()
            }
        }
        Setting::Weight(shares) => cpu.set_shares(shares).map_err(|e| wrong("cpu.shares", e)),
        Setting::Frozen(frozen) => {
            dir.write("freezer.state", if frozen { "FROZEN" } else { "THAWED" })
        }
    }
}

/// Whether the freezer got where it was asked to go. A thaw also counts as reached while an
/// ancestor is frozen: that is somebody else's request.
pub fn settled(dir: &CgroupDir, frozen: bool) -> Result<bool, CgroupError> {
    if frozen {
        // Reading the state makes the kernel look at the tasks again.
        Ok(dir.read("freezer.state")? == "FROZEN")
    } else {
        Ok(number(dir, "freezer.self_freezing")? == 0)
    }
}

/// How a person reads a value: with the files' names.
pub fn shown(setting: &Setting) -> String {
    match setting {
        Setting::Quota { quota, period } => format!(
            "cpu.cfs_quota_us {} cpu.cfs_period_us {period}",
            quota.map_or(-1, |q| q as i64)
        ),
        Setting::Weight(shares) => format!("cpu.shares {shares}"),
        Setting::Frozen(true) => "freezer.state FROZEN".to_owned(),
        Setting::Frozen(false) => "freezer.state THAWED".to_owned(),
    }
}

/// The kernel's error out of the library's, with the file and value.
pub fn library_error(
    dir: &CgroupDir,
    file: &'static str,
    setting: &Setting,
    error: &cgroups_rs::fs::error::Error,
) -> CgroupError {
    let errno = error
        .source()
        .and_then(|cause| cause.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error);
    let not_found = [Some(2), Some(19)]; // ENOENT, ENODEV: removed under our hands
    if not_found.contains(&errno) && !dir.has("cgroup.procs") {
        return CgroupError::Gone;
    }
    if errno == Some(22) && file.starts_with("cpu.cfs_") {
        return CgroupError::Refused(format!(
            "write {}/{file}: EINVAL for {setting}: on v1 a quota must not be above the parent's nor \
             below a child's share",
            dir.path().display()
        ));
    }
    let source = errno.map_or_else(
        || io::Error::other(error.to_string()),
        io::Error::from_raw_os_error,
    );
    CgroupError::Io {
        call: "write",
        path: dir.path().join(format!("{file} < {setting}")),
        source,
    }
}

fn positive(dir: &CgroupDir, file: &'static str) -> Result<u64, CgroupError> {
    let value = number(dir, file)?;
    u64::try_from(value)
        .ok()
        .filter(|v| *v > 0)
        .ok_or_else(|| CgroupError::Text {
            file,
            text: value.to_string(),
        })
}

fn number(dir: &CgroupDir, file: &'static str) -> Result<i64, CgroupError> {
    let text = dir.read(file)?;
    text.parse().map_err(|_| CgroupError::Text { file, text })
}
