//! Model files: how often their bytes were taken in, and how long a load took.
//!
//! A load begins when a process opens a file. It is one once the process has mapped or read
//! [`WHOLE`] of the file, and ends with the last of the file's bytes that follow. Loads of a workload that overlap, or follow each other within [`SAME_LOAD_NS`],
//! are one (a model in shards, several workers); the same file by the same process begins another.
//!
//! Invariants: at most [`MAX_FILES`] files and [`MAX_READERS`] processes a file; the bytes of a
//! process that finds no room are left out together with it, so that the ratio stays right.

use super::formulas;
use super::series::Slots;
use super::view::ModelMetrics;
use palisade_core::ProcessId;
use std::collections::BTreeMap;

/// Files of workloads that are kept.
const MAX_FILES: usize = 512;
/// Processes that are told apart, a file.
const MAX_READERS: usize = 64;
/// Workloads whose load time is kept.
const MAX_WORKLOADS: usize = 256;
/// Time over which reload equivalents are summed, nanoseconds.
pub const RELOAD_WINDOW_NS: u64 = 600 * formulas::SECOND_NS;
const MINUTE_NS: u64 = 60 * formulas::SECOND_NS;
const MINUTES: u64 = RELOAD_WINDOW_NS / MINUTE_NS - 1;
/// A load that begins so soon after another of its workload belongs to it.
const SAME_LOAD_NS: u64 = formulas::SECOND_NS;
/// So much of a file makes a load: loaders skip headers, and read their slice only. The policy
/// `reload-loop` asks for the same.
const WHOLE: f64 = 0.9;
/// A load that takes in nothing for so long was given up, or is over; the next open begins anew.
const GIVEN_UP_NS: u64 = 60 * formulas::SECOND_NS;

/// (workload, device, inode)
type Key = (u64, u32, u64);

#[derive(Clone, Debug, Default)]
struct Reader {
    /// When the load under way began.
    opened_ns: Option<u64>,
    /// What was taken in since then.
    bytes: u64,
    /// Of any bytes, or of the open.
    changed_ns: u64,
    /// It has taken in something.
    has_read: bool,
    /// The last load that it was part of.
    load: Option<u64>,
}

#[derive(Clone, Debug)]
struct File {
    size: u64,
    minutes: Slots<u64>,
    readers: BTreeMap<ProcessId, Reader>,
    changed_ns: u64,
}

/// The latest load of a workload.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    number: u64,
    begin_ns: u64,
    end_ns: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Models {
    files: BTreeMap<Key, File>,
    loads: BTreeMap<u64, Load>,
    pub(super) left_out: u64,
}

impl Models {
    /// A process opened a file of `size` bytes.
    pub(super) fn opened(&mut self, key: Key, process: ProcessId, size: u64, now_ns: u64) {
        let Some(file) = file(&mut self.files, key, now_ns) else {
            self.left_out += 1;
            return;
        };
        if size > 0 {
            file.size = size;
        }
        let Some(reader) = file.reader(process) else {
            self.left_out += 1;
            return;
        };
        let given_up = now_ns.saturating_sub(reader.changed_ns) > GIVEN_UP_NS;
        if reader.opened_ns.is_none() || given_up {
            reader.opened_ns = Some(now_ns);
            reader.bytes = 0;
        }
        reader.changed_ns = now_ns;
    }

    /// A process mapped or read a part of a file.
    pub(super) fn took(&mut self, key: Key, process: ProcessId, bytes: u64, now_ns: u64) {
        let Some(file) = file(&mut self.files, key, now_ns) else {
            self.left_out += 1;
            return;
        };
        let size = file.size;
        let Some(reader) = file.reader(process) else {
            self.left_out += 1;
            return;
        };
        let goes_on = reader.bytes < size
            && now_ns.saturating_sub(reader.changed_ns) <= GIVEN_UP_NS
            && bytes > 0;
        reader.changed_ns = now_ns;
        reader.has_read |= bytes > 0;
        reader.bytes = reader.bytes.saturating_add(bytes);
        if is_whole(reader.bytes, size) {
            if let Some(begin_ns) = reader.opened_ns.take() {
                if self.loads.contains_key(&key.0) || self.loads.len() < MAX_WORKLOADS {
                    let load = self.loads.entry(key.0).or_default();
                    load.take_in(reader, begin_ns, now_ns);
                }
            } else if goes_on
                && let Some(load) = self.loads.get_mut(&key.0)
                && reader.load == Some(load.number)
            {
                load.end_ns = load.end_ns.max(now_ns);
            }
        }
        if let Some(minute) = file.minutes.at(now_ns) {
            *minute = minute.saturating_add(bytes);
        }
    }

