//! Each bad input: one clear error, with the documented exit code, that says what would be right.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use palisade_tests::{TestCgroup, binaries, cannot_run_live, policy};
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

fn palisade(arguments: &[&str]) -> Output {
    Command::new(binaries().join("palisade"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs `palisade run --check` on a configuration; its exit code and what it says.
fn check(config: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("palisade.toml");
    let mut text = String::new();
    writeln!(
        text,
        "state_dir = {:?}\nrun_dir = {:?}",
        dir.path().join("state"),
        dir.path().join("run")
    )
    .unwrap();
    std::fs::write(&file, text + config).unwrap();
    let output = palisade(&["run", "--check", "--config", file.to_str().unwrap()]);
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn with_policy(path: &Path, rest: &str) -> (Option<i32>, String) {
    check(&format!("[policies.p]\npath = {path:?}\n{rest}"))
}

#[test]
fn every_fault_of_a_configuration_is_told_at_once_with_its_line() {
    let (code, text) = check(
        "[watch]\ncgroups = [\"/no-such-cgroup-here\"]\nwindwo = \"1s\"\n[policies.a]\npath = \"missing.wasm\"\nmode = \"obey\"\n",
    );
    assert_eq!(code, Some(3), "{text}");
    for part in [
        ":4:",
        ":5:",
        ":7:",
        ":8:",
        "no-such-cgroup-here",
        "window",
        "missing.wasm",
        "observe",
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn a_file_that_is_not_wasm_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "#!/bin/sh\necho no\n").unwrap();
    let (code, text) = with_policy(file.path(), "");
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("not WebAssembly"), "{text}");
}

#[test]
fn a_component_for_another_world_is_refused() {
    let (code, text) = with_policy(&policy("guests/other-world"), "power = \"kill\"\n");
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("export"), "it says what is missing: {text}");
}

#[test]
fn a_power_that_is_not_granted_is_refused() {
    let (code, text) = with_policy(&policy("guests/react"), "power = \"throttle\"\n");
    assert_eq!(code, Some(4), "{text}");
    assert!(
        text.contains("signal") && text.contains("throttle"),
        "it says asked and granted: {text}"
    );
}

#[test]
fn an_unknown_setting_is_refused() {
    let (code, text) = with_policy(
        &policy("guests/react"),
        "power = \"signal\"\nsettings = { acton = \"quota\" }\n",
    );
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("acton") && text.contains("action"), "{text}");
}

#[test]
fn a_good_configuration_passes() {
    let (code, text) = with_policy(&policy("guests/react"), "power = \"signal\"\n");
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn a_cgroup_that_exists_is_found() {
    if let Some(why) = cannot_run_live() {
        eprintln!("SKIPPED a_cgroup_that_exists_is_found: {why}");
        return;
    }
    let cgroup = TestCgroup::new("found").unwrap();
    let (code, text) = check(&format!("[watch]\ncgroups = [{:?}]\n", cgroup.path()));
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn no_root_says_so() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED no_root_says_so: it needs root to become somebody else");
        return;
    }
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let program = dir.path().join("palisade");
    std::fs::copy(binaries().join("palisade"), &program).unwrap();
    let config = dir.path().join("palisade.toml");
    std::fs::write(&config, "").unwrap();
    for path in [dir.path(), &program] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
    }
    let output = Command::new(&program)
        .args(["run", "--config"])
        .arg(&config)
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains("root"), "{text}");
}

#[test]
fn no_agent_says_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    let output = palisade(&[
        "status",
        "--run-dir",
        dir.path().to_str().unwrap(),
        "--config",
        "/nonexistent.toml",
    ]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{text}");
    assert!(text.contains("palisade run"), "{text}");
}

#[test]
fn an_unknown_command_is_a_usage_error() {
    assert_eq!(palisade(&["frobnicate"]).status.code(), Some(2));
}

#[test]
fn no_configuration_file_names_the_example() {
    let output = palisade(&["run", "--config", "/nonexistent/palisade.toml"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("/nonexistent/palisade.toml"), "{text}");
}

/// A private mount namespace hides the kernel's BTF from this one process.
#[test]
fn a_kernel_without_btf_is_named() {
    if let Some(why) = cannot_run_live() {
        eprintln!("SKIPPED a_kernel_without_btf_is_named: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("palisade.toml");
    let text = format!(
        "state_dir = {:?}\nrun_dir = {:?}\n",
        dir.path().join("state"),
        dir.path().join("run")
    );
    std::fs::write(&config, text).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c"])
        .arg("mount -t tmpfs none /sys/kernel/btf && exec \"$@\"")
        .arg("sh")
        .arg(binaries().join("palisade"))
        .args(["run", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(
        text.contains("BTF") && text.contains("palisade doctor"),
        "{text}"
    );
}

#[test]
fn a_reader_that_had_enough_is_no_error() {
    let file = policy("gpu-contention");
    for more in [&["--json"][..], &[]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(binaries().join("palisade"))
            .args(["policy", "check", file.to_str().unwrap()])
            .args(more)
            .stdout(writer)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said.as_str()), (Some(0), ""));
    }
}
