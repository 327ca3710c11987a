//! The keys of each section, with their ranges and defaults.
//!
//! Invariant: a value that is faulty is reported and replaced by its default, so that reading
//! goes on and the next fault is found too; the result is thrown away if there was any fault.

use super::checked::{
    Alerts, Config, DEFAULT_DEVICES, DEFAULT_DRIVER_CALL_WAIT, DEFAULT_SLOW_CALL, DeviceClass,
    Limits, Paths, PolicyLimits, Protect, Watch, absolute, default_core,
};
use super::devices::{self, PRESETS, Preset, Resolved};
use super::faults::{Faults, nearest};
use super::policies;
use super::raw::{Located, Section, Span};
use super::Host;
use crate::identity::ScopeRoots;
use palisade_abi::{ANY_MINOR, DeviceKey, MODEL_SUFFIX_BYTES};
use palisade_core::CoreConfig;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
const MAX_CGROUPS: usize = 64;
const MAX_SUFFIXES: usize = 32;
const MAX_DEVICES: usize = 32;
const MAX_PROTECTED: usize = 256;
/// Linux has 12 bits of major and 20 bits of minor number.
const MAX_MAJOR: u64 = (1 << 12) - 1;
const MAX_MINOR: u64 = (1 << 20) - 1;

/// What the sections are read against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'h> {
    /// Folder of the configuration file.
    pub(super) base: &'h Path,
    /// This host, or `None` if nothing outside the file is to be looked at.
    pub(super) host: Option<&'h Host>,
}

/// The whole document.
pub(super) fn document(mut root: Section<'_>, context: Context<'_>, faults: &mut Faults<'_>) -> Config {
    let paths = paths(&mut root, faults);
    let watch = root
        .section("watch", "[watch]", faults)
        .map_or_else(Watch::default, |section| watch(section, context, faults));
    let devices = devices_list(&mut root, context, faults);
    let limits = root
        .section("limits", "[limits]", faults)
        .map_or_else(Limits::default, |section| limits(section, faults));
    let (core, driver_call_wait) = root.section("budget", "[budget]", faults).map_or_else(
        || (default_core(), DEFAULT_DRIVER_CALL_WAIT),
        |section| budget(section, faults),
    );
    let protect = root
        .section("protect", "[protect]", faults)
        .map_or_else(Protect::default, |section| protect(section, faults));
    let alerts = root
        .section("alerts", "[alerts]", faults)
        .map_or_else(Alerts::default, |section| alerts(section, context.base, faults));
    let policies = root
        .section("policies", "[policies]", faults)
        .map_or_else(Vec::new, |section| {
            policies::all(section, &limits.policy, context, faults)
        });
    root.finish(faults);
    Config {
        source: None,
        digest: String::new(),
        paths,
        watch,
        devices,
        limits,
        core,
        driver_call_wait,
        protect,
        alerts,
        policies,
        warnings: Vec::new(),
    }
}

/// The two folders: the only keys that a command needs to find a running agent.
pub(super) fn paths(root: &mut Section<'_>, faults: &mut Faults<'_>) -> Paths {
    let defaults = Paths::default();
    let mut folder = |key, default| {
        let Some(text) = root.text(key, faults) else {
            return default;
        };
        if !Path::new(&text.value).is_absolute() {
            faults.add(
                &text.span,
                format!("`{key}` is not an absolute path: \"{}\"", text.value),
                Some("begin it with `/`".to_owned()),
            );
        }
        PathBuf::from(text.value)
    };
    Paths {
        state_dir: folder("state-dir", defaults.state_dir),
        run_dir: folder("run-dir", defaults.run_dir),
    }
}

