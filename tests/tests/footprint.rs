//! The memory of the agent's eBPF maps, as computed for other hosts, against what this kernel reports.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use palisade_tests::bench::memory::{Held, possible_cpus};
use palisade_tests::bench::tracers;
use palisade_tests::{Agent, live_or_skip};

/// Fixed parts of each map that the formulas leave out, and rounding to pages.
const LEFT_OUT: u64 = 4 * 4096;

#[test]
fn computed_map_memory_is_what_the_kernel_reports() {
    live_or_skip!("computed_map_memory_is_what_the_kernel_reports");
    let release = palisade::runtime::kernel_release();
    let mut numbers = release
        .split('.')
        .map_while(|word| word.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) < (Some(6), Some(4)) {
        eprintln!(
            "SKIPPED computed_map_memory_is_what_the_kernel_reports: Linux {release} does not report what a map takes (6.4 does)"
        );
        return;
    }
    let agent = Agent::start(&tracers::configuration(true)).unwrap();
    let held = Held::by(agent.ward.pid());
    assert!(!held.maps.is_empty());
    let cpus = possible_cpus();
    for map in held.maps.values() {
        // How many entries a map that grows has is not told: between none and all.
        let (least, most) = (map.bytes(cpus, 0), map.bytes(cpus, u64::MAX));
        assert!(
            (least.saturating_sub(LEFT_OUT)..=most + LEFT_OUT).contains(&map.reported),
            "{map:?}: {least} to {most}"
        );
    }
}
