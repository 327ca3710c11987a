//! What only a guest of `./x vm` has: a pure cgroup v2 tree, two nodes of memory, a GPU's device numbers.
//!
//! Invariant: nothing here asserts how fast the guest is, which may be emulated in software. Elsewhere a test
//! says `SKIPPED` and why.

#[path = "vm_live/gpu.rs"]
mod gpu;
// They are written for another program, which uses all of them.
#[allow(dead_code)]
#[path = "sensors_live/pairs.rs"]
mod pairs;
#[allow(dead_code)]
#[path = "sensors_live/support.rs"]
mod support;
#[path = "vm_live/xid.rs"]
mod xid;

use palisade::identity::layout::{Flavour, Layout};
use palisade::sensors::{SensorOptions, Sensors, Way};
use palisade_abi::Kind;
use std::fs;
use std::path::Path;
use support::{Cgroup, options};

/// The eBPF object, or `None` after a word on standard error where this is no guest.
fn object_in_guest(test: &str) -> Option<&'static [u8]> {
    in_guest(test).and_then(|_| support::object(test))
}

/// The kernel's name in `./x vm`, or `None` after a word on standard error.
fn in_guest(test: &str) -> Option<String> {
    let kernel = std::env::var("PALISADE_VM").ok();
    if kernel.is_none() {
        eprintln!("SKIPPED {test}: it needs a guest (run ./x vm)");
    }
    kernel
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_owned()
}

#[test]
fn the_kernel_is_the_one_that_was_asked_for() {
    let Some(kernel) = in_guest("the_kernel_is_the_one_that_was_asked_for") else {
        return;
    };
    let release = read("/proc/sys/kernel/osrelease");
    if kernel == "newest" {
        let (major, _) = release.split_once('.').expect("a release");
        assert!(major.parse::<u32>().expect("a number") >= 7, "{release}");
    } else {
        assert!(release.starts_with(&format!("{kernel}.")), "{release}");
    }
}

#[test]
fn there_are_two_nodes_with_a_cpu_and_memory_each() {
    if in_guest("there_are_two_nodes_with_a_cpu_and_memory_each").is_none() {
        return;
    }
    let nodes = Path::new("/sys/devices/system/node");
    for list in ["online", "has_cpu", "has_memory"] {
        assert_eq!(read(nodes.join(list)), "0-1", "{list}");
    }
    for node in ["0", "1"] {
        let folder = nodes.join(format!("node{node}"));
        assert_eq!(read(folder.join("cpulist")), node);
        // Two nodes of the same distance would be one for the scheduler.
        let distances = read(folder.join("distance"));
        let mut distances: Vec<&str> = distances.split_whitespace().collect();
        distances.sort_unstable();
        assert_eq!(distances, ["10", "20"]);
    }
}

#[test]
fn the_cgroup_tree_is_v2_alone() {
    const WANTED: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
    if in_guest("the_cgroup_tree_is_v2_alone").is_none() {
        return;
    }
    let layout = Layout::detect().expect("a cgroup tree");
    assert_eq!(layout.flavour, Flavour::V2);
    assert_eq!(read("/proc/self/cgroup"), "0::/");
    let root = &layout.id_root;
    let offered = read(root.join("cgroup.subtree_control"));
    let cgroup = Cgroup::new();
    let has = read(cgroup.0.join("cgroup.controllers"));
    for controller in WANTED {
        for list in [&offered, &has] {
            assert!(list.split(' ').any(|word| word == controller), "{list}");
        }
    }
    for file in [
        "cgroup.freeze",
        "cgroup.kill",
        "cpu.max",
        "cpu.pressure",
        "cpu.weight",
        "io.pressure",
        "memory.high",
        "memory.pressure",
        "memory.reclaim",
    ] {
        assert!(cgroup.0.join(file).exists(), "no {file}");
    }
    assert!(read(cgroup.0.join("memory.pressure")).starts_with("some avg10="));
}

#[test]
fn every_hook_attaches_on_a_stock_kernel() {
    let Some(object) = object_in_guest("every_hook_attaches_on_a_stock_kernel") else {
        return;
    };
    let inside = Cgroup::new();
    let sensors = Sensors::load(object, options(&[&inside], Kind::ALL)).expect("sensors");
    let hooks = sensors.report().hooks;
    for hook in &hooks {
        println!("{}: {:?} {:?}", hook.name, hook.attached, hook.failed);
    }
    let absent = hooks
        .iter()
        .filter(|hook| hook.attached.is_none() && !hook.optional);
    assert_eq!(
        absent.map(|hook| hook.name.as_str()).collect::<Vec<_>>(),
        [""; 0]
    );
}

/// What a stock kernel attaches of these hooks, with some ways left out: the best that remains.
#[test]
fn the_best_way_of_each_hook_is_taken_on_a_stock_kernel() {
    let name = "the_best_way_of_each_hook_is_taken_on_a_stock_kernel";
    let Some(object) = object_in_guest(name) else {
        return;
    };
    let hooks = ["driver call", "map", "unmap", "model open"];
    let (fexit, tracepoint, lsm) = (Way::Fexit, Way::Tracepoint, Way::Lsm);
    for (avoid, expected) in [
        (vec![], [fexit; 4]),
        (vec![fexit], [tracepoint, tracepoint, tracepoint, lsm]),
        (vec![fexit, lsm], [tracepoint; 4]),
    ] {
        let inside = Cgroup::new();
        let options = SensorOptions {
            avoid,
            ..options(&[&inside], Kind::ALL)
        };
        let report = Sensors::load(object, options).expect("sensors").report();
        for (hook, way) in hooks.into_iter().zip(expected) {
            let hook = report.hooks.iter().find(|it| it.name == hook);
            let place = hook.and_then(|hook| hook.attached.as_deref());
            let way = format!("{}:", way.name());
            assert!(
                place.is_some_and(|place| place.starts_with(&way)),
                "{way} {hook:?}"
            );
        }
    }
}

#[test]
fn the_kernel_takes_programs_as_security_modules() {
    if in_guest("the_kernel_takes_programs_as_security_modules").is_none() {
        return;
    }
    let modules = read("/sys/kernel/security/lsm");
    assert!(modules.split(',').any(|name| name == "bpf"), "{modules}");
}
