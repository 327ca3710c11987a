//! Builds the policies, and the hostile guests of the tests, into WebAssembly components.
//!
//! Invariant: a component that this writes was validated and carries its manifest, as the
//! custom section [`MANIFEST_SECTION`] of the component itself. A file whose bytes would not
//! change is not written, so that nothing reloads or rebuilds without need.

use crate::process::{cargo, output, root, step};
use crate::setup::Toolchain;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the SDK's macro puts `policy.toml`.
const MANIFEST_SECTION: &str = "palisade:manifest";
const TARGET: &str = "wasm32-unknown-unknown";

/// Small modules that compile quickly in the agent. Function names stay: traps show them.
const PROFILE: &[(&str, &str)] = &[
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
    ("CARGO_PROFILE_RELEASE_LTO", "true"),
    ("CARGO_PROFILE_RELEASE_STRIP", "debuginfo"),
];

/// Builds `policies/*` and `examples/policies/*` into `target/policies/NAME.wasm`; answers the
/// components' paths.
pub fn build_policies(toolchain: &Toolchain) -> Result<Vec<PathBuf>> {
    let mut names = folders(&root().join("policies"))?;
    names.extend(folders(&root().join("examples/policies"))?);
    let mut command = compiler(toolchain, &root());
    for name in &names {
        command.args(["--package", name]);
    }
    step("policies (WASM)", &mut command)?;
    components(&names, "", &target_folder())
}

/// Builds `tests/guests/*` into `target/policies/guests/NAME.wasm`; answers their paths.
pub fn build_guests(toolchain: &Toolchain) -> Result<Vec<PathBuf>> {
    let folder = root().join("tests/guests");
    let names = folders(&folder)?;
    step(
        "hostile guests (WASM)",
        compiler(toolchain, &folder).arg("--workspace"),
    )?;
    components(&names, "guest_", &target_folder().join("guests"))
}

/// Turns a core module, as the compiler made it, into a component that carries its manifest.
pub fn component(module: &[u8]) -> Result<Vec<u8>> {
    let manifest = custom_section(module, MANIFEST_SECTION)?;
    let mut component = wit_component::ComponentEncoder::default()
        .validate(true)
        .module(module)?
        .encode()?;
    if let Some(manifest) = manifest {
        append_custom_section(&mut component, MANIFEST_SECTION, manifest);
    }
    Ok(component)
}

/// One target folder for all, so that the standard library is built once.
fn target_folder() -> PathBuf {
    root().join("target/policies")
}

/// Stable Rust if it has the target, else the compiler for BPF with `std` built from source.
fn compiler(toolchain: &Toolchain, folder: &Path) -> Command {
    let ready = output(cargo_sysroot().args(["--print", "sysroot"])).is_some_and(|sysroot| {
        Path::new(&sysroot)
            .join("lib/rustlib")
            .join(TARGET)
            .join("lib")
            .exists()
    });
    let mut command = if ready {
        cargo()
    } else {
        toolchain.compiler.cargo()
    };
    command
        .current_dir(folder)
        .args(["build", "--release", "--locked", "--target", TARGET]);
    if !ready {
        command.arg("-Zbuild-std=std,panic_abort");
    }
    command.arg("--target-dir").arg(target_folder());
    command.envs(PROFILE.iter().copied());
    // Flags meant for the host's compiler (linker, sanitizers) have no meaning here.
    command
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

fn cargo_sysroot() -> Command {
    let mut command = Command::new("rustc");
    crate::process::clear_cargo_environment(&mut command);
    command.current_dir(root());
    command
}

/// Names of the folders that hold a crate.
fn folders(parent: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in
        std::fs::read_dir(parent).with_context(|| format!("cannot list {}", parent.display()))?
    {
        let entry = entry?;
        if entry.path().join("Cargo.toml").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn components(names: &[String], prefix: &str, folder: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let built = target_folder().join(TARGET).join("release");
    names
        .iter()
        .map(|name| {
            let module = built.join(format!("{prefix}{}.wasm", name.replace('-', "_")));
            let bytes = std::fs::read(&module)
                .with_context(|| format!("cannot read {}", module.display()))?;
            let component =
                component(&bytes).with_context(|| format!("{name} does not make a component"))?;
            let path = folder.join(format!("{name}.wasm"));
            if std::fs::read(&path).ok().as_deref() != Some(&component) {
                replace(&path, &component)?;
            }
            Ok(path)
        })
        .collect()
}

/// Writes beside and renames: an agent that watches the folder never sees half a file.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("wasm.new");
    std::fs::write(&beside, bytes).with_context(|| format!("cannot write {}", beside.display()))?;
    std::fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
}

/// The first custom section of that name in a module or component.
fn custom_section<'a>(binary: &'a [u8], wanted: &str) -> Result<Option<&'a [u8]>> {
    const PREAMBLE: usize = 8;
    let mut rest = binary.get(PREAMBLE..).context("no WASM binary")?;
    while let Some((id, after)) = rest.split_first() {
        let (size, after) = leb(after).context("a section without a size")?;
        let Some((body, next)) = after.split_at_checked(size) else {
            bail!("a section is cut off")
        };
        if *id == 0 {
            let (length, text) = leb(body).context("a custom section without a name")?;
            let Some((name, data)) = text.split_at_checked(length) else {
                bail!("a section name is cut off")
            };
            if name == wanted.as_bytes() {
                return Ok(Some(data));
            }
        }
        rest = next;
    }
    Ok(None)
}

fn append_custom_section(binary: &mut Vec<u8>, name: &str, data: &[u8]) {
    let mut body = Vec::new();
    push_leb(&mut body, name.len());
    body.extend(name.as_bytes());
    body.extend(data);
    binary.push(0);
    push_leb(binary, body.len());
    binary.extend(body);
}

/// An unsigned LEB128 number of at most 32 bits, and what follows it.
fn leb(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(5) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((usize::try_from(value).ok()?, &bytes[at + 1..]));
        }
    }
    None
}

fn push_leb(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_appended_section_is_found() {
        let mut module = b"\0asm\x01\0\0\0".to_vec();
        let long = vec![7; 300];
        append_custom_section(&mut module, "other", &long);
        append_custom_section(&mut module, MANIFEST_SECTION, b"[policy]");
        let found = |name: &str| custom_section(&module, name).expect("a whole module");
        assert_eq!(found("other"), Some(&long[..]));
        assert_eq!(found(MANIFEST_SECTION), Some(&b"[policy]"[..]));
        assert_eq!(found("none"), None);
        assert!(custom_section(&module[..module.len() - 1], "none").is_err());
    }
}
