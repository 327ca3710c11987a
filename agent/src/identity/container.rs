//! Which container, pod and unit a cgroup belongs to, read off its path.
//!
//! Invariant: names only, for people and for protect rules that the operator writes; an id here
//! grants nothing. A path that fits no known scheme yields nothing rather than a guess.

use super::layout::Layout;
use palisade_core::WorkloadId;
use std::path::Path;

/// What runs a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// Docker Engine.
    Docker,
    /// containerd, also below Kubernetes.
    Containerd,
    /// CRI-O.
    CriO,
    /// Podman and other users of libpod.
    Podman,
    /// LXC and Incus.
    Lxc,
    /// Kubernetes, runtime unknown (cgroupfs driver).
    Kubernetes,
    /// systemd-nspawn and other machines.
    Machine,
}

/// What a cgroup path says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Container id (64 hex digits) or name.
    pub container: Option<String>,
    /// What runs it.
    pub runtime: Option<Runtime>,
    /// Kubernetes pod uid, with dashes.
    pub pod: Option<String>,
    /// Innermost systemd service or scope.
    pub unit: Option<String>,
}

/// Prefixes of `PREFIX-ID.scope`, as the runtimes' systemd drivers make them.
const SCOPES: &[(&str, Runtime)] = &[
    ("cri-containerd", Runtime::Containerd),
    ("containerd", Runtime::Containerd),
    ("nerdctl", Runtime::Containerd),
    ("docker", Runtime::Docker),
    ("crio", Runtime::CriO),
    ("libpod", Runtime::Podman),
];

/// Parents whose child's name is the container's id or name.
const PARENTS: &[(&str, Runtime)] = &[
    ("docker", Runtime::Docker),
    ("libpod_parent", Runtime::Podman),
    ("lxc", Runtime::Lxc),
    ("lxc.payload", Runtime::Lxc),
];

/// Reads a path as in /proc/PID/cgroup. Of nested containers the innermost counts.
pub fn names(cgroup: &str) -> Names {
    let mut names = Names::default();
    let mut parent = "";
    for part in cgroup.split('/').filter(|part| !part.is_empty()) {
        if let Some((container, runtime)) = container(parent, part, names.pod.is_some()) {
            names.container = Some(container);
            names.runtime = Some(runtime);
        }
        if let Some(pod) = pod(part) {
            names.pod = Some(pod);
        }
        if is_unit(part) {
            names.unit = Some(part.to_owned());
        }
        parent = part;
    }
    names
}

/// Directories that [`find`] looks at, at most.
const MAX_LOOKS: usize = 16_384;

/// The cgroups of the containers whose id or name begins with one of `prefixes`, each without those
/// below it. `visit` is called for each other cgroup, before what is in it is read.
pub fn find(
    layout: &Layout,
    prefixes: &[String],
    visit: &mut dyn FnMut(&Path),
) -> Vec<(WorkloadId, String)> {
    let mut found = Vec::new();
    let mut pending = vec![String::new()];
    let mut looks = 0;
    while let Some(cgroup) = pending.pop() {
        looks += 1;
        if prefixes.is_empty() || looks > MAX_LOOKS {
            break;
        }
        let is_one = |id: &String| prefixes.iter().any(|prefix| id.starts_with(prefix));
        if names(&cgroup).container.as_ref().is_some_and(is_one) {
            // One that is gone meanwhile is none.
            if let Ok(id) = layout.workload_id(&cgroup) {
                found.push((id, cgroup));
            }
            continue;
        }
        let dir = layout.id_dir(&cgroup);
        visit(&dir);
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir())
                && let Some(name) = entry.file_name().to_str()
            {
                pending.push(format!("{cgroup}/{name}"));
            }
        }
    }
    found
}