    /// Files whose size no open has told.
    pub(super) fn without_size(&self) -> impl Iterator<Item = (u32, u64)> {
        self.files
            .iter()
            .filter(|(_, file)| file.size == 0)
            .map(|((_, device, inode), _)| (*device, *inode))
    }

    /// Says the size of a file.
    pub(super) fn set_size(&mut self, device: u32, inode: u64, bytes: u64) {
        for (key, file) in &mut self.files {
            if (key.1, key.2) == (device, inode) {
                file.size = bytes;
            }
        }
    }

    /// Forgets what is too old.
    pub(super) fn tidy(&mut self, now_ns: u64) {
        let old = |at_ns: u64| now_ns.saturating_sub(at_ns) > RELOAD_WINDOW_NS;
        self.files.retain(|_, file| {
            file.minutes.advance(now_ns);
            file.readers.retain(|_, reader| !old(reader.changed_ns));
            !file.readers.is_empty() || !old(file.changed_ns)
        });
        self.loads.retain(|_, load| !old(load.end_ns));
    }

    /// The files of a workload.
    pub(super) fn view(&self, workload: u64) -> Vec<ModelMetrics> {
        let all = (workload, 0, 0)..=(workload, u32::MAX, u64::MAX);
        self.files
            .range(all)
            .map(|((_, device, inode), file)| {
                let bytes = file.minutes.sum(0, u64::MAX);
                let readers = file.readers.values().filter(|r| r.has_read).count();
                ModelMetrics {
                    device: *device,
                    inode: *inode,
                    path: None,
                    size: file.size,
                    bytes,
                    processes: readers as u64,
                    reloads: formulas::reload_equivalents(bytes, file.size, readers),
                }
            })
            .collect()
    }

    /// Whether anything is kept of a workload.
    pub(super) fn has(&self, workload: u64) -> bool {
        let all = (workload, 0, 0)..=(workload, u32::MAX, u64::MAX);
        self.files.range(all).next().is_some()
    }

    /// How long the latest load of a workload took, seconds.
    pub(super) fn load_seconds(&self, workload: u64) -> Option<f64> {
        let load = self.loads.get(&workload)?;
        Some(formulas::load_seconds(load.begin_ns, load.end_ns))
    }
}

impl Load {
    /// A reader has loaded its file: as a part of this load, or of the next one.
    fn take_in(&mut self, reader: &mut Reader, begin_ns: u64, end_ns: u64) {
        let joins = begin_ns <= self.end_ns.saturating_add(SAME_LOAD_NS)
            && reader.load != Some(self.number);
        if joins && self.number > 0 {
            self.begin_ns = self.begin_ns.min(begin_ns);
            self.end_ns = self.end_ns.max(end_ns);
        } else {
            self.number += 1;
            (self.begin_ns, self.end_ns) = (begin_ns, end_ns);
        }
        reader.load = Some(self.number);
    }
}

/// Whether so many bytes of a file are a load of it.
fn is_whole(bytes: u64, size: u64) -> bool {
    size > 0 && bytes as f64 >= size as f64 * WHOLE
}

impl File {
    fn reader(&mut self, process: ProcessId) -> Option<&mut Reader> {
        if self.readers.len() >= MAX_READERS && !self.readers.contains_key(&process) {
            return None;
        }
        Some(self.readers.entry(process).or_default())
    }
}

