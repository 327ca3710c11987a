//! The watched devices, as the programs compare them.

use super::{
    SensorError, WatchedDevice,
    load::{borrow, map_error, set_array},
    pod::Plain,
};
use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};
use palisade_abi::{ANY_MINOR, DeviceKey, DeviceRule, MAX_MAJORS};

/// Writes the rules. The programs take them as they are from then on: a thread keeps that of the
/// device that it called last.
pub(super) fn fill(ebpf: &mut Ebpf, watched: &[WatchedDevice]) -> Result<(), SensorError> {
    let mut devices: HashMap<&mut MapData, Plain<DeviceKey>, Plain<DeviceRule>> =
        borrow(ebpf, "DEVICES")?;
    for device in watched {
        let (key, rule) = rule(device);
        devices
            .insert(Plain(key), Plain(rule), 0)
            .map_err(|error| map_error("DEVICES", &error))?;
    }
    set_array(ebpf, "MAJORS", majors(watched))
}

fn rule(device: &WatchedDevice) -> (DeviceKey, DeviceRule) {
    let key = DeviceKey {
        major: device.major,
        minor: device.minor.unwrap_or(ANY_MINOR),
    };
    let rule = DeviceRule {
        class: device.class,
        command_bits: device.command_bits,
        slow_ns: u64::try_from(device.slow.as_nanos()).unwrap_or(u64::MAX),
    };
    (key, rule)
}

/// A bit a major number.
fn majors(devices: &[WatchedDevice]) -> [u64; MAX_MAJORS as usize / 64] {
    let mut words = [0; MAX_MAJORS as usize / 64];
    for device in devices {
        if let Some(word) = words.get_mut(device.major as usize / 64) {
            *word |= 1 << (device.major % 64);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_abi::COMMAND_BITS;
    use std::time::Duration;

    #[test]
    fn every_watched_major_has_its_bit_and_no_other() {
        let device = |major| WatchedDevice {
            class: 0,
            major,
            minor: None,
            slow: Duration::ZERO,
            command_bits: COMMAND_BITS,
        };
        let words = majors(&[5, 195, 226, 511, 4095].map(device));
        let bits = |n: &u32| words[*n as usize / 64] >> (n % 64) & 1 == 1;
        let set: Vec<u32> = (0..MAX_MAJORS).filter(bits).collect();
        assert_eq!(set, [5, 195, 226, 511, 4095]);
        assert_eq!(majors(&[device(MAX_MAJORS)]), majors(&[]));
    }
}