fn watch(mut section: Section<'_>, context: Context<'_>, faults: &mut Faults<'_>) -> Watch {
    let default = Watch::default();
    let cgroups = section.texts("cgroups", MAX_CGROUPS, faults);
    let all = section.flag("all", faults);
    let scope = match (cgroups, all) {
        (None, None | Some(Located { value: true, .. })) => ScopeRoots::All,
        (Some(_), Some(Located { value: true, span })) => {
            faults.add(
                &span,
                "[watch] has both `cgroups` and `all = true`".to_owned(),
                Some("keep one of the two".to_owned()),
            );
            ScopeRoots::All
        }
        (None, Some(Located { span, .. })) => {
            nothing_watched(&span, faults);
            ScopeRoots::All
        }
        (Some(list), _) if list.is_empty() => {
            nothing_watched(&section.span, faults);
            ScopeRoots::All
        }
        (Some(list), _) => ScopeRoots::Below(cgroups_of(list, "cgroups", context, faults)),
    };
    let window = section.duration("window", Duration::from_millis(10)..=Duration::from_secs(10), faults);
    let suffixes = section.texts("model-suffixes", MAX_SUFFIXES, faults);
    let min_size = section.size("model-min-size", 1..=(1 << 50), faults);
    section.finish(faults);
    Watch {
        scope,
        window: window.map_or(default.window, |w| w.value),
        model_suffixes: suffixes.map_or(default.model_suffixes, |list| suffixes_of(list, faults)),
        model_min_bytes: min_size.map_or(default.model_min_bytes, |s| s.value),
    }
}

fn nothing_watched(span: &Span, faults: &mut Faults<'_>) {
    faults.add(
        span,
        "[watch] names nothing to watch".to_owned(),
        Some("set `cgroups = [\"/ml\"]`, or `all = true`".to_owned()),
    );
}

/// Paths of cgroups: absolute, tidy, unique, and existing where the host is known.
fn cgroups_of(
    list: Vec<Located<String>>,
    key: &str,
    context: Context<'_>,
    faults: &mut Faults<'_>,
) -> Vec<String> {
    let mut cgroups: Vec<String> = Vec::new();
    for entry in list {
        let Some(path) = cgroup_path(&entry, key, faults) else {
            continue;
        };
        if cgroups.contains(&path) {
            faults.add(
                &entry.span,
                format!("cgroup {path} is named twice in `{key}`"),
                Some("remove one".to_owned()),
            );
            continue;
        }
        if let Some(host) = context.host {
            match &host.layout {
                Ok(layout) if !layout.id_dir(&path).is_dir() => faults.add(
                    &entry.span,
                    format!("cgroup {path} does not exist in {}", layout.id_root.display()),
                    Some(format!(
                        "create it (mkdir {}), correct the path, or run `palisade doctor` to see \
                         which hierarchy this host uses",
                        layout.id_dir(&path).display()
                    )),
                ),
                Ok(_) => {}
                Err(error) => faults.add(
                    &entry.span,
                    format!("cgroup {path} cannot be looked up: {error}"),
                    Some("mount a cgroup hierarchy, then run `palisade doctor`".to_owned()),
                ),
            }
        }
        cgroups.push(path);
    }
    cgroups
}

/// `/a/b/` → `/a/b`; a fault for what is not a path below the hierarchy's root.
fn cgroup_path(entry: &Located<String>, key: &str, faults: &mut Faults<'_>) -> Option<String> {
    let text = &entry.value;
    let help = if !text.starts_with('/') {
        format!("begin it with `/`: \"/{text}\"")
    } else if text.starts_with("/sys/fs/cgroup") {
        "give the path below the mount point, as in /proc/PID/cgroup".to_owned()
    } else if text.split('/').any(|part| part == ".." || part == ".") {
        "write it without `.` and `..`".to_owned()
    } else {
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
        return Some(format!("/{}", parts.join("/")));
    };
    faults.add(
        &entry.span,
        format!("`{key}` has \"{text}\", which is not the path of a cgroup"),
        Some(help),
    );
    None
}

fn suffixes_of(list: Vec<Located<String>>, faults: &mut Faults<'_>) -> Vec<String> {
    let mut suffixes: Vec<String> = Vec::new();
    for entry in list {
        let suffix = entry.value.trim_start_matches('.').to_owned();
        if suffix.is_empty() || suffix.len() > MODEL_SUFFIX_BYTES || suffix.contains('/') {
            faults.add(
                &entry.span,
                format!("\"{}\" is not a file name suffix", entry.value),
                Some(format!("1 to {MODEL_SUFFIX_BYTES} bytes, like \"gguf\"")),
            );
        } else if !suffixes.contains(&suffix) {
            suffixes.push(suffix);
        }
    }
    suffixes
}

