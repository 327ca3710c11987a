//! The attach report by signal: what cannot be had, and how far down the ladder each one is.
//!
//! Invariant: a kind that nobody asked for is never absent.

use super::attach::{AttachReport, HookReport};
use palisade_abi::Kind;
use serde::Serialize;
use std::collections::BTreeMap;

/// One kind of record, and the hooks that make it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SignalReport {
    /// Name of the kind.
    pub signal: &'static str,
    /// It can be had here.
    pub available: bool,
    /// Its hooks, in the order of attaching.
    pub hooks: Vec<SignalHook>,
}

/// One hook of a signal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SignalHook {
    /// Name for people.
    pub hook: String,
    /// The rung that was chosen.
    pub attached: Option<String>,
    /// The rungs above it, or all of them: place and reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<(String, String)>,
}

/// The report in few words, for the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Brief {
    /// Names of the kinds that were asked for.
    pub kinds: Vec<&'static str>,
    /// Those that cannot be had.
    pub absent: Vec<&'static str>,
    /// Wanted hooks and where they are attached.
    pub hooks: BTreeMap<String, Option<String>>,
    /// Why a wanted hook is not where it should be: hook, place and reason.
    pub failed: Vec<[String; 3]>,
}

/// Names of kinds.
pub fn kind_names(bits: u64) -> Vec<&'static str> {
    Kind::ALL
        .iter()
        .filter(|kind| bits & kind.bit() != 0)
        .map(|kind| kind.name())
        .collect()
}

/// Bits of the kinds that the agent makes itself and cannot make on this host.
pub(super) fn unavailable() -> u64 {
    // With psi=0 the file is there but reading fails.
    match std::fs::read("/proc/pressure/cpu") {
        Ok(_) => 0,
        Err(_) => Kind::SamplePressure.bit(),
    }
}

impl AttachReport {
    /// Bits of the kinds that were asked for and cannot be had: a necessary hook of theirs is
    /// attached nowhere, or none of their hooks is.
    pub fn absent(&self) -> u64 {
        let is_absent = |bit: u64| {
            let mut hooks = self
                .hooks
                .iter()
                .filter(|hook| hook.kinds & bit != 0)
                .peekable();
            // What has no hook is made by the agent itself.
            let hooked = hooks.peek().is_some();
            let (mut attached, mut lacking) = (false, false);
            for hook in hooks {
                // The hook at a process's end serves others' state; it makes no record of theirs.
                let serves = hook.kinds & Kind::Exit.bit() != 0 && bit != Kind::Exit.bit();
                attached |= hook.attached.is_some() && !serves;
                lacking |= hook.attached.is_none() && !hook.optional;
            }
            hooked && (lacking || !attached)
        };
        Kind::ALL
            .iter()
            .map(|kind| kind.bit())
            .filter(|bit| self.kinds & bit != 0 && is_absent(*bit))
            .fold(self.unavailable & self.kinds, |bits, bit| bits | bit)
    }

    /// Every kind that was asked for and has a hook.
    pub fn signals(&self) -> Vec<SignalReport> {
        let absent = self.absent();
        Kind::ALL
            .iter()
            // Names of files are for the agent's own tables.
            .filter(|kind| self.kinds & kind.bit() != 0 && **kind != Kind::FileName)
            .filter_map(|kind| {
                let of_kind = |hook: &&HookReport| hook.kinds & kind.bit() != 0;
                let hooks: Vec<SignalHook> = self
                    .hooks
                    .iter()
                    .filter(of_kind)
                    .map(|hook| SignalHook {
                        hook: hook.name.clone(),
                        attached: hook.attached.clone(),
                        failed: hook.failed.clone(),
                    })
                    .collect();
                (!hooks.is_empty()).then(|| SignalReport {
                    signal: kind.name(),
                    available: absent & kind.bit() == 0,
                    hooks,
                })
            })
            .collect()
    }

    /// The report in few words.
    pub fn brief(&self) -> Brief {
        let wanted = || self.hooks.iter().filter(|hook| hook.wanted);
        Brief {
            kinds: kind_names(self.kinds),
            absent: kind_names(self.absent()),
            hooks: wanted()
                .map(|hook| (hook.name.clone(), hook.attached.clone()))
                .collect(),
            failed: wanted()
                .flat_map(|hook| {
                    hook.failed.iter().map(|(place, why)| {
                        // The verifier's log belongs into the report for people.
                        let first = why.lines().next().unwrap_or_default();
                        [hook.name.clone(), place.clone(), first.to_owned()]
                    })
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(name: &str, kinds: u64, attached: bool, optional: bool) -> HookReport {
        HookReport {
            name: name.into(),
            kinds,
            wanted: true,
            attached: attached.then(|| format!("raw_tp:{name}")),
            optional,
            failed: vec![(format!("tp_btf:{name}"), "no\nlog".into())],
        }
    }

    #[test]
    fn a_kind_is_absent_without_a_necessary_hook_or_without_any() {
        let (runq, cuda, open) = (Kind::SampleRunq, Kind::SampleCuda, Kind::ModelOpen);
        let mut report = AttachReport {
            kinds: runq.bit() | cuda.bit() | open.bit() | Kind::SamplePressure.bit(),
            hooks: vec![
                hook("switch", runq.bit(), true, false),
                hook("wake", runq.bit(), true, false),
                hook("cuda", cuda.bit(), false, true),
                hook("open", open.bit(), false, true),
                hook("openat", open.bit(), true, false),
                hook("exec", Kind::Exec.bit(), false, false),
            ],
            unavailable: Kind::SampleNet.bit(),
        };
        assert_eq!(kind_names(report.absent()), ["sample-cuda"]);
        report.hooks[1].attached = None;
        report.unavailable |= Kind::SamplePressure.bit();
        let absent = ["sample-runq", "sample-pressure", "sample-cuda"];
        assert_eq!(kind_names(report.absent()), absent);

        let signals = report.signals();
        let shown: Vec<_> = signals
            .iter()
            .map(|signal| (signal.signal, signal.available, signal.hooks.len()))
            .collect();
        assert_eq!(
            shown,
            [
                ("model-open", true, 2),
                ("sample-runq", false, 2),
                ("sample-cuda", false, 1)
            ]
        );
        let brief = report.brief();
        assert_eq!(brief.absent, absent);
        assert_eq!(brief.hooks["switch"].as_deref(), Some("raw_tp:switch"));
        assert_eq!(brief.failed[0], ["switch", "tp_btf:switch", "no"]);
    }
}
