//! The demo really shows what it says, on this kernel.

use palisade_tests::{binaries, live_or_skip};
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
