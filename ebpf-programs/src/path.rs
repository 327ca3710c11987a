//! Whole paths of files: from the last name up to the root, as the kernel's `d_path` goes.
//!
//! Invariants:
//! - A walk takes [`STEPS`] steps at most and writes nothing behind its room. A path that is longer,
//!   or leads to no root (an anonymous file), is told by its end and without [`PATH_WHOLE`].
//! - Nothing is locked: a folder that is renamed in this very moment may be told by its old place
//!   and its new name, or the reverse.

use crate::{
    kernel::{Address, File},
    repeat::{self, Then},
    tables::offset,
};
use aya_ebpf::{Global, helpers::generated::bpf_probe_read_kernel_str};
use palisade_abi::{FilePath, PATH_DELETED, PATH_WHOLE, PathOffsets};

/// Names and mounts on a path, at most.
const STEPS: u32 = 40;
/// The longest name with its NUL.
const NAME_BYTES: usize = 256;
/// Where a name can begin that is as long as can be.
const LAST_NAME_AT: usize = 512 - NAME_BYTES;
/// `FMODE_NOACCOUNT`, since Linux 4.18: a file of the kernel's own.
const MODE_NO_ACCOUNT: u32 = 1 << 29;

/// Offsets for this family.
#[unsafe(no_mangle)]
static OFFSETS_PATH: Global<PathOffsets> = Global::new(PathOffsets {
    file_mode: 0,
    file_mount: 0,
    mount_root: 0,
    mount_inner: 0,
    mount_parent: 0,
    mount_point: 0,
    dentry_parent: 0,
    dentry_hashed: 0,
});

/// One member of [`OFFSETS_PATH`], as `offset!` reads those of `OFFSETS`.
macro_rules! path_offset {
    ($member:ident) => {{
        let table = (&raw const OFFSETS_PATH).cast::<PathOffsets>();
        // SAFETY: `Global` is transparent over an initialised value; the volatile read keeps the
        // compiler from using the zeros above instead of what the agent put there.
        unsafe { core::ptr::read_volatile(&raw const (*table).$member) as usize }
    }};
}

/// Whether the kernel opened the file for itself: the one below an overlay's.
#[inline(always)]
pub fn is_of_the_kernel(file: File) -> bool {
    file.read::<u32>(path_offset!(file_mode))
        .is_some_and(|mode| mode & MODE_NO_ACCOUNT != 0)
}

/// Writes the path of a file.
///
/// # Safety
/// `into` is writable, and aligned.
#[inline(always)]
pub unsafe fn walk(file: File, into: *mut FilePath) {
    // SAFETY: as the caller promises.
    unsafe {
        (&raw mut (*into).length).write_volatile(0);
        (&raw mut (*into).flags).write_volatile(0);
    }
    if let Some(mut climb) = Climb::from(file, into) {
        repeat::up_to(STEPS, Climb::step, &mut climb);
    }
}

/// Where a walk is.
struct Climb {
    dentry: Address,
    mount: Address,
    /// What the root is told with. A whole word, as all members: the verifier keeps track of words.
    whole: u64,
    into: *mut FilePath,
}

impl Climb {
    #[inline(always)]
    fn from(file: File, into: *mut FilePath) -> Option<Self> {
        let dentry = file.dentry()?;
        let inner: u64 = file.read(path_offset!(file_mount))?;
        let is_hashed = dentry.read::<u64>(path_offset!(dentry_hashed))? != 0;
        let deleted = if is_hashed { 0 } else { PATH_DELETED };
        Some(Self {
            dentry,
            mount: Address(inner.wrapping_sub(path_offset!(mount_inner) as u64)),
            whole: (PATH_WHOLE | deleted) as u64,
            into,
        })
    }

    extern "C" fn step(_turn: u32, climb: &mut Self) -> Then {
        match climb.go() {
            Some(()) => Then::GoOn,
            None => Then::End,
        }
    }

    /// A name, or a mount; `None` at the root, or if the walk ends before it.
    #[inline(always)]
    fn go(&mut self) -> Option<()> {
        let (dentry, mount) = (self.dentry, self.mount);
        let root =
            Address(mount.0 + path_offset!(mount_inner) as u64).follow(path_offset!(mount_root))?;
        if dentry == root {
            let above = mount.follow(path_offset!(mount_parent))?;
            if above == mount {
                // SAFETY: as the caller of `walk` promises.
                unsafe { (&raw mut (*self.into).flags).write(self.whole as u32) };
                return None;
            }
            self.dentry = mount.follow(path_offset!(mount_point))?;
            self.mount = above;
        } else {
            let name = dentry.follow(offset!(dentry_name))?;
            // SAFETY: as the caller of `walk` promises.
            unsafe { add_name(name, self.into)? };
            let above = dentry.follow(path_offset!(dentry_parent))?;
            if above == dentry {
                return None;
            }
            self.dentry = above;
        }
        Some(())
    }
}

/// # Safety
/// As [`walk`].
#[inline(always)]
unsafe fn add_name(name: Address, into: *mut FilePath) -> Option<()> {
    // The length lies in the entry, of which the verifier knows nothing: kept in a register, each of its
    // possible ranges would be a state of its own, a million of them in all.
    // SAFETY: as the caller promises; there is room for the longest name, as compared here and as the
    // verifier checks; the helper checks the address that it reads from.
    unsafe {
        let length = &raw mut (*into).length;
        let at = length.read_volatile() as usize;
        if at > LAST_NAME_AT {
            return None;
        }
        let bytes = bpf_probe_read_kernel_str(
            (&raw mut (*into).names).cast::<u8>().add(at).cast(),
            NAME_BYTES as u32,
            name.0 as *const _,
        );
        if bytes <= 0 {
            return None;
        }
        length.write_volatile(at as u32 + bytes as u32);
    }
    Some(())
}
