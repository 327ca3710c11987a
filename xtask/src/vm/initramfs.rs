//! The first files of a guest: busybox, modules, PID 1 and the job, in the kernel's cpio form.
//!
//! Invariant: nothing here needs root; device files are entries of the archive only.

use super::kernel::{Image, find, unpack};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;

const INIT: &str = include_str!("../../vm/init");
const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CONSOLE: u32 = 0o020_600;

/// Writes the archive for a guest that runs `job`, a shell script.
pub fn write(image: &Image, job: &str, busybox: &Path, to: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules"] {
        archive.add(folder, DIRECTORY, &[], (0, 0));
    }
    archive.add("dev/console", CONSOLE, &[], (5, 1));
    let bytes = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    archive.add("bin/busybox", PROGRAM, &bytes, (0, 0));
    archive.add("init", PROGRAM, INIT.as_bytes(), (0, 0));
    archive.add("job", FILE, job.as_bytes(), (0, 0));
    let mut order = String::new();
    for module in &image.modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.add(&format!("modules/{name}"), FILE, &fs::read(module)?, (0, 0));
        order.push_str(&name);
        order.push('\n');
    }
    archive.add("modules/order", FILE, order.as_bytes(), (0, 0));
    fs::File::create(to)
        .and_then(|mut file| file.write_all(&archive.end()))
        .with_context(|| format!("cannot write {}", to.display()))
}

/// A cpio archive of the `newc` form: Documentation/driver-api/early-userspace/buffer-format.rst.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8], device: (u32, u32)) {
        self.entries += 1;
        // inode, mode, uid, gid, links, mtime, size, major, minor, device major, device minor, name size, check
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            data.len() as u32,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }
}

/// Copies the wanted modules and what they need out of a kernel's tree, unpacked; the kernel's release, and
/// the files in loading order.
pub fn collect_modules(tree: &Path, wanted: &[&str], to: &Path) -> Result<(String, Vec<String>)> {
    let list = find(tree, &|name| name == "modules.builtin").context("no modules.builtin")?;
    let release = list
        .parent()
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned())
        .context("modules.builtin lies in no folder of a release")?;
    let built_in: BTreeSet<String> = fs::read_to_string(&list)?
        .lines()
        .filter_map(|line| Some(module_name(line.rsplit('/').next()?)))
        .collect();
    let mut order = Vec::new();
    for name in wanted {
        collect(tree, name, &built_in, to, &mut order)?;
    }
    Ok((release, order))
}

/// One module, after those that it needs.
fn collect(
    tree: &Path,
    name: &str,
    built_in: &BTreeSet<String>,
    to: &Path,
    order: &mut Vec<String>,
) -> Result<()> {
    let file = format!("{name}.ko");
    if built_in.contains(name) || order.contains(&file) {
        return Ok(());
    }
    let Some(path) = find(tree, &|found| {
        found.contains(".ko") && module_name(found) == name
    }) else {
        bail!("this kernel has no module {name}, and it is not built in");
    };
    let bytes = unpack(&fs::read(&path)?)?;
    for needed in needs(&bytes) {
        collect(tree, &needed, built_in, to, order)?;
    }
    fs::write(to.join(&file), bytes)?;
    order.push(file);
    Ok(())
}

/// `9p-net.ko.xz` is the module `9p_net`.
fn module_name(file: &str) -> String {
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// The modules that a module names in its `.modinfo`.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(module_name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modules_needs_are_read() {
        assert_eq!(
            needs(b"\x7fELF..\0license=GPL\0depends=9pnet,netfs\0name=9p\0"),
            ["9pnet", "netfs"]
        );
        assert_eq!(needs(b"\0depends=\0name=x\0"), [""; 0]);
        assert_eq!(needs(b"\x7fELF"), [""; 0]);
        assert_eq!(module_name("virtio-rng.ko.xz"), "virtio_rng");
    }

    #[test]
    fn entries_begin_at_multiples_of_four() {
        let mut archive = Archive::default();
        archive.add("a", FILE, b"12345", (0, 0));
        let bytes = archive.end();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..117], b"12345");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }
}
