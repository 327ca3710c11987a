//! The kernel module of the tests: errors of a GPU that is not there.

use super::folder;
use super::kernel::Image;
use crate::process::{root, step};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds `tests/xid-module` for a kernel, if modules are built for it.
pub fn xid(image: &Image) -> Result<Option<PathBuf>> {
    let Some(headers) = &image.headers else {
        return Ok(None);
    };
    let sources = headers.join("usr/src");
    // Sources of all architectures, and what belongs to this one.
    let common = image
        .release
        .rsplit_once('-')
        .map_or("", |(kernel, _)| kernel);
    let work = folder().join("xid-module");
    copy(&root().join("tests/xid-module"), &work)?;
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(sources.join(format!("linux-headers-{common}-common")))
        .arg(format!(
            "O={}",
            sources
                .join(format!("linux-headers-{}", image.release))
                .display()
        ))
        .arg(format!("M={}", work.display()))
        .arg("modules");
    step(
        &format!("the tests' kernel module for {}", image.release),
        &mut make,
    )?;
    Ok(Some(work.join("fake_xid.ko")))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    fs::create_dir_all(to)?;
    for file in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let file = file?;
        fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}
