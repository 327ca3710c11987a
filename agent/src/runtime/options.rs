//! From the operator's configuration to each room's own options.

use crate::config::{Config, DeviceClass, PolicyConfig, ProcDevices};
use crate::identity::{
    ScopeRoots, container,
    layout::{Flavour, Layout},
};
use crate::metrics::commands::Family;
use crate::policy::{Limits, PolicySource};
use crate::sensors::{Scope, SensorOptions, WatchedDevice, WatchedProcesses};
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
pub fn protect_list(config: &Config, own: &Own) -> Result<ProtectList, ProtectError> {
    with_operators_rules(ProtectList::new(&own.pids, own.exe.as_deref()), config)
}

/// The agent, which never acts on itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Its process and those above it.
    pub pids: Vec<u32>,
    /// Its executable.
    pub exe: Option<String>,
}

impl Own {
    /// This process.
    pub fn here() -> Self {
        let exe = std::env::current_exe().ok();
        Self {
            pids: ancestors(std::process::id()),
            exe: exe.and_then(|exe| Some(exe.to_str()?.to_owned())),
        }
    }
}

/// A list with what the operator protects added to it.
fn with_operators_rules(
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

/// Of the watched cgroups that are there, those that have pressure files: in the v2 tree.
pub(super) fn pressure_of(
    cgroups: &[(WorkloadId, String)],
    layout: &Layout,
) -> Vec<(WorkloadId, PathBuf)> {
    let cgroups = cgroups.iter().filter(|_| layout.flavour == Flavour::V2);
    cgroups
        .map(|(id, cgroup)| (*id, layout.id_dir(cgroup)))
        .collect()
}

/// Whose events are recorded, given the watched cgroups that are there.
pub(super) fn scope_of(cgroups: &[(WorkloadId, String)], processes: &WatchedProcesses) -> Scope {
    let ids = cgroups.iter().map(|(id, _)| *id).collect();
    Scope::CgroupsAnd(ids, processes.clone())
}

/// What the sensors need. Fails if a watched cgroup went away since the configuration was read.
pub fn sensor_options(
    config: &Config,
    layout: &Layout,
    kinds: u64,
) -> std::io::Result<SensorOptions> {
    let (scope, pressure) = match &config.watch.scope {
        ScopeRoots::All => (Scope::All, Vec::new()),
        ScopeRoots::Below(roots) => {
            let mut cgroups = container::find(layout, &config.watch.containers, &mut |_| {});
            for root in roots {
                let id = layout.workload_id(root).map_err(|error| {
                    let text = format!("the watched cgroup {root}: {error}");
                    std::io::Error::new(error.kind(), text)
                })?;
                cgroups.push((id, root.clone()));
            }
            (
                scope_of(&cgroups, &config.watch.processes),
                pressure_of(&cgroups, layout),
            )
        }
    };
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
        pressure,
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
