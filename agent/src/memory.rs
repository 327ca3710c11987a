//! Memory that was needed for moments, and what the allocator keeps of it.

/// Above this an allocation is a mapping of its own, which goes back at once when it is freed: the kernel's types,
/// compiled code. A batch of records is smaller.
const OWN_MAPPING: i32 = 1 << 20;
/// Free memory at the heap's end above which it goes back.
const SPARE: i32 = 1 << 20;

/// To be called before the first thread is started. One heap for all threads: each further one would keep what its
/// thread once needed, and the agent's threads seldom allocate at the same time.
pub(crate) fn keep_little() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: needed because Rust's interface to the allocator has no such calls. Sound because they take no
    // pointers and may be made at any time; a refused value leaves the allocator as it was.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, OWN_MAPPING);
        nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, SPARE);
    }
}

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
