//! What a look at the metrics shows: plain data, as JSON over the control socket and in scripts.
//!
//! Invariant: absent is `null`, never 0. Fields are only added; a reader takes what it knows.

use super::catalog::Metric;
use serde::de::{Deserialize, Deserializer};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize as DeriveDeserialize, Serialize};
use std::collections::BTreeMap;

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, DeriveDeserialize)]
#[serde(default)]
pub struct Snapshot {
    /// `CLOCK_BOOTTIME` of the last batch, nanoseconds.
    pub now_ns: u64,
    /// Seconds that the numbers are over: 60, less in the first minute.
    pub window_s: u64,
    /// Seconds since the observation began; reloads and load times are over 600 of them at most.
    pub observed_s: u64,
    /// By cgroup, in order of their ids. 0 is the host itself and what has no known cgroup.
    pub workloads: Vec<WorkloadMetrics>,
    /// By device class.
    pub devices: Vec<DeviceMetrics>,
    /// Kinds of record that are not to be had here.
    pub absent: Vec<Absent>,
    /// Records that found no room in a table here.
    pub left_out: u64,
}

/// One workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, DeriveDeserialize)]
#[serde(default)]
pub struct WorkloadMetrics {
    /// Id of its cgroup.
    pub workload: u64,
    /// Path of its cgroup; empty if it is not known.
    pub cgroup: String,
    /// Container id or name.
    pub container: Option<String>,
    /// The numbers.
    pub values: Values,
    /// Records of it that were lost in the window.
    pub lost: u64,
    /// One point a second, the oldest first, 60 of them; `null` before the observation began.
    pub graphs: BTreeMap<String, Vec<Option<f32>>>,
    /// Its processes that did something in the window and found room here.
    pub processes: Vec<ProcessMetrics>,
    /// Driver calls by command, most time first.
    pub commands: Vec<CommandMetrics>,
    /// Its model files.
    pub models: Vec<ModelMetrics>,
}

/// One process, over the last minute (to within 10 s).
#[derive(Clone, Debug, Default, PartialEq, Serialize, DeriveDeserialize)]
#[serde(default)]
pub struct ProcessMetrics {
    /// Process id.
    pub pid: u32,
    /// Its start, `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
    /// Name that it gives itself; empty if it is not known.
    pub comm: String,
    /// Executable, if known.
    pub exe: Option<String>,
    /// The numbers.
    pub values: Values,
}

/// Driver calls with one command, over the last minute (to within 10 s).
#[derive(Clone, Debug, Default, PartialEq, Serialize, DeriveDeserialize)]
#[serde(default)]
pub struct CommandMetrics {
    /// Device class.
    pub class: u32,
    /// The device's name in the configuration; empty if it is not known.
    pub device: String,
    /// Number, as in `SampleGpuCommand`.
    pub command: u16,
    /// Its name, or the number again.
    pub name: String,
    /// Calls.
    pub calls: u64,
    /// Time in them, seconds.
    pub time_s: f64,
    /// What of it was over the baseline, seconds.
    pub excess_s: f64,
}

/// One model file of a workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, DeriveDeserialize)]
#[serde(default)]
pub struct ModelMetrics {
    /// Device, kernel `dev_t`.
    pub device: u32,
    /// Inode number.
    pub inode: u64,
    /// Path or name, if known.
    pub path: Option<String>,
    /// Size in bytes; 0 if unknown.
    pub size: u64,
    /// Bytes mapped and read in the last 10 minutes.
    pub bytes: u64,
    /// By so many processes.
    pub processes: u64,
    /// Loads per process.
    pub reloads: Option<f64>,
}

/// One device class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, DeriveDeserialize)]
#[serde(default)]
pub struct DeviceMetrics {
    /// Index of the `[[devices]]` entry.
    pub class: u32,
    /// Its name; empty if it is not known.
    pub name: String,
    /// Time in driver calls per second of the window, over all watched processes.
    pub busy: Option<f64>,
    /// Most processes that used it in one second.
    pub users: u64,
    /// See `gpu_contention`, over all workloads.
    pub contention: Option<f64>,
    /// Who held it longest.
    pub culprit: Option<Culprit>,
}

/// The largest holder of a device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, DeriveDeserialize)]
#[serde(default)]
pub struct Culprit {
    /// Its workload.
    pub workload: u64,
    /// Its process id.
    pub pid: u32,
    /// Its start, `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
    /// How long it held the device in the last minute, seconds.
    pub hold_s: f64,
}

/// A kind of record that cannot be had.
#[derive(Clone, Debug, Default, PartialEq, Serialize, DeriveDeserialize)]
#[serde(default)]
pub struct Absent {
    /// Its name, as in a policy's manifest.
    pub kind: String,
    /// Ids of the metrics that are absent because of it.
    pub metrics: Vec<String>,
    /// What was tried and why it failed; empty if nothing could be tried.
    pub why: String,
}

/// A number or its absence, per metric. In JSON an object with every id.
#[derive(Clone, Debug, PartialEq)]
pub struct Values([Option<f64>; Metric::COUNT]);

impl Default for Values {
    fn default() -> Self {
        Self([None; Metric::COUNT])
    }
}

impl Values {
    /// One of them.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        self.0[metric as usize]
    }

    /// Sets one; a number that is not finite is none. Rounded to six digits, which is more than
    /// any of them is good for.
    pub fn set(&mut self, metric: Metric, value: Option<f64>) {
        self.0[metric as usize] = value.filter(|v| v.is_finite()).map(round);
    }
}

fn round(value: f64) -> f64 {
    // Beyond these the scale itself would not be finite; no metric is.
    if !(1e-200..1e200).contains(&value.abs()) {
        return value;
    }
    let scale = 10_f64.powi(5 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

impl Serialize for Values {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Metric::COUNT))?;
        for metric in Metric::ALL {
            map.serialize_entry(metric.info().id, &self.get(*metric))?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
        let mut values = Values::default();
        for (id, value) in map {
            if let Some(metric) = Metric::from_id(&id) {
                values.set(metric, value);
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn values_read_back_absent_ones_as_null_and_unknown_ids_are_skipped() {
        let mut values = Values::default();
        values.set(Metric::Cpu, Some(1.0 / 3.0));
        values.set(Metric::PageFaults, Some(0.0));
        values.set(Metric::Maps, Some(f64::NAN));
        values.set(Metric::NetSent, Some(123_456_789.0));
        let text = serde_json::to_string(&values).unwrap();
        assert!(text.contains("\"cpu\":0.333333,"), "{text}");
        assert!(text.contains("\"maps\":null"), "{text}");
        assert!(text.contains("\"net_sent\":123457000.0"), "{text}");
        assert_eq!(serde_json::from_str::<Values>(&text).unwrap(), values);
        let later: Values = serde_json::from_str(r#"{"cpu":1.0,"of_tomorrow":2.0}"#).unwrap();
        assert_eq!(later.get(Metric::Cpu), Some(1.0));
    }

    #[test]
    fn rounding_keeps_extremes_finite() {
        for value in [
            f64::MAX,
            f64::MIN_POSITIVE,
            5e-324,
            -1e300,
            1e-200,
            999_999.5,
            0.0,
        ] {
            let rounded = round(value);
            assert!(rounded.is_finite(), "{value}");
            assert!(
                (rounded - value).abs() <= value.abs() * 1e-5,
                "{value} {rounded}"
            );
        }
    }
}
