//! What the kernel counts about a loaded program: one system call, where a file in /proc takes five.

use aya_obj::generated::bpf_prog_info;
use nix::libc;
use std::os::fd::{AsFd, AsRawFd};

/// `BPF_OBJ_GET_INFO_BY_FD` of `enum bpf_cmd`.
const GET_INFO: libc::c_long = 15;

/// The `info` member of `union bpf_attr`.
#[repr(C)]
struct Attributes {
    fd: u32,
    length: u32,
    info: u64,
}

/// Runs, their time, and events for which it was not run. What an older kernel does not tell is 0.
pub(super) fn runs(program: &impl AsFd) -> Option<bpf_prog_info> {
    // SAFETY: needed because the generated structure has no constructor. Sound because it consists of integers.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attributes = Attributes {
        fd: program.as_fd().as_raw_fd() as u32,
        length: size_of::<bpf_prog_info>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: needed because aya tells neither runs nor skipped ones. The kernel writes `length` bytes to `info` at
    // most, which outlives the call; its arrays' addresses are 0, so that it writes nowhere else.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            GET_INFO,
            &raw mut attributes,
            size_of::<Attributes>(),
        )
    };
    (answer == 0).then_some(info)
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_no_program_tells_nothing() {
        let file = std::fs::File::open("/dev/null").expect("it is always there");
        assert!(super::runs(&file).is_none());
    }
}
