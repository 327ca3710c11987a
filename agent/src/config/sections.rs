//! The keys of each section, with their ranges and defaults.
//!
//! Invariant: a value that is faulty is reported and replaced by its default, so that reading
//! goes on and the next fault is found too; the result is thrown away if there was any fault.

use super::checked::{
    Alerts, Config, DEFAULT_DRIVER_CALL_WAIT, Limits, Paths, PolicyLimits, Protect, Sensors, Watch,
    absolute, default_core,
};
use super::faults::Faults;
use super::raw::{Located, Section};
use super::sensors::sensors;
use super::watch::{cgroups_of, watch};
use super::{Host, device_list, policies};
use palisade_core::{CoreConfig, ProtectError, ProtectList};
use std::path::{Path, PathBuf};
use std::time::Duration;

const HOUR: Duration = Duration::from_hours(1);
const MAX_PROTECTED: usize = 256;

/// What the sections are read against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'h> {
    /// Folder of the configuration file.
    pub(super) base: &'h Path,
    /// This host, or `None` if nothing outside the file is to be looked at.
    pub(super) host: Option<&'h Host>,
}

/// The whole document.
pub(super) fn document(
    mut root: Section<'_>,
    context: Context<'_>,
    faults: &mut Faults<'_>,
) -> Config {
    let paths = paths(&mut root, faults);
    let watch = root
        .section("watch", "[watch]", faults)
        .map_or_else(Watch::default, |section| watch(section, context, faults));
    let sensors = root
        .section("sensors", "[sensors]", faults)
        .map_or_else(Sensors::default, |section| sensors(section, faults));
    let devices = device_list::all(&mut root, context, faults);
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
        .map_or_else(Alerts::default, |section| {
            alerts(section, context.base, faults)
        });
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
        sensors,
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
    let [memory, deadline, queue, strikes, window, probation] = if prefix.is_empty() {
        [
            "memory",
            "deadline",
            "queue",
            "strikes",
            "strike-window",
            "probation",
        ]
    } else {
        [
            "policy-memory",
            "policy-deadline",
            "policy-queue",
            "policy-strikes",
            "policy-strike-window",
            "policy-probation",
        ]
    };
    let (millisecond, second) = (Duration::from_millis(1), Duration::from_secs(1));
    let memory = section.size(memory, (1 << 20)..=(4 << 30), faults);
    let deadline = section.duration(deadline, millisecond..=10 * second, faults);
    let queue = section.integer(queue, 2..=65_536, faults);
    let strikes = section.integer(strikes, 0..=1000, faults);
    let window = section.duration(window, second..=24 * HOUR, faults);
    let probation = section.duration(probation, Duration::ZERO..=24 * HOUR, faults);
    PolicyLimits {
        memory_bytes: memory.map_or(default.memory_bytes, |v| v.value),
        deadline: deadline.map_or(default.deadline, |v| v.value),
        queue_batches: queue.map_or(default.queue_batches, |v| v.value as u32),
        strikes: strikes.map_or(default.strikes, |v| v.value as u32),
        strike_window: window.map_or(default.strike_window, |v| v.value),
        probation: probation.map_or(default.probation, |v| v.value),
    }
}

fn budget(mut section: Section<'_>, faults: &mut Faults<'_>) -> (CoreConfig, Duration) {
    let default = default_core();
    let actions = section.integer("actions-per-minute", 0..=10_000, faults);
    let leases = section.integer("leases", 0..=10_000, faults);
    let loss = section.duration("loss-window", Duration::ZERO..=HOUR, faults);
    let wait = section.duration(
        "driver-call-wait",
        Duration::ZERO..=Duration::from_secs(5),
        faults,
    );
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
    let exe = section
        .texts("exe", MAX_PROTECTED, faults)
        .unwrap_or_default();
    let unit = section
        .texts("unit", MAX_PROTECTED, faults)
        .unwrap_or_default();
    let cgroup = section
        .texts("cgroup", MAX_PROTECTED, faults)
        .unwrap_or_default();
    section.finish(faults);
    check(&exe, "exe", ProtectList::add_exe, faults);
    check(&unit, "unit", ProtectList::add_unit, faults);
    check(&cgroup, "cgroup", ProtectList::add_cgroup, faults);
    for entry in unit
        .iter()
        .filter(|entry| !entry.value.contains(['.', '*']))
    {
        faults.add(
            &entry.span,
            format!(
                "`unit` in [protect] has \"{}\", not a whole name",
                entry.value
            ),
            Some(format!(
                "write it with its suffix, like \"{}.service\"",
                entry.value
            )),
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

/// Has the decision core judge each pattern: it is the one that will match by it.
fn check(
    list: &[Located<String>],
    key: &str,
    add: fn(&mut ProtectList, &str) -> Result<(), ProtectError>,
    faults: &mut Faults<'_>,
) {
    for entry in list {
        if let Err(error) = add(&mut ProtectList::default(), &entry.value) {
            faults.add(
                &entry.span,
                format!("`{key}` in [protect]: {error}"),
                Some("see the comments of examples/palisade.toml".to_owned()),
            );
        }
    }
}

fn alerts(mut section: Section<'_>, base: &Path, faults: &mut Faults<'_>) -> Alerts {
    let webhook = section.text("webhook", faults);
    let file = section.text("file", faults);
    section.finish(faults);
    if let Some(hook) = &webhook {
        let rest = ["http://", "https://"]
            .iter()
            .find_map(|scheme| hook.value.strip_prefix(scheme));
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
