//! Options that make no sense, told before anything is loaded.

use super::{MAX_ROOTS, MAX_SUFFIX, SensorError, SensorOptions};
use palisade_abi::MAX_DEVICE_CLASSES;
use std::time::Duration;

pub(super) fn check(options: &SensorOptions) -> Result<(), SensorError> {
    if let Some(device) = options
        .devices
        .iter()
        .find(|device| device.class >= MAX_DEVICE_CLASSES)
    {
        return Err(SensorError::Options(format!(
            "device class {}: at most {MAX_DEVICE_CLASSES} classes are possible",
            device.class
        )));
    }
    if options.window < Duration::from_millis(1) {
        return Err(SensorError::Options("a window of less than 1 ms".into()));
    }
    if options.max_processes == 0 {
        return Err(SensorError::Options("room for 0 processes".into()));
    }
    for suffix in &options.model_suffixes {
        let length = suffix.trim_start_matches('.').len();
        if length == 0 || length > MAX_SUFFIX {
            return Err(SensorError::Options(format!(
                "model suffix {suffix:?}: 1 to {MAX_SUFFIX} bytes behind the dot are possible"
            )));
        }
    }
    Ok(())
}

pub(super) fn check_roots(count: usize) -> Result<(), SensorError> {
    if count > MAX_ROOTS {
        return Err(SensorError::Options(format!(
            "{count} cgroups to watch, at most {MAX_ROOTS} are possible"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensors::{Scope, WatchedDevice};
    use palisade_abi::COMMAND_BITS;

    #[test]
    fn options_that_make_no_sense_are_named() {
        let good = SensorOptions {
            scope: Scope::All,
            devices: Vec::new(),
            kinds: 0,
            window: Duration::from_millis(100),
            ring_bytes: 0,
            max_processes: 1,
            model_suffixes: vec![".safetensors".into()],
            model_min_bytes: 1,
            cgroup_v2: false,
            nodes: None,
            pressure: Vec::new(),
            avoid: Vec::new(),
            cuda_library: None,
        };
        assert!(check(&good).is_ok());
        let device = WatchedDevice {
            class: 0,
            major: 1,
            minor: None,
            slow: Duration::ZERO,
            command_bits: COMMAND_BITS,
        };
        for bad in [
            SensorOptions {
                window: Duration::ZERO,
                ..good.clone()
            },
            SensorOptions {
                max_processes: 0,
                ..good.clone()
            },
            SensorOptions {
                model_suffixes: vec![".".into()],
                ..good.clone()
            },
            SensorOptions {
                model_suffixes: vec!["sixteen-bytes-or".into()],
                ..good.clone()
            },
            SensorOptions {
                devices: vec![WatchedDevice {
                    class: MAX_DEVICE_CLASSES,
                    ..device
                }],
                ..good
            },
        ] {
            assert!(
                matches!(check(&bad), Err(SensorError::Options(_))),
                "{bad:?}"
            );
        }
    }
}
