//! What the other rooms are given: the configuration in their words.
//!
//! Invariant: nothing is decided here. Every value comes from the file or is a default of the
//! room that it goes to.

use super::checked::{Config, PolicyConfig};
use crate::identity::layout::{Flavour, Layout};
use crate::identity::{ScopeRoots, ancestors};
use crate::policy::{self, PolicySource};
use crate::sensors::{Scope, SensorOptions, WatchedDevice};
use palisade_abi::ANY_MINOR;
use palisade_core::{ProtectError, ProtectList};
use std::io;

/// A watched cgroup went away after the configuration was read.
#[derive(Debug, thiserror::Error)]
#[error(
    "watched cgroup {cgroup} does not exist in {hierarchy}: {source}; create it, or see: palisade doctor"
)]
pub struct ScopeError {
    /// Its path.
    pub cgroup: String,
    /// The mount that it was looked up in.
    pub hierarchy: String,
    /// What failed.
    pub source: io::Error,
}

impl Config {
    /// Who must never be acted on: the built-in list, this process with its ancestors and its
    /// executable, and what the operator names.
    pub fn protect_list(&self) -> Result<ProtectList, ProtectError> {
        let exe = std::env::current_exe().ok();
        let exe = exe.as_ref().map(|exe| exe.to_string_lossy());
        let mut own_pids = ancestors(std::process::id());
        own_pids.push(std::process::id());
        let mut list = ProtectList::new(&own_pids, exe.as_deref());
        for pattern in &self.protect.exe {
            list.add_exe(pattern)?;
        }
        for unit in &self.protect.unit {
            list.add_unit(unit)?;
        }
        for cgroup in &self.protect.cgroup {
            list.add_cgroup(cgroup)?;
        }
        Ok(list)
    }

    /// What to sense; `kinds` are wanted at first. The classes of devices in records are the
    /// indices of [`Config::devices`].
    pub fn sensor_options(&self, layout: &Layout, kinds: u64) -> Result<SensorOptions, ScopeError> {
        let scope = match &self.watch.scope {
            ScopeRoots::All => Scope::All,
            ScopeRoots::Below(roots) => {
                let id = |cgroup: &String| {
                    layout.workload_id(cgroup).map_err(|source| ScopeError {
                        cgroup: cgroup.clone(),
                        hierarchy: layout.id_root.display().to_string(),
                        source,
                    })
                };
                Scope::Cgroups(roots.iter().map(id).collect::<Result<_, _>>()?)
            }
        };
        let devices = self.devices.iter().map(|class| WatchedDevice {
            major: class.key.major,
            minor: Some(class.key.minor).filter(|minor| *minor != ANY_MINOR),
            slow: class.slow,
        });
        Ok(SensorOptions {
            scope,
            devices: devices.collect(),
            kinds,
            window: self.watch.window,
            ring_bytes: self.limits.ring_buffer_bytes,
            max_processes: self.limits.processes,
            model_suffixes: self.watch.model_suffixes.clone(),
            model_min_bytes: self.watch.model_min_bytes,
            cgroup_v2: layout.flavour == Flavour::V2,
        })
    }
}

impl PolicyConfig {
    /// For the policy host.
    pub fn source(&self) -> PolicySource {
        PolicySource {
            name: self.name.clone(),
            path: self.path.clone(),
            settings: self.settings.clone(),
            max_power: self.grant.max_power,
            limits: policy::Limits {
                memory_bytes: self.limits.memory_bytes as usize,
                call_deadline: self.limits.deadline,
                queue_batches: self.limits.queue_batches as usize,
                strikes: self.limits.strikes as usize,
                strike_window: self.limits.strike_window,
                probation: self.limits.probation,
                ..policy::Limits::default()
            },
        }
    }
}
