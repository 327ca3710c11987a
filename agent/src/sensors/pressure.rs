//! Pressure stall times, read from the kernel's files once a window.
//!
//! Invariants:
//! - The files stay open: reading one is one system call. A file that cannot be read any more is
//!   closed; its cgroup is gone.
//! - Totals are only subtracted. The first reading of a file tells nothing.
//! - Nothing is read while nobody wants it, and never more often than every [`EVERY_NS`].

use palisade_abi::{Body as _, Header, Record, SamplePressure};
use palisade_core::WorkloadId;
use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

/// Between two readings at least, nanoseconds: each one makes the kernel add up all CPUs.
const EVERY_NS: u64 = 100_000_000;
/// The host's files.
const HOST: &str = "/proc/pressure";
/// The host, in a record's workload.
const HOST_WORKLOAD: WorkloadId = WorkloadId(0);
/// Longer than any of the files.
const FILE_BYTES: usize = 256;
/// In the order of the record's fields.
const RESOURCES: [&str; 3] = ["cpu", "memory", "io"];

/// Totals of one cgroup, microseconds: `some` and `full` of each of [`RESOURCES`].
type Totals = [u64; 6];

/// The files that are watched.
#[derive(Debug)]
pub(super) struct Pressure {
    groups: Vec<Group>,
    host: PathBuf,
    last_ns: u64,
}

#[derive(Debug)]
struct Group {
    workload: WorkloadId,
    dir: PathBuf,
    files: [Option<File>; 3],
    /// `None` until the first reading.
    totals: Option<Totals>,
}

impl Pressure {
    /// The host, and these cgroups of the v2 tree.
    pub(super) fn new(groups: Vec<(WorkloadId, PathBuf)>) -> Self {
        Self::with_host(PathBuf::from(HOST), groups)
    }

    fn with_host(host: PathBuf, groups: Vec<(WorkloadId, PathBuf)>) -> Self {
        let mut pressure = Self {
            groups: Vec::new(),
            host,
            last_ns: 0,
        };
        pressure.set(groups);
        pressure
    }

    /// Changes the cgroups. What stays goes on from its last reading.
    pub(super) fn set(&mut self, groups: Vec<(WorkloadId, PathBuf)>) {
        let mut old = std::mem::take(&mut self.groups);
        let host = (HOST_WORKLOAD, self.host.clone());
        for (workload, dir) in std::iter::once(host).chain(groups) {
            let same = |group: &Group| group.workload == workload && group.dir == dir;
            let group = match old.iter().position(same) {
                Some(index) => old.swap_remove(index),
                None => Group::new(workload, dir),
            };
            self.groups.push(group);
        }
    }

    /// Forgets the last readings: nobody wanted what came since.
    pub(super) fn pause(&mut self) {
        for group in &mut self.groups {
            group.totals = None;
        }
    }

    /// Tells what was added since the last reading.
    pub(super) fn collect(&mut self, now_ns: u64, records: &mut Vec<Record>) {
        // Windows end a little late or early: one that is due is not to be left out.
        if now_ns < self.last_ns.saturating_add(EVERY_NS / 10 * 9) {
            return;
        }
        self.last_ns = now_ns;
        for group in &mut self.groups {
            let Some(body) = group.read() else { continue };
            let header = Header {
                time_ns: now_ns,
                workload: group.workload.0,
                kind: SamplePressure::KIND,
                ..Header::default()
            };
            records.push(Record {
                header,
                body: bytemuck::cast(body),
            });
        }
    }
}

impl Group {
    fn new(workload: WorkloadId, dir: PathBuf) -> Self {
        let open = |resource: &str| {
            // On the host the files have no suffix.
            let path = if workload == HOST_WORKLOAD {
                dir.join(resource)
            } else {
                dir.join(format!("{resource}.pressure"))
            };
            open(&path)
        };
        Self {
            workload,
            files: RESOURCES.map(open),
            dir,
            totals: None,
        }
    }

