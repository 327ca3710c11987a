//! Which cgroup to freeze for a workload.
//!
//! Invariant: the answer holds members of the workload only, and is never a hierarchy's root. On
//! v2 it is the workload's own cgroup. On v1 and hybrid hosts the `cpu` hierarchy, which names
//! the workload, cannot freeze; where its members sit in the freezer hierarchy (or the v2 tree)
//! is looked up and refused if others are in there with them.

use super::{CgroupDir, CgroupError, Version};
use crate::identity::layout::{Flavour, Layout};
use std::collections::BTreeMap;

/// The cgroup that freezes (and on v2 kills) exactly the workload at `cgroup`.
pub fn freezer_of(
    layout: &Layout,
    workload: &CgroupDir,
    cgroup: &str,
) -> Result<(Version, CgroupDir), CgroupError> {
    if workload.is_root() || cgroup == "/" {
        return Err(CgroupError::Refused(
            "the root cgroup is not a workload".to_owned(),
        ));
    }
    if layout.flavour == Flavour::V2 {
        let dir = CgroupDir::pin(workload.path(), workload.inode())?;
        return Ok((Version::V2, dir));
    }
    let members = workload.members()?;
    // A member that is gone meanwhile has no place any more.
    let places: Vec<_> = members
        .iter()
        .filter_map(|pid| layout.paths_of_pid(*pid).ok())
        .collect();
    if places.is_empty() {
        return Err(CgroupError::Refused(
            "the workload has no process to be found in a freezer".to_owned(),
        ));
    }
    let mut reasons = Vec::new();
    for (key, version, name) in [
        ("freezer", Version::V1, "the v1 freezer hierarchy"),
        ("", Version::V2, "the v2 tree"),
    ] {
        match candidate(layout, key, cgroup, &places) {
            Ok(dir) => return Ok((version, dir)),
            Err(why) => reasons.push(format!("in {name} {why}")),
        }
    }
    Err(CgroupError::Refused(format!(
        "nothing freezes this workload alone: {}",
        reasons.join("; ")
    )))
}

fn candidate(
    layout: &Layout,
    key: &str,
    cgroup: &str,
    places: &[BTreeMap<String, String>],
) -> Result<CgroupDir, String> {
    let mounted = match key {
        "" => layout.unified.is_some(),
        controller => layout.controllers.contains_key(controller),
    };
    if !mounted {
        return Err("nothing is mounted".to_owned());
    }
    let mut paths = places
        .iter()
        .map(|p| p.get(key).map_or("/", String::as_str));
    let first = paths.next().unwrap_or("/").to_owned();
    let common = paths.fold(first, |common, path| common_ancestor(&common, path));
    if common == "/" {
        return Err("its processes have only the root in common".to_owned());
    }
    let path = layout
        .controller_dir(key, &common)
        .ok_or_else(|| "nothing is mounted".to_owned())?;
    let dir = CgroupDir::open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    if dir.is_root() {
        return Err("its processes have only the root in common".to_owned());
    }
    for pid in dir.members().map_err(|e| e.to_string())? {
        // A process that is gone is no stranger; one that was forked just now is in the
        // workload too, though it was not in the first list.
        if let Ok(at) = layout.cgroup_of_pid(pid)
            && !is_within(&at, cgroup)
        {
            return Err(format!("{common} holds process {pid} of {at} too"));
        }
    }
    Ok(dir)
}

/// Whether `path` is `cgroup` or below it.
pub fn is_within(path: &str, cgroup: &str) -> bool {
    let cgroup = cgroup.trim_end_matches('/');
    path.strip_prefix(cgroup)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn common_ancestor(a: &str, b: &str) -> String {
    let parts: Vec<&str> = a
        .split('/')
        .zip(b.split('/'))
        .take_while(|(x, y)| x == y)
        .map(|(x, _)| x)
        .collect();
    match parts.join("/") {
        empty if empty.is_empty() => "/".to_owned(),
        path => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors_are_whole_components() {
        for (a, b, common) in [
            ("/ml/a", "/ml/a", "/ml/a"),
            ("/ml/a", "/ml/ab", "/ml"),
            ("/ml/a/x", "/ml/a", "/ml/a"),
            ("/a", "/b", "/"),
            ("/", "/b", "/"),
        ] {
            assert_eq!(common_ancestor(a, b), common, "{a} {b}");
        }
        assert!(is_within("/ml/a/x", "/ml/a"));
        assert!(is_within("/ml/a", "/ml/a/"));
        assert!(!is_within("/ml/ab", "/ml/a"));
        assert!(!is_within("/", "/ml"));
    }
}
