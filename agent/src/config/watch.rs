//! The `[watch]` section, and cgroup paths wherever they are written.
//!
//! Invariant: a path that is read begins with `/`, has no empty, `.` or `..` component, and, where
//! the host is known, leads to a cgroup.

use super::checked::Watch;
use super::faults::Faults;
use super::raw::{Located, Section, Span};
use super::sections::Context;
use crate::identity::ScopeRoots;
use palisade_abi::MODEL_SUFFIX_BYTES;
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
