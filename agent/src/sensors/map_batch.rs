//! Reading a whole hash map with a few system calls instead of two an entry.
//!
//! Invariant: every entry that was there all the time is handed over exactly once: the kernel walks the map bucket by
//! bucket.

use bytemuck::Pod;
use nix::{errno::Errno, libc};
use std::os::fd::{AsFd, AsRawFd};

/// Entries a call at first; grows if one bucket holds more.
const ENTRIES: usize = 256;
/// More than this in one bucket does not happen.
const MAX_ENTRIES: usize = 1 << 16;
/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd`.
const LOOKUP_BATCH: libc::c_long = 24;

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Room for a batch of entries, kept from one window to the next.
#[derive(Debug)]
pub(super) struct Batch<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
    cpus: usize,
}

impl<K: Pod, V: Pod> Batch<K, V> {
    /// `cpus`: possible CPUs, so many values an entry.
    pub(super) fn new(cpus: usize) -> Self {
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        Self {
            keys: Vec::new(),
            values: Vec::new(),
            cpus,
        }
    }

    fn make_room(&mut self, entries: usize) {
        self.keys.resize(entries, K::zeroed());
        self.values.resize(entries * self.cpus, V::zeroed());
    }

    /// Hands over every entry: its key, and one value a CPU. An error if it did not come to the end.
    pub(super) fn read(
        &mut self,
        map: &impl AsFd,
        mut each: impl FnMut(&K, &[V]),
    ) -> Result<(), Errno> {
        if self.keys.is_empty() {
            self.make_room(ENTRIES);
        }
        // The kernel's bookmark: a bucket's number here, a key in other kinds of map.
        let mut bookmark = [0_u64; 8];
        let mut first = true;
        loop {
            let mut next = [0_u64; 8];
            let mut attributes = Attributes {
                in_batch: if first { 0 } else { bookmark.as_ptr() as u64 },
                out_batch: next.as_mut_ptr() as u64,
                keys: self.keys.as_mut_ptr() as u64,
                values: self.values.as_mut_ptr() as u64,
                count: u32::try_from(self.keys.len()).unwrap_or(u32::MAX),
                map_fd: map.as_fd().as_raw_fd() as u32,
                ..Attributes::default()
            };
            // SAFETY: needed because aya has no batched look-up. All pointers are to buffers that
            // outlive the call; `keys` and `values` hold `count` keys and `count` times one value a
            // possible CPU, which is what the kernel writes at most, and every bit pattern is a
            // valid `K` and `V`.
            let answer = unsafe {
                libc::syscall(
                    libc::SYS_bpf,
                    LOOKUP_BATCH,
                    &raw mut attributes,
                    size_of::<Attributes>(),
                )
            };
            let error = if answer == 0 {
                None
            } else {
                Some(Errno::last())
            };
            let got = match error {
                None | Some(Errno::ENOENT) => attributes.count as usize,
                Some(Errno::ENOSPC) if self.keys.len() < MAX_ENTRIES => {
                    self.make_room(self.keys.len() * 2);
                    continue;
                }
                Some(errno) => return Err(errno),
            };
            let values = self.values.chunks_exact(self.cpus);
            for (key, values) in self.keys.iter().zip(values).take(got) {
                each(key, values);
            }
            if error.is_some() {
                return Ok(());
            }
            (bookmark, first) = (next, false);
        }
    }
}

/// How often a map could not be read to its end. Counters are free-running: what it holds is told when it can be read
/// again. One that stays unreadable is told by this number, and once by the log.
#[derive(Debug)]
pub(super) struct Unread {
    map: &'static str,
    /// Reads that broke off.
    pub count: u64,
}

impl Unread {
    /// None yet of this map.
    pub(super) fn of(map: &'static str) -> Self {
        Self { map, count: 0 }
    }

    /// Counts a read that broke off. Whether it did not.
    pub(super) fn note(&mut self, read: Result<(), Errno>) -> bool {
        let Err(errno) = read else {
            return true;
        };
        if self.count == 0 {
            tracing::error!(map = self.map, %errno, "a map could not be read to its end");
        }
        self.count += 1;
        false
    }
}

/// Adds up the CPUs' values word by word. `V` consists of 64-bit counters.
pub(super) fn sum<V: Pod>(cpus: &[V]) -> V {
    let mut sum = V::zeroed();
    let total: &mut [u64] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut sum));
    for cpu in cpus {
        let part: &[u64] = bytemuck::cast_slice(std::slice::from_ref(cpu));
        for (total, part) in total.iter_mut().zip(part) {
            *total = total.wrapping_add(*part);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_taken_word_by_word_and_wrap() {
        assert_eq!(sum(&[[1_u64, u64::MAX], [2, 3]]), [3, 2]);
        assert_eq!(sum::<[u64; 2]>(&[]), [0, 0]);
    }

    #[test]
    fn reads_that_break_off_are_counted() {
        let mut unread = Unread::of("COUNTERS");
        assert!(unread.note(Ok(())));
        assert!(!unread.note(Err(Errno::EFAULT)) && !unread.note(Err(Errno::EINVAL)));
        assert_eq!(unread.count, 2);
    }

    #[test]
    fn what_is_no_map_is_not_read() {
        let file = std::fs::File::open("/dev/null").expect("it is always there");
        let mut batch: Batch<u64, u64> = Batch::new(2);
        let mut seen = 0;
        // EINVAL or EBADF, by the kernel's version; without privileges EPERM.
        assert!(batch.read(&file, |_, _| seen += 1).is_err());
        assert_eq!(seen, 0);
    }
}
