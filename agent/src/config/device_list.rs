//! The `[[devices]]` entries.
//!
//! Invariant: an entry's index is its class, so one that this host does not have keeps its place,
//! with a warning if it is a preset; a path that leads nowhere is a fault. No two entries are the
//! same device.

use super::Host;
use super::checked::{DEFAULT_DEVICES, DEFAULT_SLOW_CALL, DeviceClass};
use super::devices::{self, PRESETS, Preset, Resolved};
use super::faults::{Faults, nearest};
use super::raw::{Located, Section};
use super::sections::Context;
use palisade_abi::{ANY_MINOR, DeviceKey, MAX_DEVICE_CLASSES};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const MAX_DEVICES: usize = MAX_DEVICE_CLASSES as usize;
/// Linux has 12 bits of major and 20 bits of minor number.
const MAX_MAJOR: u64 = (1 << 12) - 1;
const MAX_MINOR: u64 = (1 << 20) - 1;
const MAX_SLOW: Duration = Duration::from_hours(1);

/// Every `[[devices]]` that this host has, or the presets that it has.
pub(super) fn all(
    root: &mut Section<'_>,
    context: Context<'_>,
    faults: &mut Faults<'_>,
) -> Vec<DeviceClass> {
    let Some(value) = root.value("devices", faults) else {
        return default_devices(context.host);
    };
    let tables: Option<Vec<_>> = value.get_ref().as_array().and_then(|list| {
        list.iter()
            .map(|item| Some((item.get_ref().as_table()?, item.span())))
            .collect()
    });
    let Some(tables) = tables else {
        faults.add(
            &value.span(),
            "`devices` is not a list of tables".to_owned(),
            Some("write [[devices]] with two brackets on each side".to_owned()),
        );
        return Vec::new();
    };
    if tables.len() > MAX_DEVICES {
        faults.add(
            &value.span(),
            format!("{} devices are too many", tables.len()),
            Some(format!("at most {MAX_DEVICES} are possible")),
        );
    }
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut numbers: BTreeMap<(u32, u32), String> = BTreeMap::new();
    let mut classes = Vec::new();
    for (table, span) in tables.into_iter().take(MAX_DEVICES) {
        let section = Section::new(table, "[[devices]]".to_owned(), span.clone());
        let Some((name, key, slow)) = device(section, context, faults) else {
            continue;
        };
        if let Some(line) = names.insert(name.clone(), faults.position(&span).0) {
            faults.add(
                &span,
                format!("a device named \"{name}\" is already on line {line}"),
                Some("give each [[devices]] a name of its own".to_owned()),
            );
        }
        if let Some(key) = &key
            && let Some(other) = numbers.insert((key.major, key.minor), name.clone())
        {
            faults.add(
                &span,
                format!("\"{name}\" is the same device as \"{other}\""),
                Some("remove one of the two".to_owned()),
            );
        }
        classes.push(DeviceClass {
            name,
            keys: key.into_iter().collect(),
            slow,
        });
    }
    classes
}

/// The presets that this host has. Not even a warning for the others: nobody asked for them.
fn default_devices(host: Option<&Host>) -> Vec<DeviceClass> {
    let classes = DEFAULT_DEVICES.iter().filter_map(|name| {
        let key = match Preset::named(name)?.resolve(&host?.devices) {
            Resolved::Present(key) | Resolved::Later(key) => key,
            Resolved::Absent => return None,
        };
        Some(DeviceClass {
            name: (*name).to_owned(),
            keys: vec![key],
            slow: DEFAULT_SLOW_CALL,
        })
    });
    classes.collect()
}

fn device(
    mut section: Section<'_>,
    context: Context<'_>,
    faults: &mut Faults<'_>,
) -> Option<(String, Option<DeviceKey>, Duration)> {
    let span = section.span.clone();
    let name = section.text("name", faults);
    let path = section.text("path", faults);
    let major = section.integer("major", 1..=MAX_MAJOR, faults);
    let minor = section.integer("minor", 0..=MAX_MINOR, faults);
    let slow = section.duration("slow", Duration::ZERO..=MAX_SLOW, faults);
    section.finish(faults);
    let Some(name) = name else {
        faults.add(
            &span,
            "this [[devices]] has no `name`".to_owned(),
            Some("add name = \"…\"; it is shown in the audit log".to_owned()),
        );
        return None;
    };
    if let (Some(minor), None) = (&minor, &major) {
        faults.add(
            &minor.span,
            "`minor` without `major`".to_owned(),
            Some("add `major`, or remove `minor`".to_owned()),
        );
    }
    let key = match (path, major) {
        (Some(path), Some(_)) => {
            faults.add(
                &path.span,
                format!("device \"{}\" has both `path` and `major`", name.value),
                Some("keep one of the two".to_owned()),
            );
            None
        }
        (Some(path), None) => device_path(&path, context, faults),
        (None, Some(major)) => Some(DeviceKey {
            major: major.value as u32,
            minor: minor.map_or(ANY_MINOR, |minor| minor.value as u32),
        }),
        (None, None) => preset(&name, context, faults),
    };
    let slow = slow.map_or(DEFAULT_SLOW_CALL, |slow| slow.value);
    Some((name.value, key, slow))
}

fn device_path(
    path: &Located<String>,
    context: Context<'_>,
    faults: &mut Faults<'_>,
) -> Option<DeviceKey> {
    context.host?;
    match devices::key_of_path(Path::new(&path.value)) {
        Ok(key) => Some(key),
        Err(error) => {
            faults.add(
                &path.span,
                format!("device {} cannot be watched: {error}", path.value),
                Some("name a character device of this host, like \"/dev/nvidia0\"".to_owned()),
            );
            None
        }
    }
}

fn preset(
    name: &Located<String>,
    context: Context<'_>,
    faults: &mut Faults<'_>,
) -> Option<DeviceKey> {
    let Some(preset) = Preset::named(&name.value) else {
        let names = PRESETS.iter().map(|preset| preset.name);
        let list = names.clone().collect::<Vec<_>>().join(", ");
        let near = nearest(&name.value, names)
            .map_or_else(String::new, |near| format!("did you mean \"{near}\"? "));
        faults.add(
            &name.span,
            format!("device \"{}\" has neither `path` nor `major`", name.value),
            Some(format!("{near}known without them: {list}")),
        );
        return None;
    };
    let host = context.host?;
    let (key, note) = match preset.resolve(&host.devices) {
        Resolved::Present(key) => return Some(key),
        Resolved::Later(key) => (Some(key), "it is watched from when its driver is loaded"),
        Resolved::Absent => (None, "load its driver, then restart the agent"),
    };
    faults.warn(
        &name.span,
        format!("device \"{}\" is not in /proc/devices", name.value),
        Some(note.to_owned()),
    );
    key
}
