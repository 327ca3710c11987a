//! The demo really shows what it says, on this kernel.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use palisade_tests::{binaries, live_or_skip, policy};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

#[test]
fn the_demo_holds_every_claim() {
    live_or_skip!("the_demo_holds_every_claim");
    let output = Command::new(binaries().join("palisade"))
        .args(["demo", "--policies"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/policies"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}\n{errors}");
}

/// As a user without privileges: nothing live is possible.
#[test]
fn without_ebpf_a_recording_is_replayed_and_every_line_says_so() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "SKIPPED without_ebpf_a_recording_is_replayed_and_every_line_says_so: it needs root to become somebody else"
        );
        return;
    }
    let dir = tempfile::Builder::new()
        .prefix("palisade-test-")
        .tempdir_in("/var/tmp")
        .unwrap();
    let copy = |from: &Path| {
        let to = dir.path().join(from.file_name().unwrap());
        std::fs::copy(from, &to).unwrap();
        std::fs::set_permissions(&to, PermissionsExt::from_mode(0o755)).unwrap();
    };
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for name in ["palisade", "palisade-workload"] {
        copy(&binaries().join(name));
    }
    for name in ["gpu-contention", "reload-loop"] {
        copy(&policy(name));
    }
    let output = Command::new(dir.path().join("palisade"))
        .args(["demo", "--policies"])
        .arg(dir.path())
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}\n{errors}");
    assert!(
        text.contains("does not allow"),
        "it says what is missing: {text}"
    );
    let replayed: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("asks for") || line.contains("undone"))
        .collect();
    assert!(
        replayed.iter().any(|line| line.contains("gpu-contention")),
        "{text}"
    );
    assert!(
        replayed
            .iter()
            .any(|line| line.contains("demo-model.safetensors")),
        "{text}"
    );
    assert!(
        replayed.iter().all(|line| line.contains("replayed")),
        "{text}"
    );
}
