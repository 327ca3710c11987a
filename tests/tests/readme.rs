//! What the README tells a newcomer to type works from a checkout that has been built.
//!
//! Invariant: nothing is installed outside of the test's own folder.

use palisade::config::DEFAULT_CONFIG_FILE;
use palisade_tests::binaries;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

/// The README's `install` lines in words, without their comments.
fn install_lines(readme: &str) -> Vec<Vec<&str>> {
    readme
        .lines()
        .filter(|line| line.starts_with("install "))
        .map(|line| {
            line.split_whitespace()
                .take_while(|word| *word != "#")
                .collect()
        })
        .collect()
}

/// A word as it is for the test: the agent of this build, and `root` in front of absolute paths.
fn adapted(word: &str, root: &Path) -> OsString {
    match (word, word.strip_prefix('/')) {
        ("target/release/palisade", _) => binaries().join("palisade").into(),
        (_, Some(below)) => root.join(below).into(),
        _ => word.into(),
    }
}

#[test]
fn the_first_configuration_of_the_readme_passes_its_check() {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = std::fs::read_to_string(checkout.join("README.md")).unwrap();
    let root = tempfile::tempdir().unwrap();
    let lines = install_lines(&readme);
    assert!(!lines.is_empty(), "the README installs nothing");
    for line in lines {
        let status = Command::new(line[0])
            .args(line[1..].iter().map(|word| adapted(word, root.path())))
            .current_dir(&checkout)
            .status()
            .unwrap();
        assert!(status.success(), "{line:?}: {status}");
    }
    // Where it is looked for without --config.
    let config = adapted(DEFAULT_CONFIG_FILE, root.path());
    let output = Command::new(root.path().join("usr/local/bin/palisade"))
        .args(["run", "--check", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let unit = std::fs::read_to_string(checkout.join("examples/palisade.service")).unwrap();
    let start = format!("ExecStart=/usr/local/bin/palisade run --config {DEFAULT_CONFIG_FILE}\n");
    assert!(unit.contains(&start), "the unit starts something else");
}
