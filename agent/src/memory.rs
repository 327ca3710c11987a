//! Memory that was needed for moments.

/// Hands freed memory back to the kernel, after work that took tens of megabytes and is over: compiling
/// policies, reading the kernel's types. The allocator would keep it.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: needed because Rust's interface to the allocator has no such call. Sound because it takes no
    // pointer and may be made at any time, from any thread.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
