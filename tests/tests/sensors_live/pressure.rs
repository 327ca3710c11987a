//! Pressure: what is told lies between what the kernel's own files say just inside and just outside
//! of the time watched.

use crate::support::*;
use palisade::{
    identity::layout::{Flavour, Layout},
    sensors::SensorOptions,
};
use palisade_abi::{Kind, SamplePressure, kind};
use palisade_core::WorkloadId;
use std::{
    fs, hint,
    path::Path,
    time::{Duration, Instant},
};

/// Totals of the three files in microseconds, in the order of the record; `None` without PSI.
fn totals(dir: &Path, suffix: &str) -> Option<[u64; 6]> {
    let mut totals = [0; 6];
    for (index, resource) in ["cpu", "memory", "io"].iter().enumerate() {
        let text = fs::read_to_string(dir.join(format!("{resource}{suffix}"))).ok()?;
        for line in text.lines() {
            let at = 2 * index + usize::from(line.starts_with("full"));
            let (_, total) = line.rsplit_once("total=")?;
            totals[at] = total.trim().parse().ok()?;
        }
    }
    Some(totals)
}

fn sum(seen: &Seen, workload: u64) -> [u64; 6] {
    let mut sum = [0; 6];
    for record in seen.of(kind::SAMPLE_PRESSURE) {
        if record.header.workload != workload {
            continue;
        }
        let body: SamplePressure = record.get().expect("a sample");
        let parts = [
            body.cpu_some_us,
            body.cpu_full_us,
            body.memory_some_us,
            body.memory_full_us,
            body.io_some_us,
            body.io_full_us,
        ];
        for (sum, part) in sum.iter_mut().zip(parts) {
            *sum += u64::from(part);
        }
    }
    sum
}

#[test]
fn pressure_agrees_with_the_kernels_files() {
    let name = "pressure_agrees_with_the_kernels_files";
    let Some(object) = object(name) else {
        return;
    };
    let host = Path::new("/proc/pressure");
    if totals(host, "").is_none() {
        eprintln!("SKIPPED {name}: no pressure stall information on this kernel");
        return;
    }
    let inside = Cgroup::new();
    let workload = WorkloadId(inside.id());
    // The host everywhere; the cgroup too where it is one of the v2 tree.
    let layout = Layout::detect().expect("a cgroup hierarchy");
    let mut watched = vec![(0, host, "")];
    let mut groups = Vec::new();
    if layout.flavour == Flavour::V2 {
        watched.push((workload.0, &inside.0, ".pressure"));
        groups.push((workload, inside.0.clone()));
    }
    // More of them than CPUs, all in the cgroup.
    let spin = || {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(600) {
            hint::spin_loop();
        }
        0
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let children: Vec<Child> = (0..=2 * cpus).map(|_| Child::new(spin)).collect();
    for child in &children {
        inside.take(child.pid);
    }
    let all = || -> Vec<[u64; 6]> {
        let read = watched.iter().map(|(_, dir, suffix)| totals(dir, suffix));
        read.map(|totals| totals.expect("pressure files")).collect()
    };
    let outer = all();
    let watch = Watch::new(
        object,
        SensorOptions {
            pressure: groups,
            ..options(&[&inside], &[Kind::SamplePressure])
        },
    );
    // The first reading, of which nothing is told, is over by then.
    for _ in 0..3 {
        watch.settle();
    }
    let inner = all();
    for child in &children {
        child.start();
    }
    for child in &children {
        child.wait_done();
    }
    let inner_end = all();
    for _ in 0..3 {
        watch.settle();
    }
    let seen = watch.stop();
    let outer_end = all();
    for child in children {
        assert_eq!(child.finish(), 0);
    }
    seen.assert_none_lost();
    for (index, (workload, ..)) in watched.iter().enumerate() {
        let told = sum(&seen, *workload);
        assert!(told[0] > 0, "nobody waited for a CPU: {told:?}");
        for field in 0..6 {
            let least = inner_end[index][field] - inner[index][field];
            let most = outer_end[index][field] - outer[index][field];
            assert!(
                (least..=most).contains(&told[field]),
                "field {field} of workload {workload}: {} not in {least}..={most}",
                told[field]
            );
        }
    }
}
