//! Palisade's kernel side.
//!
//! Invariants:
//! - A program only reads the kernel's memory; it never changes what it watches.
//! - Records and counts are made for watched workloads only; the one exception is the time of a
//!   device class's last return, which every process on the host takes part in.
//! - Whatever cannot be recorded is counted in `LOSSES`; nothing is dropped silently.
//! - Member offsets come from the agent (`OFFSETS`), never from this source.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod cuda;
mod emit;
mod files;
mod filter;
mod gpu;
mod gpu_commands;
mod inference;
mod kernel;
mod maps;
mod memory;
mod net;
mod path;
mod pids;
mod process;
mod quotas;
mod reads;
mod registers;
mod repeat;
mod sched;
mod syscalls;
mod tables;
mod typed;
mod xid;

/// Some helpers (`bpf_probe_read_kernel`, `bpf_ktime_get_boot_ns`) are for GPL-compatible
/// programs only; "Dual MIT/GPL" is how the kernel spells a permissive licence that agrees.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
