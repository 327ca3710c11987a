//! Where the kernel keeps the arguments of a system call, from its entry to its return.

use super::{
    btf::Btf,
    offsets::{Group, Missing, Reader},
};
use palisade_abi::SyscallOffsets;

/// The registers on x86; all of them outlive the call.
const X86: [&str; 6] = ["di", "si", "dx", "r10", "r8", "r9"];
/// On arm64 the result takes the first register's place; the kernel keeps a copy.
const ARM64_FIRST: &str = "orig_x0";
const ARM64_REGISTERS: &str = "regs";

/// Reads them; a member that was not found is 0 and listed.
pub(super) fn resolve_registers(btf: &Btf) -> (SyscallOffsets, Vec<Missing>) {
    let mut read = Reader::new(btf);
    let mut member = |name: &str| read.member(Group::Registers, "pt_regs", name);
    let arguments = if btf.member("pt_regs", ARM64_FIRST).is_some() {
        let registers = member(ARM64_REGISTERS);
        let mut arguments = [0, 1, 2, 3, 4, 5].map(|n| registers + 8 * n);
        arguments[0] = member(ARM64_FIRST);
        arguments
    } else {
        X86.map(member)
    };
    (SyscallOffsets { arguments }, read.missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernels_types_have_six_arguments_in_six_places() {
        const NAME: &str = "this_kernels_types_have_six_arguments_in_six_places";
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("SKIPPED {NAME}: no BTF on this kernel");
            return;
        };
        let btf = Btf::parse(data).expect("the kernel's own BTF parses");
        let (offsets, missing) = resolve_registers(&btf);
        assert_eq!(missing, []);
        let mut places = offsets.arguments;
        places.sort_unstable();
        assert!(places.windows(2).all(|two| two[0] + 8 <= two[1]));
    }
}
