//! Who read how much of a file, and when. Pure; of a fixed size per file.

use palisade_policy_sdk::state::{Reader, Writer};
use palisade_policy_sdk::{BoundedMap, ProcessId};
use std::collections::VecDeque;

/// Readers remembered per file; those seen least recently go.
const MAX_READERS: usize = 32;
/// Whole reads remembered per file.
const MAX_READS: usize = 128;

/// A file as one workload sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FileId {
    pub workload: u64,
    pub device: u32,
    pub inode: u64,
}

/// A process that has the file in use.
#[derive(Clone, Copy, Debug, Default)]
struct User {
    /// Mapped since its last whole read.
    bytes: u64,
    /// Its last whole read that counted.
    read_ns: Option<u64>,
}

/// The reads of one file by one workload.
#[derive(Debug)]
pub(crate) struct File {
    /// Bytes; 0 while unknown.
    pub size: u64,
    users: BoundedMap<ProcessId, User>,
    /// Times of whole reads, oldest first.
    reads: VecDeque<u64>,
    /// The most users that had read it at one time, and when that was.
    slots: u32,
    slots_ns: u64,
}

impl Default for File {
    fn default() -> Self {
        Self {
            size: 0,
            users: BoundedMap::new(MAX_READERS),
            reads: VecDeque::new(),
            slots: 0,
            slots_ns: 0,
        }
    }
}

/// A loop, with its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Loop {
    pub file: FileId,
    /// Who read last.
    pub process: ProcessId,
    pub size: u64,
    pub reads: u32,
    pub epochs: u32,
    /// Processes that used the file at the same time.
    pub slots: u32,
    /// From the first read to the last.
    pub span_ns: u64,
    /// Between the last two epochs.
    pub gap_ns: u64,
}

impl File {
    /// Takes note of bytes that a process mapped. Answers whether that made a read that counts.
    pub(crate) fn mapped(
        &mut self,
        process: ProcessId,
        bytes: u64,
        now_ns: u64,
        gap_ns: u64,
        horizon_ns: u64,
    ) -> bool {
        let recent = |at_ns: u64| now_ns.saturating_sub(at_ns) <= horizon_ns;
        self.reads.retain(|at_ns| recent(*at_ns));
        let user = self.users.get_or_insert_with(process, User::default);
        user.bytes = user.bytes.saturating_add(bytes);
        if self.size == 0 || user.bytes < self.size {
            return false;
        }
        user.bytes = 0;
        if user
            .read_ns
            .is_some_and(|last| now_ns.saturating_sub(last) < gap_ns)
        {
            return false;
        }
        user.read_ns = Some(now_ns);
        if self.reads.len() == MAX_READS {
            self.reads.pop_front();
        }
        self.reads.push_back(now_ns);
        let live = self
            .users
            .iter()
            .filter(|(_, user)| user.read_ns.is_some_and(recent))
            .count() as u32;
        if live >= self.slots || !recent(self.slots_ns) {
            (self.slots, self.slots_ns) = (live, now_ns);
        }
        true
    }

    /// A process ended: the file is no longer in its use.
    pub(crate) fn exited(&mut self, process: ProcessId) {
        self.users.remove(&process);
    }

    /// The processes that have it in use.
    pub(crate) fn users(&self) -> impl Iterator<Item = ProcessId> {
        self.users.iter().map(|(id, _)| *id)
    }

    /// The loop that the reads make, if they make one.
    pub(crate) fn find_loop(
        &self,
        file: FileId,
        process: ProcessId,
        epochs_wanted: usize,
        gap_ns: u64,
    ) -> Option<Loop> {
        let first_ns = *self.reads.front()?;
        let (mut epochs, mut epoch_ns, mut last_gap_ns) = (1, first_ns, 0);
        for at_ns in &self.reads {
            let since = at_ns.saturating_sub(epoch_ns);
            if since >= gap_ns {
                (epochs, epoch_ns, last_gap_ns) = (epochs + 1, *at_ns, since);
            }
        }
        let slots = self.slots.max(1);
        if epochs < epochs_wanted || self.reads.len() < epochs_wanted * slots as usize {
            return None;
        }
        Some(Loop {
            file,
            process,
            size: self.size,
            reads: self.reads.len() as u32,
            epochs: epochs as u32,
            slots,
            span_ns: self.reads.back()?.saturating_sub(first_ns),
            gap_ns: last_gap_ns,
        })
    }

    pub(crate) fn write(&self, out: &mut Writer) {
        out.u64(self.size);
        out.u32(self.slots);
        out.u64(self.slots_ns);
        out.list(self.reads.iter(), |out, at_ns| out.u64(*at_ns));
        let mut users: Vec<_> = self.users.iter().collect();
        users.sort_unstable_by_key(|(id, _)| **id);
        out.list(users.into_iter(), |out, (id, user)| {
            write_process(out, *id);
            out.u64(user.bytes);
            out.u8(u8::from(user.read_ns.is_some()));
            out.u64(user.read_ns.unwrap_or_default());
        });
    }

    pub(crate) fn read(from: &mut Reader<'_>) -> Option<Self> {
        let mut file = Self {
            size: from.u64()?,
            slots: from.u32()?,
            slots_ns: from.u64()?,
            reads: from.list(MAX_READS, Reader::u64)?.into(),
            ..Self::default()
        };
        let users = from.list(MAX_READERS, |from| {
            let id = read_process(from)?;
            let bytes = from.u64()?;
            let has_read = from.u8()? != 0;
            let read_ns = Some(from.u64()?).filter(|_| has_read);
            Some((id, User { bytes, read_ns }))
        })?;
        for (id, user) in users {
            file.users.get_or_insert_with(id, || user);
        }
        Some(file)
    }
}

impl FileId {
    pub(crate) fn write(self, out: &mut Writer) {
        out.u64(self.workload);
        out.u32(self.device);
        out.u64(self.inode);
    }

    pub(crate) fn read(from: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            workload: from.u64()?,
            device: from.u32()?,
            inode: from.u64()?,
        })
    }
}

impl Loop {
    pub(crate) fn write(&self, out: &mut Writer) {
        self.file.write(out);
        write_process(out, self.process);
        out.u64(self.size);
        out.u32(self.reads);
        out.u32(self.epochs);
        out.u32(self.slots);
        out.u64(self.span_ns);
        out.u64(self.gap_ns);
    }

    pub(crate) fn read(from: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            file: FileId::read(from)?,
            process: read_process(from)?,
            size: from.u64()?,
            reads: from.u32()?,
            epochs: from.u32()?,
            slots: from.u32()?,
            span_ns: from.u64()?,
            gap_ns: from.u64()?,
        })
    }
}

fn write_process(out: &mut Writer, id: ProcessId) {
    out.u32(id.pid);
    out.u64(id.start_ns);
}

fn read_process(from: &mut Reader<'_>) -> Option<ProcessId> {
    Some(ProcessId {
        pid: from.u32()?,
        start_ns: from.u64()?,
    })
}
