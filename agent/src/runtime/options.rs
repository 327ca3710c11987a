//! From the operator's configuration to each room's own options.

use crate::config::{Config, DeviceClass, PolicyConfig, ProcDevices};
use crate::identity::{
    ScopeRoots, container,
    layout::{Flavour, Layout},
};
use crate::metrics::commands::Family;
use crate::policy::{Limits, PolicySource};
use crate::sensors::{Scope, SensorOptions, WatchedDevice};
use palisade_abi::ANY_MINOR;
use palisade_core::{ProtectError, ProtectList, WorkloadId};
use std::path::PathBuf;

/// Which driver a device class is of: by its number where Linux has fixed it, by what /proc/devices
/// calls it, or else by the class's own name.
pub fn family(device: &DeviceClass, drivers: &ProcDevices) -> Family {
    let known = |family: &Family| *family != Family::Unknown;
    let majors = || device.keys.iter().map(|key| key.major);
    let fixed = majors().map(Family::of_major).find(known);
    let loaded = || {
        let mut names = majors().filter_map(|major| drivers.driver(major));
        names.find_map(|name| Some(Family::of_device(name)).filter(known))
    };
    let named = || Family::of_device(&device.name);
    fixed.or_else(loaded).unwrap_or_else(named)
}

/// What may never be acted on: the built-in list, the agent and its ancestors, and the operator's.
pub fn protect_list(config: &Config) -> Result<ProtectList, ProtectError> {
    let exe = std::env::current_exe().ok();
    let own = ProtectList::new(
        &ancestors(std::process::id()),
        exe.as_deref().and_then(|exe| exe.to_str()),
    );
    with_operators_rules(own, config)
}

/// A list with what the operator protects added to it.
pub fn with_operators_rules(
    mut list: ProtectList,
    config: &Config,
) -> Result<ProtectList, ProtectError> {
    for exe in &config.protect.exe {
        list.add_exe(exe)?;
    }
    for unit in &config.protect.unit {
        list.add_unit(unit)?;
    }
    for cgroup in &config.protect.cgroup {
        list.add_cgroup(cgroup)?;
    }
    Ok(list)
}

/// A process and its parents, up to PID 1.
fn ancestors(pid: u32) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; the fields after it do not.
        stat.rsplit_once(')')?
            .1
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()
    };
    let mut chain = vec![pid];
    let mut at = pid;
    while let Some(next) = parent(at).filter(|next| *next != 0 && !chain.contains(next)) {
        chain.push(next);
        at = next;
    }
    chain
}

/// What the policy host needs to load a policy.
pub fn policy_source(policy: &PolicyConfig) -> PolicySource {
    let limits = &policy.limits;
    PolicySource {
        name: policy.name.clone(),
        path: policy.path.clone(),
        settings: policy.settings.clone(),
        max_power: policy.grant.max_power,
        limits: Limits {
            memory_bytes: usize::try_from(limits.memory_bytes).unwrap_or(usize::MAX),
            call_deadline: limits.deadline,
            queue_batches: limits.queue_batches as usize,
            strikes: limits.strikes as usize,
            strike_window: limits.strike_window,
            probation: limits.probation,
            ..Limits::default()
        },
    }
}

/// The watched cgroups and containers that are there and have pressure files: those of the v2 tree.
/// Where the whole host is watched, the host alone.
pub fn pressure_groups(config: &Config, layout: &Layout) -> Vec<(WorkloadId, PathBuf)> {
    match &config.watch.scope {
        ScopeRoots::Below(roots) if layout.flavour == Flavour::V2 => {
            watched_cgroups(config, roots, layout)
                .map(|(id, cgroup)| (id, layout.id_dir(&cgroup)))
                .collect()
        }
        _ => Vec::new(),
    }
}

/// Of the cgroups and containers that are watched, those that are there.
fn watched_cgroups(
    config: &Config,
    roots: &[String],
    layout: &Layout,
) -> impl Iterator<Item = (WorkloadId, String)> {
    let there = |root: &String| Some((layout.workload_id(root).ok()?, root.clone()));
    let roots: Vec<_> = roots.iter().filter_map(there).collect();
    roots
        .into_iter()
        .chain(container::find(layout, &config.watch.containers))
}

/// Whose events are recorded at this moment: of the cgroups and containers that are watched, those
/// that are there.
pub fn scope_now(config: &Config, layout: &Layout) -> Scope {
    let ScopeRoots::Below(roots) = &config.watch.scope else {
        return Scope::All;
    };
    let ids = watched_cgroups(config, roots, layout).map(|(id, _)| id);
    Scope::CgroupsAnd(ids.collect(), config.watch.processes.clone())
}

/// What the sensors need. Fails if a watched cgroup went away since the configuration was read.
pub fn sensor_options(
    config: &Config,
    layout: &Layout,
    kinds: u64,
) -> std::io::Result<SensorOptions> {
    if let ScopeRoots::Below(roots) = &config.watch.scope {
        for root in roots {
            layout.workload_id(root).map_err(|error| {
                std::io::Error::new(error.kind(), format!("the watched cgroup {root}: {error}"))
            })?;
        }
    }
    let scope = scope_now(config, layout);
    let drivers = ProcDevices::read().unwrap_or_default();
    let devices = config
        .devices
        .iter()
        .enumerate()
        .flat_map(|(class, device)| {
            let command_bits = family(device, &drivers).command_bits();
            device.keys.iter().map(move |key| WatchedDevice {
                class: class as u32,
                major: key.major,
                minor: (key.minor != ANY_MINOR).then_some(key.minor),
                slow: device.slow,
                command_bits,
            })
        })
        .collect();
    Ok(SensorOptions {
        scope,
        devices,
        kinds,
        window: config.watch.window,
        ring_bytes: config.limits.ring_buffer_bytes,
        max_processes: config.limits.processes,
        model_suffixes: config.watch.model_suffixes.clone(),
        model_min_bytes: config.watch.model_min_bytes,
        cgroup_v2: layout.flavour == Flavour::V2,
        nodes: None,
        pressure: pressure_groups(config, layout),
        avoid: config.sensors.avoid.clone(),
        cuda_library: config.sensors.cuda_library.clone(),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_chain_of_ancestors_begins_here_and_ends_at_init() {
        let chain = super::ancestors(std::process::id());
        assert_eq!(chain[0], std::process::id());
        assert_eq!(chain.last(), Some(&1));
    }
}