fn devices_list(root: &mut Section<'_>, context: Context<'_>, faults: &mut Faults<'_>) -> Vec<DeviceClass> {
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
        let Some(class) = device(section, context, faults) else {
            continue;
        };
        if let Some(line) = names.insert(class.name.clone(), faults.position(&span).0) {
            faults.add(
                &span,
                format!("a device named \"{}\" is already on line {line}", class.name),
                Some("give each [[devices]] a name of its own".to_owned()),
            );
        }
        for key in &class.keys {
            if let Some(other) = numbers.insert((key.major, key.minor), class.name.clone()) {
                faults.add(
                    &span,
                    format!("\"{}\" is the same device as \"{other}\"", class.name),
                    Some("remove one of the two".to_owned()),
                );
            }
        }
        classes.push(class);
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

fn device(mut section: Section<'_>, context: Context<'_>, faults: &mut Faults<'_>) -> Option<DeviceClass> {
    let span = section.span.clone();
    let name = section.text("name", faults);
    let path = section.text("path", faults);
    let major = section.integer("major", 1..=MAX_MAJOR, faults);
    let minor = section.integer("minor", 0..=MAX_MINOR, faults);
    let slow = section.duration("slow", Duration::ZERO..=HOUR, faults);
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
    let keys = match (path, major) {
        (Some(path), Some(_)) => {
            faults.add(
                &path.span,
                format!("device \"{}\" has both `path` and `major`", name.value),
                Some("keep one of the two".to_owned()),
            );
            Vec::new()
        }
        (Some(path), None) => device_path(&path, context, faults),
        (None, Some(major)) => vec![DeviceKey {
            major: major.value as u32,
            minor: minor.map_or(ANY_MINOR, |minor| minor.value as u32),
        }],
        (None, None) => preset(&name, context, faults),
    };
    Some(DeviceClass {
        name: name.value,
        keys,
        slow: slow.map_or(DEFAULT_SLOW_CALL, |slow| slow.value),
    })
}

fn device_path(path: &Located<String>, context: Context<'_>, faults: &mut Faults<'_>) -> Vec<DeviceKey> {
    if context.host.is_none() {
        return Vec::new();
    }
    match devices::key_of_path(Path::new(&path.value)) {
        Ok(key) => vec![key],
        Err(error) => {
            faults.add(
                &path.span,
                format!("device {} cannot be watched: {error}", path.value),
                Some("name a character device of this host, like \"/dev/nvidia0\"".to_owned()),
            );
            Vec::new()
        }
    }
}

fn preset(name: &Located<String>, context: Context<'_>, faults: &mut Faults<'_>) -> Vec<DeviceKey> {
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
        return Vec::new();
    };
    let Some(host) = context.host else {
        return Vec::new();
    };
    let (keys, note) = match preset.resolve(&host.devices) {
        Resolved::Present(key) => return vec![key],
        Resolved::Later(key) => (vec![key], "it is watched from when its driver is loaded"),
        Resolved::Absent => (Vec::new(), "load its driver, then restart the agent"),
    };
    faults.warn(
        &name.span,
        format!("device \"{}\" is not in /proc/devices", name.value),
        Some(note.to_owned()),
    );
    keys
}

fn limits(mut section: Section<'_>, faults: &mut Faults<'_>) -> Limits {
    let default = Limits::default();
    let ring = section.size("ring-buffer", (64 << 10)..=(1 << 30), faults);
    if let Some(ring) = ring.as_ref().filter(|ring| !ring.value.is_power_of_two()) {
        faults.add(
            &ring.span,
            "`ring-buffer` in [limits] is not a power of two".to_owned(),
            Some("the kernel takes 64KiB, 128KiB, … 4MiB, … 1GiB".to_owned()),
        );
    }
    let processes = section.integer("processes", 64..=1_000_000, faults);
    let policy = policy_limits(&mut section, "policy-", &default.policy, faults);
    section.finish(faults);
    Limits {
        ring_buffer_bytes: ring.map_or(default.ring_buffer_bytes, |ring| ring.value as u32),
        processes: processes.map_or(default.processes, |p| p.value as u32),
        policy,
    }
}