fn container(parent: &str, part: &str, in_pod: bool) -> Option<(String, Runtime)> {
    if let Some(scope) = part.strip_suffix(".scope") {
        if let Some(machine) = scope.strip_prefix("machine-") {
            return Some((unescape(machine), Runtime::Machine));
        }
        let (prefix, id) = scope.rsplit_once('-')?;
        let (_, runtime) = SCOPES.iter().find(|(known, _)| *known == prefix)?;
        return is_id(id).then(|| (id.to_owned(), *runtime));
    }
    // containerd given a systemd-style path but driven by cgroupfs: `SLICE:cri-containerd:ID`.
    if let Some((left, id)) = part.rsplit_once(':') {
        let (_, prefix) = left.rsplit_once(':')?;
        let (_, runtime) = SCOPES.iter().find(|(known, _)| *known == prefix)?;
        return is_id(id).then(|| (id.to_owned(), *runtime));
    }
    if let Some(name) = part.strip_prefix("lxc.payload.") {
        return Some((name.to_owned(), Runtime::Lxc));
    }
    // CRI-O and Podman with the cgroupfs driver keep their prefix.
    if let Some((prefix, id)) = part.rsplit_once('-') {
        let known = SCOPES.iter().find(|(known, _)| *known == prefix);
        if let Some((_, runtime)) = known.filter(|_| is_id(id)) {
            return Some((id.to_owned(), *runtime));
        }
    }
    if in_pod && is_id(part) {
        return Some((part.to_owned(), Runtime::Kubernetes));
    }
    let (_, runtime) = PARENTS.iter().find(|(known, _)| *known == parent)?;
    (*runtime == Runtime::Lxc || is_id(part)).then(|| (part.to_owned(), *runtime))
}

/// `pod8e4b1a2c-…`, `kubepods-burstable-pod8e4b1a2c_….slice`, `kubepods-pod….slice`.
fn pod(part: &str) -> Option<String> {
    let part = part.split(':').next()?;
    let name = part.strip_suffix(".slice").unwrap_or(part);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None if name.contains("kubepods") => name.rsplit_once("-pod")?.1,
        None => return None,
    };
    let uid = uid.replace('_', "-");
    let digits = uid.bytes().filter(|byte| *byte != b'-');
    // A uid is a UUID; a static pod's is a hash of its manifest: 32 hex digits either way.
    (digits.clone().count() == 32 && digits.clone().all(|byte| byte.is_ascii_hexdigit()))
        .then_some(uid)
}

fn is_unit(part: &str) -> bool {
    [".service", ".scope"]
        .iter()
        .any(|suffix| part.len() > suffix.len() && part.ends_with(suffix))
}