    /// The difference to the last reading, if there was one and something was added.
    fn read(&mut self) -> Option<SamplePressure> {
        let mut totals = self.totals.unwrap_or_default();
        for (index, slot) in self.files.iter_mut().enumerate() {
            let Some(file) = slot else { continue };
            let mut bytes = [0; FILE_BYTES];
            let Ok(length) = file.read_at(&mut bytes, 0) else {
                *slot = None;
                continue;
            };
            let (some, full) = parse(&String::from_utf8_lossy(&bytes[..length]));
            totals[2 * index] = some;
            totals[2 * index + 1] = full;
        }
        let before = self.totals.replace(totals)?;
        let added = |index: usize| {
            u32::try_from(totals[index].saturating_sub(before[index])).unwrap_or(u32::MAX)
        };
        let body = SamplePressure {
            cpu_some_us: added(0),
            cpu_full_us: added(1),
            memory_some_us: added(2),
            memory_full_us: added(3),
            io_some_us: added(4),
            io_full_us: added(5),
        };
        (body != SamplePressure::default()).then_some(body)
    }
}

fn open(path: &Path) -> Option<File> {
    File::open(path).ok()
}

/// The totals of a pressure file's lines, 0 for a line that is not there.
fn parse(text: &str) -> (u64, u64) {
    let total = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let word = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix("total="))?;
        word.parse().ok()
    };
    (total("some ").unwrap_or(0), total("full ").unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    const FIRST: WorkloadId = WorkloadId(7);

    fn write(dir: &Path, file: &str, some: u64, full: u64) {
        let line =
            |name, total| format!("{name} avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n");
        let text = line("some", some) + &line("full", full);
        fs::write(dir.join(file), text).unwrap();
    }

    fn collect(pressure: &mut Pressure, now_ns: u64) -> Vec<(u64, SamplePressure)> {
        let mut records = Vec::new();
        pressure.collect(now_ns, &mut records);
        records
            .iter()
            .map(|record| (record.header.workload, record.get().unwrap()))
            .collect()
    }

    #[test]
    fn differences_are_told_by_cgroup_and_the_host_is_workload_0() {
        let (host, group) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(host.path(), "cpu", 100, 0);
        write(group.path(), "memory.pressure", 10, 5);
        let mut pressure =
            Pressure::with_host(host.path().into(), vec![(FIRST, group.path().into())]);
        assert_eq!(collect(&mut pressure, EVERY_NS), []);
        write(host.path(), "cpu", 130, 0);
        write(group.path(), "memory.pressure", 17, 6);
        assert_eq!(collect(&mut pressure, EVERY_NS + 1), [], "too soon");
        let told = collect(&mut pressure, 2 * EVERY_NS);
        let on_host = SamplePressure {
            cpu_some_us: 30,
            ..SamplePressure::default()
        };
        let in_group = SamplePressure {
            memory_some_us: 7,
            memory_full_us: 1,
            ..SamplePressure::default()
        };
        assert_eq!(told, [(0, on_host), (7, in_group)]);
        assert_eq!(
            collect(&mut pressure, 3 * EVERY_NS),
            [],
            "nothing was added"
        );
    }

    #[test]
    fn a_cgroup_that_stays_goes_on_and_a_pause_starts_anew() {
        let (host, group) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(group.path(), "io.pressure", 1, 0);
        let groups = vec![(FIRST, group.path().to_path_buf())];
        let mut pressure = Pressure::with_host(host.path().into(), groups.clone());
        collect(&mut pressure, EVERY_NS);
        write(group.path(), "io.pressure", 3, 0);
        pressure.set(groups);
        assert_eq!(collect(&mut pressure, 2 * EVERY_NS)[0].1.io_some_us, 2);
        write(group.path(), "io.pressure", 9, 0);
        pressure.pause();
        assert_eq!(collect(&mut pressure, 3 * EVERY_NS), []);
        pressure.set(Vec::new());
        assert_eq!(pressure.groups.len(), 1);
    }

    #[test]
    fn lines_that_make_no_sense_count_as_none() {
        assert_eq!(
            parse("some avg10=1.0 total=12\nfull avg10=0 total=7\n"),
            (12, 7)
        );
        assert_eq!(parse("some avg10=1.0\nfull total=nine\n"), (0, 0));
        assert_eq!(parse(""), (0, 0));
    }
}
