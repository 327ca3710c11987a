//! Who is protected, and by which sort of rule.

mod common;

use common::*;
use palisade_core::{ProtectError, ProtectList, Target, TargetFacts};

fn protected(list: &ProtectList, target: Target, facts: &TargetFacts) -> Option<String> {
    list.check(&target, facts).map(|protection| protection.rule)
}

fn exe(path: &str) -> TargetFacts {
    TargetFacts {
        members: vec![member(1_007, path)],
        ..facts(7)
    }
}

fn cgroup(path: &str) -> TargetFacts {
    TargetFacts {
        cgroup: Some(path.to_owned()),
        ..facts(7)
    }
}

#[test]
fn built_in_executables_count_where_the_system_keeps_them() {
    for (path, expected) in [
        ("/usr/sbin/sshd", true),
        ("/usr/sbin/sshd (deleted)", true),
        ("/usr/lib/openssh/sshd-session", true),
        ("/usr/bin/containerd", true),
        ("/usr/bin/containerd-shim-runc-v2", true),
        ("/usr/local/bin/dockerd", true),
        ("/usr/libexec/podman/conmon", true),
        ("/usr/bin/kubelet", true),
        ("/home/kubernetes/bin/kubelet", true),
        ("/var/lib/rancher/k3s/data/abc/bin/k3s", true),
        ("/usr/bin/nvidia-persistenced", true),
        ("/usr/bin/nv-fabricmanager", true),
        ("/usr/bin/nv-hostengine", true),
        ("/usr/lib/systemd/systemd-journald", true),
        ("/lib/systemd/systemd", true),
        ("/usr/bin/dbus-daemon", true),
        ("/usr/local/bin/palisade", true),
        ("/tmp/sshd", false),
        ("/home/eve/bin/containerd", false),
        ("/usr/bin/sshd-not-really", false),
        ("/opt/train/python3", false),
        ("sshd", false),
    ] {
        let rule = protected(&protect(), workload(7), &exe(path));
        assert_eq!(rule.is_some(), expected, "{path}: {rule:?}");
    }
}

#[test]
fn the_first_process_kernel_threads_and_the_agents_line_are_protected() {
    for pid in [0, 1, AGENT] {
        let mut with = facts(7);
        with.members.push(member(pid, "/opt/any"));
        assert!(
            protected(&protect(), workload(7), &with).is_some(),
            "member {pid}"
        );
        let target = Target::Process(process(pid));
        assert!(
            protected(&protect(), target, &facts(7)).is_some(),
            "target {pid}"
        );
    }
    let mut kernel = facts(7);
    kernel.members[0].kernel_thread = true;
    assert!(protected(&protect(), workload(7), &kernel).is_some());
    assert!(protected(&protect(), workload(7), &exe("")).is_some());
    assert_eq!(protected(&protect(), workload(7), &facts(7)), None);
}

#[test]
fn units_count_only_below_slices() {
    for (path, expected) in [
        ("/", true),
        ("", true),
        ("//", true),
        ("/../other", true),
        ("/init.scope", true),
        ("/system.slice", true),
        ("/system.slice/", true),
        ("/user.slice", true),
        ("/system.slice/ssh.service", true),
        ("/system.slice/sshd.service/inner", true),
        ("/system.slice/system-sshd.slice/sshd@1.service", true),
        ("/system.slice/containerd.service", true),
        ("/system.slice/systemd-journald.service", true),
        ("/machine.slice/libpod-conmon-abc.scope", true),
        ("/machine.slice/libpod-abc.scope", false),
        ("/system.slice/docker-abc.scope", false),
        ("/system.slice/docker-abc.scope/sshd.service", false),
        ("/docker/abc/system.slice/sshd.service", false),
        (
            "/user.slice/user-1.slice/user@1.service/sshd.service",
            false,
        ),
        ("/kubepods.slice/kubepods-pod1.slice/cri-1.scope", false),
        ("/system.slice/train.service", false),
        ("/ml/sshd.service", false),
        ("/ml", false),
    ] {
        let rule = protected(&protect(), workload(7), &cgroup(path));
        assert_eq!(rule.is_some(), expected, "{path}: {rule:?}");
    }
}

#[test]
fn the_operator_adds_executables_units_and_cgroups() {
    let mut list = protect();
    list.add_exe("/opt/db/*/postgres").expect("valid");
    list.add_exe("bin/billing").expect("valid");
    list.add_unit("train-prod-*.service").expect("valid");
    list.add_unit("vip.slice").expect("valid");
    list.add_cgroup("/ml/serve/").expect("valid");
    for (facts, expected) in [
        (exe("/opt/db/16/postgres"), true),
        (exe("/opt/db/16/lib/postgres"), false),
        (exe("/srv/x/bin/billing"), true),
        (exe("/srv/x/bin/billing2"), false),
        (cgroup("/system.slice/train-prod-1.service"), true),
        (cgroup("/system.slice/train-test-1.service"), false),
        (cgroup("/vip.slice/any.scope"), true),
        (cgroup("/ml/serve"), true),
        (cgroup("/ml/serve/replica-1"), true),
        (cgroup("/ml"), true),
        (cgroup("/ml/server"), false),
        (cgroup("/mlx"), false),
    ] {
        let rule = protected(&list, workload(7), &facts);
        assert_eq!(rule.is_some(), expected, "{facts:?}: {rule:?}");
    }
}

#[test]
fn rules_that_would_protect_everything_or_nothing_are_refused() {
    let mut list = protect();
    for pattern in ["", " ", "*", "/**", "**/*"] {
        let everything = ProtectError::Everything(pattern.to_owned());
        assert_eq!(list.add_exe(pattern), Err(everything), "{pattern:?}");
    }
    let unit = ProtectError::NotAUnit("a/b.service".to_owned());
    assert_eq!(list.add_unit("a/b.service"), Err(unit));
    for path in ["ml", "", "/ml/../x"] {
        let not = ProtectError::NotACgroup(path.to_owned());
        assert_eq!(list.add_cgroup(path), Err(not), "{path:?}");
    }
    assert!(list.add_cgroup("/").is_err());
}

#[test]
fn the_list_can_be_shown() {
    let mut list = protect();
    list.add_cgroup("/ml/serve").expect("valid");
    let rules = list.rules();
    for rule in [
        "pid 900 (the agent's line)",
        "exe sshd (built-in)",
        "cgroup /ml/serve",
    ] {
        assert!(
            rules.iter().any(|shown| shown == rule),
            "{rule} in {rules:?}"
        );
    }
}
