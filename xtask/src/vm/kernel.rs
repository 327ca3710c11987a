//! A kernel of Debian's: fetched, unpacked, and kept below `target/vm`.
//!
//! Invariant: what is kept is complete; it appears under its name only when everything is there.

use super::apt::Apt;
use super::{folder, initramfs};
use crate::process::step;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A kernel that `./x vm` knows.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What people call it.
    pub name: &'static str,
    /// The Debian suite that has it.
    suite: &'static str,
    /// Whether modules are built for it: the tools that do so come with the kernel, and those of newer suites need
    /// a newer C library than the oldest machine that Palisade is built on.
    builds_modules: bool,
}

/// From the oldest that is supported to the newest that is packaged.
pub const KERNELS: &[Kernel] = &[
    Kernel {
        name: "6.1",
        suite: "bookworm",
        builds_modules: true,
    },
    Kernel {
        name: "6.12",
        suite: "trixie",
        builds_modules: false,
    },
    Kernel {
        name: "newest",
        suite: "sid",
        builds_modules: false,
    },
];

/// What a guest needs and no kernel has built in everywhere.
const MODULES: &[&str] = &[
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "fuse",
    "cuse",
];

/// What is booted.
#[derive(Debug)]
pub struct Image {
    /// As `uname -r` will tell it.
    pub release: String,
    /// The kernel.
    pub vmlinux: PathBuf,
    /// Modules in the order in which they are to be loaded.
    pub modules: Vec<PathBuf>,
    /// What modules for it are built with, if they are.
    pub headers: Option<PathBuf>,
}

impl Kernel {
    /// The kernel's files, fetched if there are none or `update` is wished.
    pub fn image(&self, update: bool) -> Result<Image> {
        let place = folder().join(self.name);
        let headers = self.builds_modules.then(|| place.join("headers"));
        let complete = [Some(place.join("release")), headers.clone()];
        if update || !complete.iter().flatten().all(|path| path.exists()) {
            self.fetch(&place)?;
        }
        let release = fs::read_to_string(place.join("release"))?;
        let order = fs::read_to_string(place.join("modules/order"))?;
        Ok(Image {
            release: release.trim().to_owned(),
            vmlinux: place.join("vmlinux"),
            modules: order
                .lines()
                .map(|name| place.join("modules").join(name))
                .collect(),
            headers,
        })
    }

    fn fetch(&self, place: &Path) -> Result<()> {
        let work = folder().join(format!("{}.part", self.name));
        remove(&work)?;
        let apt = Apt::new(work.join("apt"), self.suite)?;
        let tree = work.join("tree");
        unpack_packages(&apt, &apt.kernel_packages()?, &tree)?;
        let ready = work.join("ready");
        fs::create_dir_all(ready.join("modules"))?;
        let bzimage = find(&tree, &|name| name.starts_with("vmlinuz"))
            .context("the packages hold no vmlinuz")?;
        fs::write(ready.join("vmlinux"), elf_of(&fs::read(&bzimage)?)?)?;
        let (release, order) = initramfs::collect_modules(&tree, MODULES, &ready.join("modules"))?;
        fs::write(ready.join("modules/order"), order.join("\n") + "\n")?;
        fs::write(ready.join("release"), release)?;
        if self.builds_modules {
            unpack_packages(&apt, &apt.header_packages()?, &ready.join("headers"))?;
        }
        remove(place)?;
        fs::rename(&ready, place)?;
        remove(&work)
    }
}

/// Downloads packages and unpacks them into one tree.
fn unpack_packages(apt: &Apt, packages: &[String], tree: &Path) -> Result<()> {
    fs::create_dir_all(tree)?;
    let downloads = tree.with_extension("packages");
    apt.download(packages, &downloads)?;
    for package in fs::read_dir(&downloads)? {
        let package = package?;
        let mut command = Command::new("dpkg-deb");
        command.arg("-x").arg(package.path()).arg(tree);
        let what = format!("unpack {}", package.file_name().display());
        step(&what, &mut command)?;
    }
    remove(&downloads)
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

/// The first file below `folder` whose name is wanted.
pub fn find(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let kind = entry.file_type().ok()?;
        if kind.is_dir() {
            folders.push(entry.path());
        } else if kind.is_file() && entry.file_name().to_str().is_some_and(wanted) {
            return Some(entry.path());
        }
    }
    folders.iter().find_map(|folder| find(folder, wanted))
}

/// The ELF kernel inside of a bzImage. QEMU starts it through its PVH entry, which spares a slow emulated
/// decompression. Offsets are those of Documentation/arch/x86/boot.rst.
fn elf_of(bzimage: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| -> Option<usize> {
        let bytes = bzimage.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let payload = || {
        let setup_sectors = match *bzimage.get(0x1f1)? {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let start = (setup_sectors + 1) * 512 + word(0x248)?;
        // The last four bytes tell the unpacked size.
        bzimage.get(start..start + word(0x24c)?.checked_sub(4)?)
    };
    let payload = payload().context("the kernel is no bzImage")?;
    let elf = unpack(payload)?;
    if !elf.starts_with(b"\x7fELF") {
        bail!("the kernel's payload is no ELF file");
    }
    Ok(elf)
}

/// Unpacks what starts with a known compression's signature; takes other bytes as they are.
pub fn unpack(bytes: &[u8]) -> Result<Vec<u8>> {
    let program = match bytes {
        [0xfd, b'7', b'z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x1f, 0x8b, ..] => "gzip",
        _ => return Ok(bytes.to_vec()),
    };
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let input = child.stdin.take().context("a pipe")?;
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut { input }, &bytes));
    let output = child.wait_with_output()?;
    // Padding behind the packed data makes some of the programs complain after they have done their work.
    let _ = writer.join();
    if output.stdout.is_empty() {
        bail!("{program} could not unpack it");
    }
    Ok(output.stdout)
}
