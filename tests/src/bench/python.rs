//! The Python that runs the model server: the system's if it has what is needed, else an environment below
//! `target/bench` into which pip puts the pinned versions of `tests/bench/requirements.txt`.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const IMPORTS: &str = "import numpy, onnx, onnxruntime";

/// Folder of the benchmarks' scripts.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bench")
}

/// Folder for what the benchmarks make and keep.
pub fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench")
}

/// A Python with ONNX Runtime; says why if there is none.
pub fn with_onnx_runtime() -> Result<PathBuf> {
    let folder = kept().join("venv");
    let inside = folder.join("bin/python");
    for python in [&inside, Path::new("python3")] {
        if works(python) {
            return Ok(python.to_path_buf());
        }
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    run(Command::new(&inside)
        .args(["-m", "pip", "install", "--quiet", "--requirement"])
        .arg(scripts().join("requirements.txt")))?;
    if works(&inside) {
        return Ok(inside);
    }
    bail!("{} has no ONNX Runtime", inside.display())
}

fn works(python: &Path) -> bool {
    Command::new(python)
        .args(["-c", IMPORTS])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{command:?}: {}",
            text.lines().next_back().unwrap_or_default()
        );
    }
    Ok(())
}

/// The model file, made if it is not there.
pub fn model(python: &Path) -> Result<PathBuf> {
    let file = kept().join("model.onnx");
    if !file.is_file() {
        std::fs::create_dir_all(kept())?;
        run(Command::new(python)
            .arg(scripts().join("serve.py"))
            .arg("make")
            .arg(&file))?;
    }
    Ok(file)
}