/// 64 hex digits: what every runtime with ids uses.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// systemd writes `-` in a machine's name as `\x2d`.
fn unescape(text: &str) -> String {
    text.replace("\\x2d", "-")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ID: &str = "3f4b8c0e5d6a7f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708";
    const ID2: &str = "aaaabbbbccccddddeeeeffff00001111222233334444555566667777888899990";
    const UID: &str = "8e4b1a2c-3d4e-5f60-7182-93a4b5c6d7e8";

    #[test]
    fn a_container_is_found_by_the_beginning_of_its_id_and_counts_with_all_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout {
            flavour: crate::identity::layout::Flavour::V2,
            id_root: dir.path().into(),
            controllers: std::collections::BTreeMap::new(),
            unified: Some(dir.path().into()),
        };
        let id2 = &ID2[..64];
        let outer = format!("/system.slice/docker-{ID}.scope");
        let inner = format!("{outer}/docker/{id2}");
        let beside = format!("/kubepods.slice/cri-containerd-{id2}.scope");
        for path in [&inner, &beside, &"/system.slice/3f4b.service".to_owned()] {
            std::fs::create_dir_all(layout.id_dir(path)).unwrap();
        }
        let found = |prefixes: &[&str]| {
            let prefixes: Vec<String> = prefixes.iter().map(|&prefix| prefix.into()).collect();
            let mut found = find(&layout, &prefixes, &mut |_| {});
            for (id, path) in &found {
                assert_eq!(layout.workload_id(path).unwrap(), *id);
            }
            found.sort_by(|a, b| a.1.cmp(&b.1));
            found.into_iter().map(|(_, path)| path).collect::<Vec<_>>()
        };
        assert_eq!(found(&["3f4b"]), [&*outer]);
        assert_eq!(found(&[id2]), [&*beside, &*inner]);
        // The inner one belongs to the outer one, which is watched with all below it.
        assert_eq!(found(&["3f4b", "aaaa"]), [&*beside, &*outer]);
        assert_eq!(found(&["4b8c"]), [""; 0]);
        assert_eq!(found(&[]), [""; 0]);
    }

    #[test]
    fn real_paths_give_their_container_pod_and_unit() {
        use Runtime::*;
        let uid_ = UID.replace('-', "_");
        let id2 = &ID2[..64];
        let static_pod = "0123456789abcdef0123456789abcdef";
        type Row<'a> = (
            String,
            Option<(&'a str, Runtime)>,
            Option<&'a str>,
            Option<String>,
        );
        let rows: Vec<Row<'_>> = vec![
            ("/".into(), None, None, None),
            ("/ml/train".into(), None, None, None),
            (
                "/system.slice/nginx.service".into(),
                None,
                None,
                Some("nginx.service".into()),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/app-x@1.service".into(),
                None,
                None,
                Some("app-x@1.service".into()),
            ),
            (
                "/user.slice/user-0.slice/session-3.scope".into(),
                None,
                None,
                Some("session-3.scope".into()),
            ),
            (format!("/docker/{ID}"), Some((ID, Docker)), None, None),
            (
                format!("/system.slice/docker-{ID}.scope"),
                Some((ID, Docker)),
                None,
                Some(format!("docker-{ID}.scope")),
            ),
            (
                format!("/system.slice/nerdctl-{ID}.scope"),
                Some((ID, Containerd)),
                None,
                Some(format!("nerdctl-{ID}.scope")),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/\
                     kubepods-burstable-pod{uid_}.slice/cri-containerd-{ID}.scope"
                ),
                Some((ID, Containerd)),
                Some(UID),
                Some(format!("cri-containerd-{ID}.scope")),
            ),
            (
                format!("/kubepods.slice/kubepods-pod{uid_}.slice/crio-{ID}.scope/container"),
                Some((ID, CriO)),
                Some(UID),
                Some(format!("crio-{ID}.scope")),
            ),
            (
                format!("/kubepods.slice/kubepods-pod{uid_}.slice/crio-conmon-{ID}.scope"),
                None,
                Some(UID),
                Some(format!("crio-conmon-{ID}.scope")),
            ),
            (
                format!("/kubepods/burstable/pod{UID}/{ID}"),
                Some((ID, Kubernetes)),
                Some(UID),
                None,
            ),
            (
                format!("/kubepods/pod{UID}/crio-{ID}"),
                Some((ID, CriO)),
                Some(UID),
                None,
            ),
            (
                format!("/kubepods/besteffort/pod{static_pod}/{ID}"),
                Some((ID, Kubernetes)),
                Some(static_pod),
                None,
            ),
            (
                format!("/kubepods-besteffort-pod{uid_}.slice:cri-containerd:{ID}"),
                Some((ID, Containerd)),
                Some(UID),
                None,
            ),
            (
                format!("/machine.slice/libpod-{ID}.scope/container"),
                Some((ID, Podman)),
                None,
                Some(format!("libpod-{ID}.scope")),
            ),
            (
                format!(
                    "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"
                ),
                Some((ID, Podman)),
                None,
                Some(format!("libpod-{ID}.scope")),
            ),
            (
                format!("/machine.slice/libpod-conmon-{ID}.scope"),
                None,
                None,
                Some(format!("libpod-conmon-{ID}.scope")),
            ),
            (
                format!("/libpod_parent/libpod-{ID}"),
                Some((ID, Podman)),
                None,
                None,
            ),
            (
                "/lxc/web-1/init.scope".into(),
                Some(("web-1", Lxc)),
                None,
                Some("init.scope".into()),
            ),
            (
                "/lxc.payload.db/system.slice".into(),
                Some(("db", Lxc)),
                None,
                None,
            ),
            (
                "/machine.slice/machine-build\\x2dhost.scope/payload".into(),
                Some(("build-host", Machine)),
                None,
                Some("machine-build\\x2dhost.scope".into()),
            ),
            // Kubernetes in Docker: the innermost container counts.
            (
                format!(
                    "/docker/{id2}/kubelet.slice/kubelet-kubepods.slice/\
                     kubelet-kubepods-pod{uid_}.slice/cri-containerd-{ID}.scope"
                ),
                Some((ID, Containerd)),
                Some(UID),
                Some(format!("cri-containerd-{ID}.scope")),
            ),
            // Lookalikes.
            ("/docker/buildx".into(), None, None, None),
            (
                "/docker-short.scope".into(),
                None,
                None,
                Some("docker-short.scope".into()),
            ),
            (format!("/ml/{ID}"), None, None, None),
            ("/podcast".into(), None, None, None),
            ("/.service".into(), None, None, None),
        ];
        for (path, container, pod, unit) in rows {
            let expected = Names {
                container: container.map(|(id, _)| id.to_owned()),
                runtime: container.map(|(_, runtime)| runtime),
                pod: pod.map(str::to_owned),
                unit,
            };
            assert_eq!(names(&path), expected, "{path}");
        }
    }
}