/// The bounds on a policy: with the prefix `policy-` in `[limits]`, without in the policy's own.
pub(super) fn policy_limits(
    section: &mut Section<'_>,
    prefix: &str,
    default: &PolicyLimits,
    faults: &mut Faults<'_>,
) -> PolicyLimits {
    // Keys are static so that the section can remember them.
    let [memory, deadline, queue, strikes, probation] = if prefix.is_empty() {
        ["memory", "deadline", "queue", "strikes", "probation"]
    } else {
        ["policy-memory", "policy-deadline", "policy-queue", "policy-strikes", "policy-probation"]
    };
    let millisecond = Duration::from_millis(1);
    let memory = section.size(memory, (1 << 20)..=(4 << 30), faults);
    let deadline = section.duration(deadline, millisecond..=Duration::from_secs(10), faults);
    let queue = section.integer(queue, 2..=65_536, faults);
    let strikes = section.integer(strikes, 1..=1000, faults);
    let probation = section.duration(probation, Duration::from_secs(1)..=24 * HOUR, faults);
    PolicyLimits {
        memory_bytes: memory.map_or(default.memory_bytes, |v| v.value),
        deadline: deadline.map_or(default.deadline, |v| v.value),
        queue_batches: queue.map_or(default.queue_batches, |v| v.value as u32),
        strikes: strikes.map_or(default.strikes, |v| v.value as u32),
        probation: probation.map_or(default.probation, |v| v.value),
    }
}

fn budget(mut section: Section<'_>, faults: &mut Faults<'_>) -> (CoreConfig, Duration) {
    let default = default_core();
    let actions = section.integer("actions-per-minute", 0..=10_000, faults);
    let leases = section.integer("leases", 0..=10_000, faults);
    let loss = section.duration("loss-window", Duration::ZERO..=HOUR, faults);
    let wait = section.duration("driver-call-wait", Duration::ZERO..=Duration::from_secs(5), faults);
    let disarmed = section.flag("disarmed", faults);
    section.finish(faults);
    let core = CoreConfig {
        host_actions_per_minute: actions
            .map_or(default.host_actions_per_minute, |v| v.value as u32),
        max_leases: leases.map_or(default.max_leases, |v| v.value as u32),
        loss_window_ms: loss.map_or(default.loss_window_ms, |v| v.value.as_millis() as u64),
        disarmed: disarmed.is_some_and(|v| v.value),
    };
    (core, wait.map_or(DEFAULT_DRIVER_CALL_WAIT, |v| v.value))
}

fn protect(mut section: Section<'_>, faults: &mut Faults<'_>) -> Protect {
    let exe = section.texts("exe", MAX_PROTECTED, faults).unwrap_or_default();
    let unit = section.texts("unit", MAX_PROTECTED, faults).unwrap_or_default();
    let cgroup = section.texts("cgroup", MAX_PROTECTED, faults).unwrap_or_default();
    section.finish(faults);
    for entry in exe.iter().filter(|entry| !entry.value.starts_with('/')) {
        faults.add(
            &entry.span,
            format!("`exe` in [protect] has \"{}\", not an absolute path", entry.value),
            Some("processes are matched by their executable's whole path".to_owned()),
        );
    }
    for entry in unit.iter().filter(|entry| !entry.value.contains('.') || entry.value.contains('/')) {
        faults.add(
            &entry.span,
            format!("`unit` in [protect] has \"{}\", not the name of a unit", entry.value),
            Some("write it with its suffix, like \"sshd.service\"".to_owned()),
        );
    }
    // A protected cgroup may appear later: it need not exist.
    let offline = Context {
        base: Path::new("/"),
        host: None,
    };
    let plain = |list: Vec<Located<String>>| list.into_iter().map(|entry| entry.value).collect();
    Protect {
        exe: plain(exe),
        unit: plain(unit),
        cgroup: cgroups_of(cgroup, "cgroup", offline, faults),
    }
}

fn alerts(mut section: Section<'_>, base: &Path, faults: &mut Faults<'_>) -> Alerts {
    let webhook = section.text("webhook", faults);
    let file = section.text("file", faults);
    section.finish(faults);
    if let Some(hook) = &webhook {
        let rest = ["http://", "https://"].iter().find_map(|scheme| hook.value.strip_prefix(scheme));
        if rest.is_none_or(|rest| rest.is_empty() || rest.starts_with('/'))
            || hook.value.contains(char::is_whitespace)
        {
            faults.add(
                &hook.span,
                format!("`webhook` in [alerts] is not a URL: \"{}\"", hook.value),
                Some("write it as \"http://host:port/path\" or https".to_owned()),
            );
        }
    }
    Alerts {
        webhook: webhook.map(|hook| hook.value),
        file: file.map(|file| absolute(base, &file.value)),
    }
}
