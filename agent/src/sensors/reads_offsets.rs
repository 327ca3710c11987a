//! What finding the reads of model files takes besides [`super::offsets`].

use super::{
    btf::Btf,
    offsets::{Group, Missing, Reader},
};
use nix::libc;
use palisade_abi::ReadOffsets;

/// The first argument of a system call in `pt_regs`, by machine: the register itself where it
/// outlives the call (x86), else the copy that the kernel keeps of it (arm64).
const FIRST_ARGUMENT: &[&str] = &["di", "orig_x0"];

/// Reads them; a member that was not found is 0 and listed.
pub(super) fn resolve_reads(btf: &Btf) -> (ReadOffsets, Vec<Missing>) {
    let mut read = Reader::new(btf);
    let register = FIRST_ARGUMENT
        .iter()
        .find(|register| btf.member("pt_regs", register).is_some())
        .unwrap_or(&FIRST_ARGUMENT[0]);
    let offsets = ReadOffsets {
        file_flags: read.member(Group::Files, "file", "f_flags"),
        direct: libc::O_DIRECT as u32,
        first_argument: read.member(Group::Reads, "pt_regs", register),
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
