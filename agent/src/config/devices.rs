//! From device presets and paths to the numbers that the kernel programs compare.
//!
//! Invariant: only character devices; block devices have numbers of their own.

use palisade_abi::{ANY_MINOR, DeviceKey};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// A device that is known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// Name in the configuration.
    pub name: &'static str,
    /// Name in /proc/devices.
    pub driver: &'static str,
    /// The major number if it is fixed (kernel's Documentation/admin-guide/devices.txt).
    pub major: Option<u32>,
}

/// The devices that are known by name.
pub const PRESETS: &[Preset] = &[
    // 195:0–247 are the GPUs, 195:254 modeset, 195:255 nvidiactl: one driver, one lock.
    Preset {
        name: "nvidia",
        driver: "nvidia",
        major: Some(195),
    },
    Preset {
        name: "nvidia-uvm",
        driver: "nvidia-uvm",
        major: None,
    },
    Preset {
        name: "kfd",
        driver: "kfd",
        major: None,
    },
    Preset {
        name: "drm",
        driver: "drm",
        major: Some(226),
    },
];

/// The character devices of a `/proc/devices`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcDevices(Vec<(String, u32)>);

impl ProcDevices {
    /// Of this host.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/devices")?))
    }

    /// From the file's text.
    pub fn parse(text: &str) -> Self {
        let entries = text
            .lines()
            .skip_while(|line| !line.starts_with("Character"))
            .skip(1)
            .take_while(|line| !line.starts_with("Block"))
            .filter_map(|line| {
                let (major, name) = line.trim().split_once(' ')?;
                Some((name.trim().to_owned(), major.parse().ok()?))
            });
        Self(entries.collect())
    }

    /// The driver of a major number, if it is loaded.
    pub fn driver(&self, major: u32) -> Option<&str> {
        let (driver, _) = self.0.iter().find(|(_, number)| *number == major)?;
        Some(driver)
    }

    /// Major number of a driver, if it is loaded.
    pub fn major(&self, driver: &str) -> Option<u32> {
        // NVIDIA registers further majors as `nvidia/0`, `nvidia-caps`, …: only the exact name.
        self.0
            .iter()
            .find(|(name, _)| name == driver)
            .map(|(_, major)| *major)
    }
}

/// What a preset means on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolved {
    /// It is there.
    Present(DeviceKey),
    /// It is not, but its number is fixed: it is watched as soon as it appears.
    Later(DeviceKey),
    /// It is not, and has no number yet.
    Absent,
}

impl Preset {
    pub(super) fn named(name: &str) -> Option<&'static Preset> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    pub(super) fn resolve(&self, devices: &ProcDevices) -> Resolved {
        let key = |major| DeviceKey {
            major,
            minor: ANY_MINOR,
        };
        match (devices.major(self.driver), self.major) {
            (Some(major), _) => Resolved::Present(key(major)),
            (None, Some(major)) => Resolved::Later(key(major)),
            (None, None) => Resolved::Absent,
        }
    }
}

/// Why a path is not a device that can be watched.
#[derive(Debug, thiserror::Error)]
pub(super) enum PathError {
    #[error("{0}")]
    Stat(io::Error),
    #[error("it is not a character device")]
    NotCharacter,
}

/// The number of the character device at `path`.
pub(super) fn key_of_path(path: &Path) -> Result<DeviceKey, PathError> {
    let meta = std::fs::metadata(path).map_err(PathError::Stat)?;
    if !meta.file_type().is_char_device() {
        return Err(PathError::NotCharacter);
    }
    Ok(DeviceKey {
        major: rustix::fs::major(meta.rdev()),
        minor: rustix::fs::minor(meta.rdev()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PROC: &str = "Character devices:\n  1 mem\n195 nvidia\n195 nvidia-modeset\n\
        507 nvidia-uvm\n508 nvidia-caps\n226 drm\n\nBlock devices:\n  7 loop\n235 kfd\n";

    #[test]
    fn presets_take_dynamic_majors_from_proc_devices() {
        let devices = ProcDevices::parse(PROC);
        let any = |major| DeviceKey {
            major,
            minor: ANY_MINOR,
        };
        for (name, resolved) in [
            ("nvidia", Resolved::Present(any(195))),
            ("nvidia-uvm", Resolved::Present(any(507))),
            ("kfd", Resolved::Absent),
            ("drm", Resolved::Present(any(226))),
        ] {
            assert_eq!(
                Preset::named(name).unwrap().resolve(&devices),
                resolved,
                "{name}"
            );
        }
        let none = ProcDevices::parse("");
        assert_eq!(
            Preset::named("nvidia").unwrap().resolve(&none),
            Resolved::Later(any(195))
        );
        assert_eq!(Preset::named("gpu"), None);
    }

    #[test]
    fn a_path_gives_the_number_of_its_character_device() {
        let null = key_of_path(Path::new("/dev/null")).unwrap();
        assert_eq!((null.major, null.minor), (1, 3));
        assert!(matches!(
            key_of_path(Path::new("/proc/version")),
            Err(PathError::NotCharacter)
        ));
        assert!(matches!(
            key_of_path(Path::new("/dev/palisade-none")),
            Err(PathError::Stat(_))
        ));
    }
}
