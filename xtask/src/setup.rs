//! Finds or installs what building needs. Idempotent: when nothing is missing it only looks.

use crate::process::{output, step};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The linker that turns LLVM bitcode into a BPF object. Pinned: its LLVM must match.
const BPF_LINKER: &str = "0.13.0";
/// Debian's and Ubuntu's names for the current Rust with BPF `core` and library sources.
const DEBIAN_RUST: &[&str] = &[
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "libstd-rust-web-dev-bpf",
    "rust-web-llvm",
];

/// Something is not on this machine and could not be installed. Exit code 5.
#[derive(Debug)]
pub struct Missing(String);

impl Missing {
    /// What is missing, and what to do.
    pub fn new(what: String) -> Self {
        Self(what)
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Missing {}

/// A compiler that can build for BPF and WASM.
#[derive(Clone, Debug)]
pub enum Compiler {
    /// Distribution packages: a stable compiler with `core` for BPF ready built and the
    /// library sources, told by `RUSTC_BOOTSTRAP` to accept `-Zbuild-std`.
    Packaged {
        /// Major version of its LLVM.
        llvm: u32,
    },
    /// A rustup nightly with `rust-src`.
    Nightly {
        /// Major version of its LLVM.
        llvm: u32,
    },
}

impl Compiler {
    /// A cargo of this compiler.
    pub fn cargo(&self) -> Command {
        let mut command = match self {
            Compiler::Packaged { .. } => {
                let mut command = Command::new("/usr/bin/cargo");
                command
                    .env("RUSTC", "/usr/bin/rustc")
                    .env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Compiler::Nightly { .. } => {
                let mut command = Command::new("rustup");
                command
                    .args(["run", "nightly", "cargo"])
                    .env_remove("RUSTC");
                command
            }
        };
        crate::process::clear_cargo_environment(&mut command);
        command
    }
}

/// What [`setup`] found.
#[derive(Debug)]
pub struct Toolchain {
    /// For BPF, and for WASM where stable Rust lacks the target.
    pub compiler: Compiler,
    /// Path of bpf-linker.
    pub bpf_linker: PathBuf,
}

/// Finds or installs both toolchains.
pub fn setup() -> Result<Toolchain> {
    let compiler = match packaged() {
        Some(compiler) => compiler,
        None => install_compiler()?,
    };
    // rustup brings its own linker for WASM.
    if let Compiler::Packaged { llvm } = compiler
        && !Path::new(&format!("/usr/lib/llvm-{llvm}/bin/wasm-ld")).exists()
    {
        apt(&[&format!("lld-{llvm}")])?;
    }
    let bpf_linker = match find_bpf_linker() {
        Some(path) => path,
        None => install_bpf_linker(&compiler)?,
    };
    Ok(Toolchain {
        compiler,
        bpf_linker,
    })
}

/// The distribution's compiler, if it is complete.
fn packaged() -> Option<Compiler> {
    let version = output(Command::new("/usr/bin/rustc").arg("-vV"))?;
    let sysroot = output(Command::new("/usr/bin/rustc").args(["--print", "sysroot"]))?;
    let core = Path::new(&sysroot).join("lib/rustlib/bpfel-unknown-none/lib");
    let sources = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core");
    let llvm = llvm_of(&version)?;
    (core.exists() && sources.exists()).then_some(Compiler::Packaged { llvm })
}

/// A rustup nightly, if it has the library's sources.
fn nightly() -> Option<Compiler> {
    let rustc = |arguments: &[&str]| {
        output(
            Command::new("rustup")
                .args(["run", "nightly", "rustc"])
                .args(arguments),
        )
    };
    let sysroot = rustc(&["--print", "sysroot"])?;
    let sources = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core");
    let llvm = llvm_of(&rustc(&["-vV"])?)?;
    sources.exists().then_some(Compiler::Nightly { llvm })
}

/// The distribution's packages where it has them: they come with the LLVM of the same version, which
/// bpf-linker needs. A nightly's LLVM is often newer than any that is packaged.
fn install_compiler() -> Result<Compiler> {
    if apt_knows(DEBIAN_RUST) {
        apt(DEBIAN_RUST)?;
        if let Some(compiler) = packaged() {
            return Ok(compiler);
        }
    }
    if let Some(compiler) = nightly() {
        return Ok(compiler);
    }
    if output(Command::new("rustup").arg("--version")).is_some() {
        let arguments = [
            "toolchain",
            "install",
            "nightly",
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ];
        step(
            "rustup: nightly with rust-src",
            Command::new("rustup").args(arguments),
        )?;
        if let Some(compiler) = nightly() {
            return Ok(compiler);
        }
    }
    Err(Missing(format!(
        "no compiler for BPF: neither the packages {} nor a rustup nightly with rust-src are to be had here; \
         install one of the two, then run ./x setup again",
        DEBIAN_RUST.join(" ")
    ))
    .into())
}

/// Whether the package lists name all of these; fetches the lists once if not.
fn apt_knows(packages: &[&str]) -> bool {
    let known = || output(Command::new("apt-cache").arg("show").args(packages)).is_some();
    known() || (apt_update().is_ok() && known())
}

/// Major version of a compiler's LLVM, from `rustc -vV`.
fn llvm_of(version: &str) -> Option<u32> {
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

fn cargo_bin() -> PathBuf {
    std::env::var_os("CARGO_HOME")
        .map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".cargo"),
            PathBuf::from,
        )
        .join("bin")
}

/// A program of the PATH, or of the system's folders, which a user's PATH may leave out.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

fn find_bpf_linker() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([cargo_bin()])
        .map(|folder| folder.join("bpf-linker"))
        .find(|program| {
            output(Command::new(program).arg("--version"))
                .is_some_and(|text| text.split_whitespace().any(|word| word == BPF_LINKER))
        })
}

fn install_bpf_linker(compiler: &Compiler) -> Result<PathBuf> {
    let mut install = compiler.cargo();
    install.args([
        "install",
        "bpf-linker",
        "--version",
        BPF_LINKER,
        "--locked",
        "--force",
        "--root",
    ]);
    install.arg(
        cargo_bin()
            .parent()
            .context("the cargo home has no parent")?,
    );
    // It reads the compiler's bitcode, so it needs the LLVM of the same version.
    let (Compiler::Packaged { llvm } | Compiler::Nightly { llvm }) = compiler;
    let prefix = format!("/usr/lib/llvm-{llvm}");
    if !Path::new(&prefix).join("include/llvm-c/Core.h").exists() {
        apt(&[&format!("llvm-{llvm}-dev")])?;
    }
    install
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{llvm}"),
        ])
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix)
        .env("LLVM_PREFIX", &prefix);
    step(&format!("bpf-linker {BPF_LINKER}"), &mut install)?;
    find_bpf_linker().ok_or_else(|| {
        Missing(format!(
            "bpf-linker {BPF_LINKER} was installed but does not run"
        ))
        .into()
    })
}

/// A command as root.
fn privileged(program: &str) -> Command {
    if output(Command::new("id").arg("-u")).is_some_and(|uid| uid == "0") {
        Command::new(program)
    } else {
        let mut command = Command::new("sudo");
        command.arg(program);
        command
    }
}

fn apt_update() -> Result<()> {
    step(
        "apt-get update",
        privileged("apt-get").args(["update", "-qq"]),
    )
}

/// Finds these programs, each with the package that has it, or installs the packages.
pub fn tools(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt(&missing)
}

/// Installs packages with apt.
fn apt(packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    let missing = || {
        Missing(format!(
            "these packages are missing: {names}; install them as root (apt-get install {names}), then run ./x again"
        ))
    };
    if output(Command::new("apt-get").arg("--version")).is_none() {
        return Err(missing().into());
    }
    apt_update().map_err(|_| missing())?;
    let mut install = privileged("apt-get");
    install
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    step(&format!("apt-get install {names}"), &mut install).map_err(|_| missing())?;
    Ok(())
}
