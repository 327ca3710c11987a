//! Paths as the kernel programs tell them, and the offsets that the walk takes.

use super::{
    btf::Btf,
    offsets::{Group, Missing, Reader},
};
use palisade_abi::{FilePath, PATH_DELETED, PATH_WHOLE, PathOffsets};

/// In front of a path of which only the end is known.
const END_ONLY: &str = "…/";

/// Reads the offsets; a member that was not found is 0 and listed.
pub(super) fn resolve_path(btf: &Btf) -> (PathOffsets, Vec<Missing>) {
    let mut read = Reader::new(btf);
    let offsets = PathOffsets {
        file_mode: read.member(Group::Files, "file", "f_mode"),
        file_mount: read.member(Group::Files, "file", "f_path.mnt"),
        mount_root: read.member(Group::Files, "vfsmount", "mnt_root"),
        mount_inner: read.member(Group::Files, "mount", "mnt"),
        mount_parent: read.member(Group::Files, "mount", "mnt_parent"),
        mount_point: read.member(Group::Files, "mount", "mnt_mountpoint"),
        dentry_parent: read.member(Group::Files, "dentry", "d_parent"),
        dentry_hashed: read.member(Group::Files, "dentry", "d_hash.pprev"),
    };
    (offsets, read.missing)
}

/// The path, as /proc shows it: from the root, with ` (deleted)` behind it where the file has no name
/// any more. If only its end is known it begins with `…/`, and never with `/`. What is not UTF-8 is
/// replaced. `None` if nothing is known.
pub(super) fn text(path: &FilePath) -> Option<String> {
    let is = |flag| path.flags & flag != 0;
    let names = path.names.get(..path.length as usize)?;
    let mut names: Vec<_> = names
        .split_inclusive(|byte| *byte == 0)
        .map(|name| String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)))
        .collect();
    if names.is_empty() {
        return None;
    }
    names.reverse();
    let begin = if is(PATH_WHOLE) { "/" } else { END_ONLY };
    let end = if is(PATH_DELETED) { " (deleted)" } else { "" };
    Some(format!("{begin}{}{end}", names.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;

    fn told(names: &[u8], flags: u32) -> Option<String> {
        let mut path = FilePath::zeroed();
        path.length = names.len() as u32;
        path.flags = flags;
        path.names[..names.len()].copy_from_slice(names);
        text(&path)
    }

    #[test]
    fn names_come_last_first_and_an_end_never_looks_whole() {
        let names = b"python3\0bin\0usr\0";
        assert_eq!(told(names, PATH_WHOLE).as_deref(), Some("/usr/bin/python3"));
        assert_eq!(told(names, 0).as_deref(), Some("…/usr/bin/python3"));
        let gone = told(b"a\0", PATH_WHOLE | PATH_DELETED);
        assert_eq!(gone.as_deref(), Some("/a (deleted)"));
        assert_eq!(
            told(b"memfd:/etc/x\0", 0).as_deref(),
            Some("…/memfd:/etc/x")
        );
        assert_eq!(told(b"", PATH_WHOLE), None);
    }

    #[test]
    fn no_length_and_no_byte_panics() {
        let mut path = FilePath::zeroed();
        for length in 0..1000 {
            path.length = length * length;
            path.flags = length;
            path.names.fill((length * 37) as u8);
            let _ = text(&path);
        }
    }

    #[test]
    fn this_kernels_types_have_what_a_path_takes() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("SKIPPED this_kernels_types_have_what_a_path_takes: no BTF on this kernel");
            return;
        };
        let btf = Btf::parse(data).expect("the kernel's own BTF parses");
        let (offsets, missing) = resolve_path(&btf);
        assert_eq!(missing, []);
        assert_ne!(offsets.mount_inner, 0);
    }
}
