//! The `[watch]` section, and cgroup paths wherever they are written.
//!
//! Invariant: a path that is read begins with `/`, has no empty, `.` or `..` component, and, where
//! the host is known, leads to a cgroup.

use super::checked::{MIN_CONTAINER, Watch};
use super::faults::Faults;
use super::raw::{Located, Section, Span};
use super::sections::Context;
use crate::identity::ScopeRoots;
use crate::sensors::{MAX_EXECUTABLE_PATH, MAX_EXECUTABLES, WatchedProcesses};
use palisade_abi::MODEL_SUFFIX_BYTES;
use std::path::PathBuf;
use std::time::Duration;

const MAX_CGROUPS: usize = 64;
const MAX_SUFFIXES: usize = 32;
/// With its dot a suffix has to fit the bytes that the kernel compares.
const MAX_SUFFIX: usize = MODEL_SUFFIX_BYTES - 1;

/// The whole section.
pub(super) fn watch(
    mut section: Section<'_>,
    context: Context<'_>,
    faults: &mut Faults<'_>,
) -> Watch {
    let default = Watch::default();
    let cgroups = section.texts("cgroups", MAX_CGROUPS, faults);
    let containers = section.texts("containers", MAX_CGROUPS, faults);
    let executables = section.texts("executables", MAX_EXECUTABLES, faults);
    let gpu_users = section.flag("gpu-users", faults);
    let all = section.flag("all", faults);
    let others = [&containers, &executables]
        .into_iter()
        .flatten()
        .any(|list| !list.is_empty())
        || gpu_users.as_ref().is_some_and(|flag| flag.value);
    let scope = match (cgroups, all) {
        (cgroups, Some(Located { value: true, span })) => {
            if cgroups.is_some() || others {
                let what = if cgroups.is_some() {
                    "`cgroups`"
                } else {
                    "a choice of what to watch"
                };
                faults.add(
                    &span,
                    format!("[watch] has both {what} and `all = true`"),
                    Some("keep one of the two".to_owned()),
                );
            }
            ScopeRoots::All
        }
        (None, None) if !others => ScopeRoots::All,
        (None, Some(Located { span, .. })) if !others => {
            nothing_watched(&span, faults);
            ScopeRoots::All
        }
        (Some(list), _) if list.is_empty() && !others => {
            nothing_watched(&section.span, faults);
            ScopeRoots::All
        }
        (list, _) => {
            let list = list.unwrap_or_default();
            ScopeRoots::Below(cgroups_of(list, "cgroups", context, faults))
        }
    };
    let window = section.duration(
        "window",
        Duration::from_millis(10)..=Duration::from_secs(10),
        faults,
    );
    let suffixes = section.texts("model-suffixes", MAX_SUFFIXES, faults);
    let min_size = section.size("model-min-size", 1..=(1 << 50), faults);
    section.finish(faults);
    Watch {
        scope,
        containers: containers_of(containers.unwrap_or_default(), faults),
        processes: WatchedProcesses {
            executables: executables_of(executables.unwrap_or_default(), faults),
            gpu_users: gpu_users.is_some_and(|flag| flag.value),
        },
        window: window.map_or(default.window, |w| w.value),
        model_suffixes: suffixes.map_or(default.model_suffixes, |list| suffixes_of(list, faults)),
        model_min_bytes: min_size.map_or(default.model_min_bytes, |s| s.value),
    }
}

fn nothing_watched(span: &Span, faults: &mut Faults<'_>) {
    faults.add(
        span,
        "[watch] names nothing to watch".to_owned(),
        Some("set `cgroups = [\"/ml\"]`, `containers`, `executables` or `gpu-users`, or `all = true`".to_owned()),
    );
}

/// Paths of cgroups: absolute, tidy, unique, and existing where the host is known.
pub(super) fn cgroups_of(
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
                    format!(
                        "cgroup {path} does not exist in {}",
                        layout.id_root.display()
                    ),
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

/// Beginnings of containers' ids or names: long enough to mean one, and no paths.
fn containers_of(list: Vec<Located<String>>, faults: &mut Faults<'_>) -> Vec<String> {
    let mut containers = Vec::new();
    for entry in list {
        if entry.value.len() < MIN_CONTAINER || entry.value.contains(['/', '*']) {
            faults.add(
                &entry.span,
                format!("\"{}\" is not the beginning of a container's id", entry.value),
                Some(format!(
                    "at least {MIN_CONTAINER} of its characters, as `docker ps` or `crictl ps` shows them"
                )),
            );
        } else {
            containers.push(entry.value);
        }
    }
    containers
}

/// Absolute paths that the kernel can compare. They need not exist: a container may have them.
fn executables_of(list: Vec<Located<String>>, faults: &mut Faults<'_>) -> Vec<PathBuf> {
    let mut executables = Vec::new();
    for entry in list {
        let path = PathBuf::from(&entry.value);
        let help = if !path.is_absolute() {
            "give its whole path, beginning with `/`".to_owned()
        } else if entry.value.len() > MAX_EXECUTABLE_PATH {
            format!("at most {MAX_EXECUTABLE_PATH} bytes can be compared")
        } else {
            executables.push(path);
            continue;
        };
        faults.add(
            &entry.span,
            format!(
                "`executables` has \"{}\", which cannot be watched",
                entry.value
            ),
            Some(help),
        );
    }
    executables
}

fn suffixes_of(list: Vec<Located<String>>, faults: &mut Faults<'_>) -> Vec<String> {
    let mut suffixes: Vec<String> = Vec::new();
    for entry in list {
        let suffix = entry.value.trim_start_matches('.').to_owned();
        if suffix.is_empty() || suffix.len() > MAX_SUFFIX || suffix.contains('/') {
            faults.add(
                &entry.span,
                format!("\"{}\" is not a file name suffix", entry.value),
                Some(format!("1 to {MAX_SUFFIX} bytes, like \"gguf\"")),
            );
        } else if !suffixes.contains(&suffix) {
            suffixes.push(suffix);
        }
    }
    suffixes
}
