//! The demo from a recording, for hosts that do not allow eBPF.
//!
//! Invariants: every line is marked as replayed, nothing is claimed about this host, and nothing
//! is acted on: the policies run over the recording and their decisions are printed.

use super::screen::{Screen, Tone};
use super::settings::{POLICIES, configuration};
use super::stage::Folder;
use crate::exit;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A recording of the demo on a host that allows it, made with `palisade demo --record`.
pub(super) const RECORDING: &[u8] = include_bytes!("recording.arrows");

/// Runs `palisade replay` with the demo's policies and settings.
pub(super) fn replay_demo(recording: &[u8], policies: &Path, screen: Screen) -> Result<u8> {
    let folder = Folder::create()?;
    let (config, events) = (
        folder.path().join("palisade.toml"),
        folder.path().join("demo.arrows"),
    );
    // The scope and the device are those of the recording, whatever this host has.
    let text = configuration(
        folder.path(),
        "/",
        Path::new("/dev/null"),
        policies,
        &POLICIES,
    )?;
    fs::write(&config, text).context("writing the configuration")?;
    fs::write(&events, recording).context("writing the recording")?;
    let output = Command::new(std::env::current_exe().context("own executable")?)
        .arg("replay")
        .arg(&events)
        .arg("--config")
        .arg(&config)
        .env("NO_COLOR", "1")
        .output()
        .context("running palisade replay")?;
    screen.note(
        Tone::Loud,
        "decisions of the same policies over a recording of this demo",
    );
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        screen.note(Tone::Plain, line.strip_prefix("replayed ").unwrap_or(line));
    }
    if output.status.success() {
        return Ok(exit::OK);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(exit::coded(
        exit::FAILED,
        format!("the replay failed: {}", said.trim()),
    ))
}
