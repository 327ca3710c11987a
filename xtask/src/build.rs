//! Building everything, and what only needs a build: the demo and the benchmarks.

use crate::process::{cargo, foreground, root, step};
use crate::{bpf, setup, wasm};
use anyhow::Result;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// How the agent is compiled.
#[derive(Clone, Copy, Debug)]
pub enum Profile {
    /// What people run.
    Release,
    /// What the tests run.
    Dev,
}

/// Kernel programs, policies, agent and example workloads, in that order.
pub fn build(profile: Profile) -> Result<()> {
    let toolchain = setup::setup()?;
    bpf::build(&toolchain)?;
    wasm::build_policies(&toolchain)?;
    if matches!(profile, Profile::Dev) {
        wasm::build_guests(&toolchain)?;
    }
    let mut command = cargo();
    command.args(["build", "--locked"]);
    match profile {
        Profile::Release => command.args([
            "--release",
            "--package",
            "palisade",
            "--package",
            "palisade-workloads",
        ]),
        // The tests too, with the features that they will run with: dependencies are compiled once.
        Profile::Dev => command.args(["--workspace", "--all-targets"]),
    };
    step("agent", &mut command)
}

fn binary(profile: Profile) -> PathBuf {
    let folder = match profile {
        Profile::Release => "release",
        Profile::Dev => "debug",
    };
    root().join("target").join(folder).join("palisade")
}

/// Builds, then runs `palisade demo`.
pub fn demo(arguments: &[String]) -> Result<ExitCode> {
    build(Profile::Release)?;
    let root_user =
        crate::process::output(Command::new("id").arg("-u")).is_some_and(|uid| uid == "0");
    let mut command = if root_user {
        Command::new(binary(Profile::Release))
    } else {
        Command::new("sudo")
    };
    if !root_user {
        command.arg(binary(Profile::Release));
    }
    command
        .current_dir(root())
        .arg("demo")
        .args(["--policies", "target/policies"])
        .args(arguments);
    foreground(&mut command)
}

/// Benchmarks with a name of their own; without a name the ratios are printed.
const BENCHMARKS: [&str; 4] = ["overhead", "storm", "footprint", "hooks"];

/// Builds, then runs a benchmark.
pub fn bench(arguments: &[String]) -> Result<ExitCode> {
    build(Profile::Release)?;
    // Reaction, storm and all signals are measured with guests of the tests.
    wasm::build_guests(&setup::setup()?)?;
    let mut command = cargo();
    command.args([
        "build",
        "--release",
        "--locked",
        "--package",
        "palisade-tests",
        "--bins",
    ]);
    step("benchmarks", &mut command)?;
    let (program, rest) = match arguments.split_first() {
        Some((name, rest)) if BENCHMARKS.contains(&name.as_str()) => (name.as_str(), rest),
        _ => ("ratios", arguments),
    };
    let mut command = Command::new(root().join("target/release").join(program));
    command.current_dir(root()).args(rest);
    foreground(&mut command)
}
