//! One knob of one pinned cgroup, whichever version.

use super::{CgroupDir, CgroupError, Setting, Version, v1, v2};
use palisade_core::Knob;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Pause between two looks at a freezer.
const LOOK: Duration = Duration::from_millis(1);

/// A knob that can be read and written.
#[derive(Debug)]
pub struct KnobHandle {
    /// The cgroup.
    pub dir: CgroupDir,
    /// Its files.
    pub version: Version,
    /// Which knob.
    pub knob: Knob,
}

impl KnobHandle {
    /// The value in force.
    pub fn read(&self) -> Result<Setting, CgroupError> {
        match self.version {
            Version::V1 => v1::read(&self.dir, self.knob),
            Version::V2 => v2::read(&self.dir, self.knob),
        }
    }

    /// Writes a value.
    pub fn write(&self, setting: &Setting) -> Result<(), CgroupError> {
        match self.version {
            Version::V1 => v1::write(&self.dir, setting),
            Version::V2 => v2::write(&self.dir, setting),
        }
    }

    /// Writes a value, reads it back, and for a freezer waits until the kernel is there.
    /// [`CgroupError::Timeout`] if it is not within `wait`.
    pub fn set(&self, setting: &Setting, wait: Duration) -> Result<Setting, CgroupError> {
        self.write(setting)?;
        if let Setting::Frozen(frozen) = *setting {
            let start = Instant::now();
            while !self.settled(frozen)? {
                if start.elapsed() >= wait {
                    return Err(CgroupError::Timeout(format!(
                        "not {} {} ms after the write to {}",
                        if frozen { "frozen" } else { "thawed" },
                        wait.as_millis(),
                        self.dir.path().join(self.file()).display()
                    )));
                }
                sleep(LOOK);
            }
        }
        self.read()
    }

    /// How a person reads a value: with the file's name.
    pub fn shown(&self, setting: &Setting) -> String {
        match self.version {
            Version::V1 => v1::shown(setting),
            Version::V2 => format!("{} {setting}", v2::file(self.knob)),
        }
    }

    fn file(&self) -> &'static str {
        match self.version {
            Version::V1 => v1::file(self.knob),
            Version::V2 => v2::file(self.knob),
        }
    }

    fn settled(&self, frozen: bool) -> Result<bool, CgroupError> {
        match self.version {
            Version::V1 => v1::settled(&self.dir, frozen),
            // An empty cgroup reports frozen at once; an ancestor's freeze keeps it frozen
            // after our thaw, which is then somebody else's request.
            Version::V2 if !frozen => Ok(v2::settled(&self.dir, false)? || self.ancestor_frozen()),
            Version::V2 => v2::settled(&self.dir, true),
        }
    }

    fn ancestor_frozen(&self) -> bool {
        let mut path = self.dir.path();
        while let Some(parent) = path.parent() {
            match std::fs::read_to_string(parent.join("cgroup.freeze")) {
                Ok(text) if text.trim() == "1" => return true,
                Ok(_) => path = parent,
                Err(_) => return false,
            }
        }
        false
    }
}
