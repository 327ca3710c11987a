//! The `[policies.NAME]` sections.
//!
//! Invariant: a policy that is read has a file, and is granted only what its section says.
//! Whether the file is a policy, and whether the settings fit its schema, is for the policy host.

use super::checked::{PolicyConfig, PolicyLimits, absolute, default_grant};
use super::faults::Faults;
use super::raw::{Located, Section, plain_table};
use super::sections::{Context, policy_limits};
use palisade_core::{Grant, Mode, Power};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

const MAX_POLICIES: usize = 64;
const MAX_NAME_BYTES: usize = 64;
const DAY: Duration = Duration::from_hours(24);

const MODES: &[(&str, Mode)] = &[("observe", Mode::Observe), ("enforce", Mode::Enforce)];

const POWERS: &[(&str, Power)] = &[
    ("alert", Power::Alert),
    ("throttle", Power::Throttle),
    ("freeze", Power::Freeze),
    ("signal", Power::Signal),
    ("kill", Power::Kill),
];

/// Every policy of the file.
pub(super) fn all(
    section: Section<'_>,
    limits: &PolicyLimits,
    context: Context<'_>,
    faults: &mut Faults<'_>,
) -> Vec<PolicyConfig> {
    let span = section.span.clone();
    let entries = section.entries();
    if entries.len() > MAX_POLICIES {
        faults.add(
            &span,
            format!("{} policies are too many", entries.len()),
            Some(format!("at most {MAX_POLICIES} are possible")),
        );
    }
    let mut policies = Vec::new();
    for (name, value) in entries.into_iter().take(MAX_POLICIES) {
        let Some(table) = value.get_ref().as_table() else {
            faults.add(
                &name.span,
                format!("policy \"{}\" is not a table", name.value),
                Some(format!(
                    "write [policies.{}] and its keys below",
                    name.value
                )),
            );
            continue;
        };
        if !valid_name(&name.value) {
            faults.add(
                &name.span,
                format!("\"{}\" is not a policy's name", name.value),
                Some(format!(
                    "1 to {MAX_NAME_BYTES} of a-z, 0-9 and `-`, beginning with a letter"
                )),
            );
        }
        let title = format!("[policies.{}]", name.value);
        let section = Section::new(table, title, name.span.clone());
        policies.extend(one(section, name, limits, context, faults));
    }
    policies
}

fn valid_name(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn one(
    mut section: Section<'_>,
    name: Located<String>,
    limits: &PolicyLimits,
    context: Context<'_>,
    faults: &mut Faults<'_>,
) -> Option<PolicyConfig> {
    let span = section.span.clone();
    let path = section.text("path", faults);
    if path.is_none() && !section.has("path") {
        faults.add(
            &span,
            format!("policy \"{}\" has no `path`", name.value),
            Some("add path = \"….wasm\"; it is relative to this file's folder".to_owned()),
        );
    }
    let path = path.and_then(|path| policy_file(&path, context, faults));
    let grant = grant(&mut section, faults);
    let own_limits = section
        .section("limits", "`limits` of a policy", faults)
        .map(|mut own| {
            let read = policy_limits(&mut own, "", limits, faults);
            own.finish(faults);
            read
        });
    let (settings, setting_lines) = settings(&mut section, faults);
    section.finish(faults);
    Some(PolicyConfig {
        name: name.value,
        path: path?,
        grant,
        limits: own_limits.unwrap_or_else(|| limits.clone()),
        settings,
        line: faults.position(&span).0,
        setting_lines,
    })
}

fn policy_file(
    path: &Located<String>,
    context: Context<'_>,
    faults: &mut Faults<'_>,
) -> Option<PathBuf> {
    let file = absolute(context.base, &path.value);
    if context.host.is_none() {
        return Some(file);
    }
    let (message, help) = match std::fs::metadata(&file) {
        Ok(meta) if meta.is_file() => return Some(file),
        Ok(_) => (
            format!("policy {} is not a file", file.display()),
            "name the .wasm file itself".to_owned(),
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => (
            format!("policy file {} does not exist", file.display()),
            format!(
                "correct `path` (it is relative to {}), or build the policy",
                context.base.display()
            ),
        ),
        Err(error) => (
            format!("policy file {} cannot be read: {error}", file.display()),
            "make it readable for the agent".to_owned(),
        ),
    };
    faults.add(&path.span, message, Some(help));
    None
}

fn grant(section: &mut Section<'_>, faults: &mut Faults<'_>) -> Grant {
    let default = default_grant();
    let mode = section.choice("mode", MODES, faults);
    let power = section.choice("power", POWERS, faults);
    let cooldown = section.duration("cooldown", Duration::ZERO..=DAY, faults);
    let actions = section.integer("actions-per-minute", 0..=10_000, faults);
    let lease = section.duration("max-lease", Duration::from_millis(100)..=DAY, faults);
    let quota = section.number("min-quota", 0.001..=1024.0, faults);
    Grant {
        mode: mode.map_or(default.mode, |v| v.value),
        max_power: power.map_or(default.max_power, |v| v.value),
        cooldown_ms: cooldown.map_or(default.cooldown_ms, |v| v.value.as_millis() as u64),
        actions_per_minute: actions.map_or(default.actions_per_minute, |v| v.value as u32),
        max_lease_ms: lease.map_or(default.max_lease_ms, |v| v.value.as_millis() as u32),
        min_quota_permille: quota.map_or(default.min_quota_permille, |v| {
            (v.value * 1000.0).round() as u32
        }),
    }
}

fn settings(
    section: &mut Section<'_>,
    faults: &mut Faults<'_>,
) -> (toml::Table, BTreeMap<String, usize>) {
    let Some(value) = section.value("settings", faults) else {
        return Default::default();
    };
    if let Some(table) = value.get_ref().as_table() {
        return plain_table(table, faults);
    }
    faults.add(
        &value.span(),
        "`settings` of a policy is not a table".to_owned(),
        Some("write settings = { name = value }, or a section of its own".to_owned()),
    );
    Default::default()
}
