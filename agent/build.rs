//! Embeds the eBPF object that `./x build` leaves in `target/bpf`.
//!
//! Without it the agent still compiles (for `cargo check`, clippy and unprivileged tests) and
//! says at run time that it has no eBPF programs; a release build refuses, so that nobody ships such an agent.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=PALISADE_EBPF_OBJECT");
    let manifest = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object = std::env::var_os("PALISADE_EBPF_OBJECT").map_or_else(
        || manifest.join("../target/bpf/palisade-ebpf.o"),
        PathBuf::from,
    );
    println!("cargo:rerun-if-changed={}", object.display());
    let bytes = std::fs::read(&object).unwrap_or_default();
    let release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    assert!(
        !bytes.is_empty() || !release,
        "a release build needs the eBPF object, and there is none at {}: run ./x build (or set PALISADE_EBPF_OBJECT)",
        object.display()
    );
    let out =
        PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("palisade-ebpf.o");
    if let Err(error) = std::fs::write(&out, bytes) {
        panic!("cannot write {}: {error}", out.display());
    }
}
