//! Opens through io_uring, by its bare system calls.
//!
//! Invariant: one request is under way at a time. The ring goes with the process that made it.

use nix::libc;
use std::{
    ffi::{CStr, c_long, c_void},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
};

const ENTRIES: u32 = 4;
const ENTER_GETEVENTS: u32 = 1;
const OP_OPENAT: u8 = 18;
/// The kernel hands the request to a thread of its own.
const SQE_ASYNC: u8 = 1 << 4;
const OFF_SQ_RING: i64 = 0;
const OFF_CQ_RING: i64 = 0x0800_0000;
const OFF_SQES: i64 = 0x1000_0000;
const SQE_BYTES: usize = 64;
const CQE_BYTES: usize = 16;

/// `struct io_sqring_offsets`
#[repr(C)]
#[derive(Default)]
struct SqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    flags: u32,
    dropped: u32,
    array: u32,
    reserved: u32,
    user: u64,
}

/// `struct io_cqring_offsets`
#[repr(C)]
#[derive(Default)]
struct CqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    overflow: u32,
    cqes: u32,
    flags: u32,
    reserved: u32,
    user: u64,
}

/// `struct io_uring_params`
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread: [u32; 2],
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    sq: SqOffsets,
    cq: CqOffsets,
}

/// The beginning of `struct io_uring_sqe`
#[repr(C)]
struct Request {
    opcode: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    offset: u64,
    address: u64,
    length: u32,
    open_flags: u32,
    user: u64,
}

/// A ring.
pub struct Ring {
    fd: OwnedFd,
    params: Params,
    sq: *mut c_void,
    cq: *mut c_void,
    requests: *mut c_void,
}

impl Ring {
    /// Fails where io_uring is not built in or not permitted.
    pub fn new() -> io::Result<Self> {
        let mut params = Params::default();
        // SAFETY: the parameters are the 120 bytes that the kernel wants, and the result is a new descriptor.
        let fd = unsafe {
            let fd = answer(libc::syscall(
                libc::SYS_io_uring_setup,
                ENTRIES,
                &raw mut params,
            ))?;
            OwnedFd::from_raw_fd(fd)
        };
        let sq_bytes = params.sq.array as usize + 4 * params.sq_entries as usize;
        let cq_bytes = params.cq.cqes as usize + CQE_BYTES * params.cq_entries as usize;
        let requests_bytes = SQE_BYTES * params.sq_entries as usize;
        Ok(Self {
            sq: map(&fd, OFF_SQ_RING, sq_bytes)?,
            cq: map(&fd, OFF_CQ_RING, cq_bytes)?,
            requests: map(&fd, OFF_SQES, requests_bytes)?,
            fd,
            params,
        })
    }

    /// Opens a file for reading, in the caller's context or in a thread of the kernel's.
    pub fn open(&self, path: &CStr, in_a_thread: bool) -> io::Result<OwnedFd> {
        let request = Request {
            opcode: OP_OPENAT,
            flags: if in_a_thread { SQE_ASYNC } else { 0 },
            priority: 0,
            fd: libc::AT_FDCWD,
            offset: 0,
            address: path.as_ptr() as u64,
            length: 0,
            open_flags: (libc::O_RDONLY | libc::O_CLOEXEC) as u32,
            user: 0,
        };
        // SAFETY: the offsets are the kernel's own, within the maps; nothing is under way, so that the first
        // request slot is free; `path` outlives the call, which waits for the answer.
        let answered = unsafe {
            self.requests.write_bytes(0, SQE_BYTES);
            self.requests.cast::<Request>().write(request);
            self.sq
                .add(self.params.sq.array as usize)
                .cast::<u32>()
                .write_bytes(0, self.params.sq_entries as usize);
            let tail = word(self.sq, self.params.sq.tail);
            tail.store(
                tail.load(Ordering::Relaxed).wrapping_add(1),
                Ordering::Release,
            );
            answer(libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd.as_raw_fd(),
                1,
                1,
                ENTER_GETEVENTS,
                std::ptr::null::<u8>(),
                0,
            ))?;
            let head = word(self.cq, self.params.cq.head);
            let at = head.load(Ordering::Acquire);
            let mask = word(self.cq, self.params.cq.ring_mask).load(Ordering::Relaxed);
            let slot = self.params.cq.cqes as usize + CQE_BYTES * (at & mask) as usize;
            let result = self.cq.add(slot + 8).cast::<i32>().read_volatile();
            head.store(at.wrapping_add(1), Ordering::Release);
            result
        };
        if answered < 0 {
            return Err(io::Error::from_raw_os_error(-answered));
        }
        // SAFETY: a new descriptor that nobody else knows.
        Ok(unsafe { OwnedFd::from_raw_fd(answered) })
    }
}

fn answer(result: c_long) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}

fn map(ring: &OwnedFd, offset: i64, bytes: usize) -> io::Result<*mut c_void> {
    // SAFETY: a fresh map of the ring's memory, shared with the kernel alone.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            ring.as_raw_fd(),
            offset,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(at)
}

/// # Safety
/// There is an aligned word at that offset of the map.
unsafe fn word<'a>(map: *mut c_void, offset: u32) -> &'a AtomicU32 {
    // SAFETY: as the caller promises; the kernel changes it atomically, too.
    unsafe { AtomicU32::from_ptr(map.add(offset as usize).cast()) }
}