/// The file's entry, if there is room for it.
fn file(files: &mut BTreeMap<Key, File>, key: Key, now_ns: u64) -> Option<&mut File> {
    if files.len() >= MAX_FILES && !files.contains_key(&key) {
        return None;
    }
    let file = files.entry(key).or_insert_with(|| File {
        size: 0,
        minutes: Slots::new(MINUTE_NS, MINUTES),
        readers: BTreeMap::new(),
        changed_ns: now_ns,
    });
    file.changed_ns = now_ns;
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = formulas::SECOND_NS;
    const A: Key = (1, 8, 100);
    const B: Key = (1, 8, 101);

    fn process(pid: u32) -> ProcessId {
        ProcessId { pid, start_ns: 1 }
    }

    #[test]
    fn a_load_in_shards_by_several_workers_is_one() {
        let mut models = Models::default();
        for (pid, from) in [(1, 10 * S), (2, 11 * S)] {
            models.opened(A, process(pid), 100, from);
            models.took(A, process(pid), 60, from + S);
            assert_eq!(models.load_seconds(1).is_some(), pid == 2);
            models.took(A, process(pid), 40, from + 2 * S);
            models.opened(B, process(pid), 100, from + 2 * S);
            models.took(B, process(pid), 100, from + 3 * S);
        }
        assert_eq!(models.load_seconds(1), Some(4.0));
        assert_eq!(models.view(1)[0].reloads, Some(1.0));
        assert_eq!(models.load_seconds(2), None);
    }

    #[test]
    fn the_same_file_again_is_another_load_and_more_reloads() {
        let mut models = Models::default();
        for turn in 0..3 {
            let from = turn * 2 * S;
            models.opened(A, process(1), 100, from);
            models.took(A, process(1), 100, from + 2 * S);
        }
        assert_eq!(models.load_seconds(1), Some(2.0));
        assert_eq!(models.view(1)[0].reloads, Some(3.0));
        models.tidy(2000 * S);
        assert!(models.view(1).is_empty());
        assert_eq!(models.load_seconds(1), None);
    }

    #[test]
    fn a_load_that_skips_a_header_has_a_time_and_later_bytes_move_its_end() {
        let mut models = Models::default();
        models.opened(A, process(1), 100, 10 * S);
        models.took(A, process(1), 89, 11 * S);
        assert_eq!(models.load_seconds(1), None);
        models.took(A, process(1), 1, 12 * S);
        assert_eq!(models.load_seconds(1), Some(2.0));
        models.took(A, process(1), 5, 14 * S);
        assert_eq!(models.load_seconds(1), Some(4.0));
        // Long after, and beyond the file's size, it is no longer that load.
        models.took(A, process(1), 1, 14 * S + GIVEN_UP_NS + 1);
        assert_eq!(models.load_seconds(1), Some(4.0));
        let again = 100 * S;
        models.opened(A, process(1), 100, again);
        models.took(A, process(1), 95, again + S);
        assert_eq!(models.load_seconds(1), Some(1.0));
        models.took(A, process(1), 10, again + 2 * S);
        assert_eq!(models.load_seconds(1), Some(2.0));
        models.took(A, process(1), 10, again + 3 * S);
        assert_eq!(models.load_seconds(1), Some(2.0));
    }

    #[test]
    fn later_bytes_of_an_earlier_load_do_not_lengthen_the_latest_one() {
        let mut models = Models::default();
        models.opened(A, process(1), 100, 10 * S);
        models.took(A, process(1), 90, 11 * S);
        models.opened(B, process(2), 100, 20 * S);
        models.took(B, process(2), 100, 21 * S);
        models.took(A, process(1), 10, 22 * S);
        assert_eq!(models.load_seconds(1), Some(1.0));
    }

    #[test]
    fn a_size_that_comes_late_is_used_and_a_load_without_an_open_has_no_time() {
        let mut models = Models::default();
        models.took(A, process(1), 50, S);
        assert_eq!(models.view(1)[0].reloads, None);
        assert_eq!(models.without_size().collect::<Vec<_>>(), [(8, 100)]);
        models.set_size(8, 100, 100);
        assert_eq!(models.view(1)[0].reloads, Some(0.5));
        models.took(A, process(1), 50, 2 * S);
        assert_eq!(models.load_seconds(1), None);
    }

    #[test]
    fn who_finds_no_room_is_left_out_with_its_bytes() {
        let mut models = Models::default();
        for pid in 0..200 {
            models.opened(A, process(pid), 10, S);
            models.took(A, process(pid), 10, S);
        }
        let model = &models.view(1)[0];
        assert_eq!((model.processes, model.bytes), (64, 640));
        assert_eq!(model.reloads, Some(1.0));
        assert_eq!(models.left_out, 2 * 136);
        for inode in 0..2000 {
            models.took((1, 9, inode), process(1), 1, S);
        }
        assert_eq!(models.files.len(), MAX_FILES);
    }
}
