//! Builds the kernel programs into `target/bpf/palisade-ebpf.o`.

use crate::process::{root, step};
use crate::setup::{Compiler, Toolchain};
use anyhow::{Context, Result};
use std::path::PathBuf;

/// Where the agent's build script looks for the object.
pub fn object() -> PathBuf {
    root().join("target/bpf/palisade-ebpf.o")
}

/// Builds the object; leaves it alone if it is already what it would be.
pub fn build(toolchain: &Toolchain) -> Result<()> {
    let source = root().join("ebpf-programs");
    let target = root().join("target/bpf-build");
    let mut command = toolchain.compiler.cargo();
    command.current_dir(&source).args([
        "build",
        "--release",
        "--locked",
        "--target",
        "bpfel-unknown-none",
        "--target-dir",
    ]);
    command.arg(&target);
    if matches!(toolchain.compiler, Compiler::Nightly { .. }) {
        command.arg("-Zbuild-std=core");
    }
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let mut path = toolchain
        .bpf_linker
        .parent()
        .context("bpf-linker has no folder")?
        .as_os_str()
        .to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    command.env("PATH", path);
    step("kernel programs (eBPF)", &mut command)?;

    let built = target.join("bpfel-unknown-none/release/palisade-ebpf");
    let bytes =
        std::fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    // Writing the same bytes again would make cargo rebuild the agent.
    if std::fs::read(object()).ok().as_deref() != Some(&bytes) {
        std::fs::create_dir_all(root().join("target/bpf"))?;
        std::fs::write(object(), bytes)
            .with_context(|| format!("cannot write {}", object().display()))?;
    }
    Ok(())
}
