//! What finding the reads of model files takes besides [`super::offsets`].

use super::{
    btf::Btf,
    offsets::{Group, Missing, Reader},
};
use nix::libc;
use palisade_abi::ReadOffsets;

/// Reads them; a member that was not found is 0 and listed.
pub(super) fn resolve_reads(btf: &Btf) -> (ReadOffsets, Vec<Missing>) {
    let mut read = Reader::new(btf);
    let offsets = ReadOffsets {
        file_flags: read.member(Group::Files, "file", "f_flags"),
        direct: libc::O_DIRECT as u32,
    };
    (offsets, read.missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernels_types_have_what_reads_take() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("SKIPPED this_kernels_types_have_what_reads_take: no BTF on this kernel");
            return;
        };
        let btf = Btf::parse(data).expect("the kernel's own BTF parses");
        let (offsets, missing) = resolve_reads(&btf);
        assert_eq!(missing, []);
        assert_ne!(offsets.file_flags, 0);
    }
}
