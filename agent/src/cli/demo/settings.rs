//! How the demo's agent is set up: its policies, what they are granted, what it watches.
//!
//! Invariant: the agent watches the demo's cgroups and the demo's terminal alone, and keeps its
//! state in the demo's folder.

use anyhow::{Context, Result, anyhow};
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A policy with its settings for the demo: shorter than the defaults, so that it ends soon.
#[derive(Debug)]
pub(super) struct Shortened {
    /// In the configuration, and of its file.
    pub(super) name: &'static str,
    /// What the operator grants.
    pub(super) grant: &'static [&'static str],
    /// The policy's own.
    pub(super) settings: &'static [&'static str],
}

pub(super) const GRANT: &[&str] = &[
    "cooldown = \"2s\"",
    "max-lease = \"6s\"",
    "min-quota = 0.05",
];

/// The policies of the demo: the hog's, then the loader's.
pub(super) const POLICIES: [Shortened; 2] = [
    Shortened {
        name: "gpu-contention",
        grant: GRANT,
        settings: &[
            "window_ms = 700",
            "sustain = 3",
            "quota_permille = 50",
            "lease_ms = 3000",
            "idle_ms = 1000",
        ],
    },
    Shortened {
        name: "reload-loop",
        grant: GRANT,
        settings: &[
            "epochs = 3",
            "min_gap_ms = 700",
            "quota_permille = 50",
            "lease_ms = 3000",
        ],
    },
];

/// The agent's configuration.
pub(super) fn configuration(
    dir: &Path,
    cgroup: &str,
    device: &Path,
    policies: &Path,
    shortened: &[Shortened],
) -> Result<String> {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let path = |path: &Path| quoted(&path.to_string_lossy());
    let rdev = fs::metadata(device).context("the demo's terminal")?.rdev();
    let mut text = format!(
        "# Made by `palisade demo`.\nstate_dir = {}\nrun_dir = {}\n\n\
         [watch]\ncgroups = [{}]\nwindow = \"100ms\"\n\n\
         # The pseudo-terminal that stands in for a GPU.\n\
         [[devices]]\nname = \"demo\"\nmajor = {}\nminor = {}\nslow = \"5ms\"\n",
        path(&dir.join("state")),
        path(&dir.join("run")),
        quoted(cgroup),
        rustix::fs::major(rdev),
        rustix::fs::minor(rdev),
    );
    for policy in shortened {
        let file = policies.join(format!("{}.wasm", policy.name));
        if !file.is_file() {
            return Err(anyhow!(
                "{} is missing: build it with ./x build",
                file.display()
            ));
        }
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n[policies.{}]\npath = {}\nmode = \"enforce\"\npower = \"throttle\"\n{}\n\
             settings = {{ {} }}\n",
            policy.name,
            path(&file),
            policy.grant.join("\n"),
            policy.settings.join(", "),
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_configuration_watches_the_demo_alone_and_enforces() {
        let policies = tempfile::tempdir().unwrap();
        for policy in &POLICIES {
            fs::write(policies.path().join(format!("{}.wasm", policy.name)), "").unwrap();
        }
        let dir = Path::new("/var/tmp/palisade-demo-\"1");
        let text = configuration(
            dir,
            "/palisade-demo-1",
            Path::new("/dev/null"),
            policies.path(),
            &POLICIES,
        );
        let table: toml::Table = text.unwrap().parse().unwrap();
        assert_eq!(table["state_dir"].as_str(), dir.join("state").to_str());
        assert_eq!(table["watch"]["cgroups"].as_array().unwrap().len(), 1);
        let device = &table["devices"][0];
        assert_eq!(
            (device["major"].as_integer(), device["minor"].as_integer()),
            (Some(1), Some(3))
        );
        for policy in &POLICIES {
            let policy = &table["policies"][policy.name];
            assert_eq!(policy["mode"].as_str(), Some("enforce"));
            assert_eq!(policy["settings"]["quota_permille"].as_integer(), Some(50));
        }
    }

    #[test]
    fn a_policy_that_was_not_built_is_named() {
        let error = configuration(
            Path::new("/x"),
            "/c",
            Path::new("/dev/null"),
            Path::new("/no-such-folder"),
            &POLICIES,
        );
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("gpu-contention.wasm")
        );
    }
}
