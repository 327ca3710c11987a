//! A page of memory that arrives late: the fault on it is answered by another process.
//!
//! The kernel writes a system call's result to the page, faults, and waits for the answer with
//! the locks that it holds: a slow call of exactly the wanted length, without a slow device.
//!
//! Must not be used with a page that holds anything: it is thrown away after each call.

use anyhow::{Context, Result, bail};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use rustix::mm::UserfaultfdFlags;
use std::ffi::c_void;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// From include/uapi/linux/userfaultfd.h, unchanged since Linux 4.3.
const UFFD_API: u64 = 0xAA;
const REGISTER_MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const MESSAGE_SIZE: usize = 32;
const ADDRESS_AT: usize = 16;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct ZeroPage {
    range: Range,
    mode: u64,
    zeropage: i64,
}

nix::ioctl_readwrite!(uffdio_api, 0xAA, 0x3F, Api);
nix::ioctl_readwrite!(uffdio_register, 0xAA, 0x00, Register);
nix::ioctl_readwrite!(uffdio_zeropage, 0xAA, 0x04, ZeroPage);
nix::ioctl_write_int_bad!(userfaultfd_new, nix::request_code_none!(0xAA, 0x00));

/// One page whose first touch waits for the handler.
#[derive(Debug)]
pub(crate) struct Page {
    address: NonNull<c_void>,
    size: NonZeroUsize,
}

impl Page {
    /// Maps the page and sends the means to answer its faults to the handler at the other end.
    pub(crate) fn new(handler: &OwnedFd) -> Result<Self> {
        let size = NonZeroUsize::new(rustix::param::page_size()).context("a page of no size")?;
        let flags = MapFlags::MAP_PRIVATE;
        // SAFETY: mapping memory has no safe wrapper; the kernel chooses a free address, so no
        // other mapping is touched.
        let address = unsafe {
            mmap_anonymous(
                None,
                size,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                flags,
            )
        }
        .context("mmap")?;
        let page = Page { address, size };
        let uffd = open_userfaultfd()?;
        let mut api = Api {
            api: UFFD_API,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: the request needs a raw pointer; `api` is live and of the layout that the
        // kernel documents.
        unsafe { uffdio_api(uffd.as_raw_fd(), &raw mut api) }.context("ioctl(UFFDIO_API)")?;
        let mut register = Register {
            range: page.range(),
            mode: REGISTER_MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: as above; the range is the mapping made here, which lives as long as `page`.
        unsafe { uffdio_register(uffd.as_raw_fd(), &raw mut register) }
            .context("ioctl(UFFDIO_REGISTER)")?;
        let fds = [uffd.as_raw_fd()];
        sendmsg::<()>(
            handler.as_raw_fd(),
            &[IoSlice::new(b"u")],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            None,
        )
        .context("sending the userfaultfd")?;
        Ok(page)
    }

    /// Its address.
    pub(crate) fn address(&self) -> *mut c_void {
        self.address.as_ptr()
    }

    /// Throws its content away, so that the next touch waits again.
    pub(crate) fn forget(&self) -> Result<()> {
        // SAFETY: dropping the content of memory needs `unsafe`; nothing refers to it, it was
        // written by the kernel and is never read.
        unsafe { madvise(self.address, self.size.get(), MmapAdvise::MADV_DONTNEED) }
            .context("madvise")
    }

    fn range(&self) -> Range {
        Range {
            start: self.address() as u64,
            len: self.size.get() as u64,
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: unmapping needs `unsafe`; the range is the mapping made in `new`, and no
        // reference into it was ever made. A failure leaves one page mapped until exit.
        let _ = unsafe { munmap(self.address, self.size.get()) };
    }
}

/// The handler's end: it learns of faults and answers them.
#[derive(Debug)]
pub(crate) struct Faults {
    uffd: File,
}

impl Faults {
    /// Receives it from the process that owns the page.
    pub(crate) fn receive(from: &OwnedFd) -> Result<Self> {
        let mut byte = [0_u8; 1];
        let mut room = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let mut into = [IoSliceMut::new(&mut byte)];
        let message = recvmsg::<()>(
            from.as_raw_fd(),
            &mut into,
            Some(&mut room),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .context("receiving the userfaultfd")?;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = part
                && let Some(fd) = fds.first()
            {
                // SAFETY: the kernel has just made this descriptor for us and nothing else
                // knows its number, so owning it is sound.
                let uffd = unsafe { File::from_raw_fd(*fd) };
                return Ok(Faults { uffd });
            }
        }
        bail!("the other half ended before it was ready")
    }

    /// To wait on.
    pub(crate) fn file(&self) -> &File {
        &self.uffd
    }

    /// The address of a waiting fault; `None` if there is none.
    pub(crate) fn next(&mut self) -> Result<Option<u64>> {
        let mut message = [0_u8; MESSAGE_SIZE];
        match self.uffd.read(&mut message) {
            Ok(MESSAGE_SIZE) if message[0] == EVENT_PAGEFAULT => {
                let mut address = [0_u8; 8];
                address.copy_from_slice(&message[ADDRESS_AT..ADDRESS_AT + 8]);
                Ok(Some(u64::from_ne_bytes(address)))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("reading the userfaultfd"),
        }
    }

    /// Answers a fault with a page of zeros: the waiting call goes on.
    pub(crate) fn answer(&self, address: u64) -> Result<()> {
        let len = rustix::param::page_size() as u64;
        let mut zero = ZeroPage {
            range: Range {
                start: address & !(len - 1),
                len,
            },
            mode: 0,
            zeropage: 0,
        };
        // SAFETY: the request needs a raw pointer; `zero` is live and of the documented layout.
        // It concerns memory of the other process only, which registered that page for this.
        unsafe { uffdio_zeropage(self.uffd.as_raw_fd(), &raw mut zero) }
            .context("ioctl(UFFDIO_ZEROPAGE)")?;
        Ok(())
    }
}

/// Whether this host allows it.
pub(crate) fn probe() -> Result<()> {
    open_userfaultfd().map(drop)
}

/// By system call (needs CAP_SYS_PTRACE), else by the device file (Linux 6.1 and later).
fn open_userfaultfd() -> Result<OwnedFd> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: marked unsafe because such a descriptor can change what memory reads give; it is
    // registered for one page only, made here and never read.
    let refused = match unsafe { rustix::mm::userfaultfd(flags) } {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    let device = File::open("/dev/userfaultfd")
        .with_context(|| format!("userfaultfd: {refused}; and opening /dev/userfaultfd"))?;
    // SAFETY: the request has no safe wrapper; it takes its flags by value and no memory.
    let fd = unsafe { userfaultfd_new(device.as_raw_fd(), flags.bits() as i32) }
        .context("ioctl(USERFAULTFD_IOC_NEW)")?;
    // SAFETY: the kernel has just made this descriptor and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
