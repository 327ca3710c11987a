//! Tests and lints.

use crate::build::{Profile, build};
use crate::process::{cargo, output, root, step, stream};
use anyhow::{Result, bail};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Longest silence of the tests before they count as hung. Each says its name when it begins; what
/// is built without a word meanwhile takes a few minutes on a slow machine.
const PATIENCE: Duration = Duration::from_mins(15);

/// How large the tests' numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Minutes.
    Normal,
    /// As long as it takes.
    Soak,
}

/// Runs every test of the workspace and sums them up, skipped ones apart.
pub fn test(arguments: &[String], size: Size) -> Result<ExitCode> {
    build(Profile::Dev)?;
    let mut tally = Tally::default();
    // All of them in one call, so that dependencies are compiled for one set of features; one at a
    // time, because the live ones share the kernel.
    let mut command = cargo();
    command
        .args(["test", "--locked", "--no-fail-fast", "--workspace"])
        .args(arguments)
        .args(["--", "--nocapture", "--test-threads=1"])
        .env("RUST_BACKTRACE", "1")
        .env("PALISADE_BUILT", "1")
        .env("PALISADE_GUESTS", root().join("target/policies/guests"));
    if size == Size::Soak {
        command.env("PALISADE_SOAK", "1");
    }
    // The live tests need root; cargo itself stays the user.
    let user = output(Command::new("id").arg("-u")).is_some_and(|uid| uid != "0");
    if user && output(Command::new("sudo").arg("--version")).is_some() {
        let arch = std::env::consts::ARCH.to_uppercase();
        command.env(
            format!("CARGO_TARGET_{arch}_UNKNOWN_LINUX_GNU_RUNNER"),
            "sudo -E",
        );
    }
    let good = stream(&mut command, PATIENCE, |line| tally.see(line))?;
    if !tally.skips.is_empty() {
        println!("\nskipped here:");
        for skip in &tally.skips {
            println!("  {skip}");
        }
    }
    let passed = tally.passed();
    println!(
        "\n{passed} passed, {} failed, {} skipped",
        tally.failed,
        tally.skipped()
    );
    Ok(if good && tally.failed == 0 && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Sums of what several test programs print.
#[derive(Default)]
pub struct Tally {
    passed: u64,
    /// Failed tests.
    pub failed: u64,
    ignored: u64,
    /// Skipped tests, each with the reason.
    pub skips: Vec<String>,
}

impl Tally {
    /// A skipped test returns early and libtest counts it as passed: it counts once, as skipped.
    pub fn passed(&self) -> u64 {
        self.passed.saturating_sub(self.skips.len() as u64)
    }

    /// Tests that could not run, or were told not to.
    pub fn skipped(&self) -> u64 {
        self.skips.len() as u64 + self.ignored
    }

    /// Reads libtest's closing lines, and the `SKIPPED name: why` lines of the project's tests.
    pub fn see(&mut self, line: &str) {
        if let Some(at) = line.find("SKIPPED ") {
            self.skips.push(line[at + "SKIPPED ".len()..].to_owned());
        }
        let Some(at) = line.find("test result: ") else {
            return;
        };
        let numbers = line[at..].split(['.', ';']);
        for part in numbers {
            let mut words = part.split_whitespace();
            if let (Some(Ok(count)), Some(what)) =
                (words.next().map(str::parse::<u64>), words.next())
            {
                match what {
                    "passed" => self.passed += count,
                    "failed" => self.failed += count,
                    "ignored" => self.ignored += count,
                    _ => {}
                }
            }
        }
    }
}

/// Format and clippy over every workspace that stable Rust can check.
pub fn lint() -> Result<()> {
    for tool in ["fmt", "clippy"] {
        if output(cargo().args([tool, "--version"])).is_none() {
            return Err(anyhow::Error::msg(format!(
                "cargo {tool} is missing: rustup component add rustfmt clippy"
            )));
        }
    }
    step("format", cargo().args(["fmt", "--all", "--check"]))?;
    let mut bpf_format = cargo();
    bpf_format
        .current_dir(root().join("ebpf-programs"))
        .args(["fmt", "--check"]);
    step("format of the kernel programs", &mut bpf_format)?;
    step(
        "clippy",
        cargo().args([
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    let long = output(
        Command::new("git")
            .args(["ls-files", "*.rs"])
            .current_dir(root()),
    )
    .unwrap_or_default();
    for file in long.lines() {
        let lines =
            std::fs::read_to_string(root().join(file)).map_or(0, |text| text.lines().count());
        if lines > 500 {
            bail!("{file} has {lines} lines; past 500 a file is asking to be two");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn closing_lines_and_skips_are_counted() {
        let mut tally = Tally::default();
        tally.see("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s");
        tally.see("test x ... SKIPPED ioctls_are_counted: no root");
        tally.see("test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!((tally.passed, tally.failed, tally.ignored), (14, 4, 1));
        assert_eq!(tally.skips, ["ioctls_are_counted: no root"]);
    }
}
