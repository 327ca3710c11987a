//! Who mapped or read how much of a file, and when. Pure; of a fixed size per file.

use palisade_policy_sdk::state::{Reader, Writer};
use palisade_policy_sdk::{BoundedMap, ProcessId, SECOND};
use std::collections::VecDeque;

/// Readers remembered per file; those seen least recently go.
const MAX_READERS: usize = 32;
/// Loads remembered per file.
const MAX_LOADS: usize = 128;
/// So long a process is remembered after its end: what it read last comes with the end of the window, after
/// the news of its end. Windows are 100 ms unless the operator says otherwise.
const AFTER_END_NS: u64 = 2 * SECOND;

/// A file as one workload sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FileId {
    pub workload: u64,
    pub device: u32,
    pub inode: u64,
}

/// How content comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Map,
    /// `read` and its sisters, from the page cache or past it.
    Read,
}

/// What makes a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Loads of one process closer together count as one, nanoseconds.
    pub gap_ns: u64,
    /// Older loads are forgotten, nanoseconds.
    pub horizon_ns: u64,
    /// The part of a file that counts as all of it.
    pub whole: f64,
}

/// A process that has the file in use.
#[derive(Clone, Copy, Debug)]
struct User {
    /// Mapped since its last load.
    mapped: u64,
    /// Read since its last load.
    read: u64,
    /// Opened since its last load, so that what is read makes another one. Who opens once and
    /// then reads here and there, as a database does, loads once.
    opened: bool,
    /// Its last load that counted.
    loaded_ns: Option<u64>,
    /// When it ended, if it did.
    ended_ns: Option<u64>,
}

impl Default for User {
    fn default() -> Self {
        Self {
            mapped: 0,
            read: 0,
            // A descriptor may have been handed down.
            opened: true,
            loaded_ns: None,
            ended_ns: None,
        }
    }
}

/// The loads of one file by one workload.
#[derive(Debug)]
pub(crate) struct File {
    /// Bytes; 0 while unknown.
    pub size: u64,
    users: BoundedMap<ProcessId, User>,
    /// Times of loads, oldest first.
    loads: VecDeque<u64>,
    /// The most users that had loaded it at one time, and when that was.
    slots: u32,
    slots_ns: u64,
}

impl Default for File {
    fn default() -> Self {
        Self {
            size: 0,
            users: BoundedMap::new(MAX_READERS),
            loads: VecDeque::new(),
            slots: 0,
            slots_ns: 0,
        }
    }
}

/// A loop, with its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Loop {
    pub file: FileId,
    /// Who loaded last.
    pub process: ProcessId,
    pub size: u64,
    pub loads: u32,
    pub epochs: u32,
    /// Processes that used the file at the same time.
    pub slots: u32,
    /// From the first load to the last.
    pub span_ns: u64,
    /// Between the last two epochs.
    pub gap_ns: u64,
}

impl File {
    /// A process opened it.
    pub(crate) fn opened(&mut self, process: ProcessId, size: u64) {
        self.size = size;
        self.users.get_or_insert_with(process, User::default).opened = true;
    }

    /// Takes note of bytes that a process mapped or read. Answers whether that made a load that
    /// counts.
    pub(crate) fn came_in(
        &mut self,
        process: ProcessId,
        way: Way,
        bytes: u64,
        now_ns: u64,
        rules: &Rules,
    ) -> bool {
        let recent = |at_ns: u64| now_ns.saturating_sub(at_ns) <= rules.horizon_ns;
        self.loads.retain(|at_ns| recent(*at_ns));
        let user = self.users.get_or_insert_with(process, User::default);
        let sum = match way {
            Way::Map => &mut user.mapped,
            Way::Read if !user.opened => return false,
            Way::Read => &mut user.read,
        };
        *sum = sum.saturating_add(bytes);
        if self.size == 0 || (*sum as f64) < self.size as f64 * rules.whole {
            return false;
        }
        (user.mapped, user.read, user.opened) = (0, 0, false);
        if user
            .loaded_ns
            .is_some_and(|last| now_ns.saturating_sub(last) < rules.gap_ns)
        {
            return false;
        }
        user.loaded_ns = Some(now_ns);
        if self.loads.len() == MAX_LOADS {
            self.loads.pop_front();
        }
        self.loads.push_back(now_ns);
        let live = self
            .in_use()
            .filter(|(_, user)| user.loaded_ns.is_some_and(recent))
            .count() as u32;
        if live >= self.slots || !recent(self.slots_ns) {
            (self.slots, self.slots_ns) = (live, now_ns);
        }
        true
    }

    /// A process ended: the file is no longer in its use. What it read last may still come.
    pub(crate) fn exited(&mut self, process: ProcessId, now_ns: u64) {
        if let Some(user) = self.users.get_mut(&process) {
            user.ended_ns = Some(now_ns);
        }
    }

    /// Forgets who ended and has nothing more to come.
    pub(crate) fn age(&mut self, now_ns: u64) {
        self.users.retain(|_, user| {
            user.ended_ns
                .is_none_or(|at_ns| now_ns.saturating_sub(at_ns) < AFTER_END_NS)
        });
    }

    /// The processes that have it in use.
    pub(crate) fn users(&self) -> impl Iterator<Item = ProcessId> {
        self.in_use().map(|(id, _)| *id)
    }

    fn in_use(&self) -> impl Iterator<Item = (&ProcessId, &User)> {
        self.users
            .iter()
            .filter(|(_, user)| user.ended_ns.is_none())
    }

    /// The loop that the loads make, if they make one.
    pub(crate) fn find_loop(
        &self,
        file: FileId,
        process: ProcessId,
        epochs_wanted: usize,
        gap_ns: u64,
    ) -> Option<Loop> {
        let first_ns = *self.loads.front()?;
        let (mut epochs, mut epoch_ns, mut last_gap_ns) = (1, first_ns, 0);
        for at_ns in &self.loads {
            let since = at_ns.saturating_sub(epoch_ns);
            if since >= gap_ns {
                (epochs, epoch_ns, last_gap_ns) = (epochs + 1, *at_ns, since);
            }
        }
        let slots = self.slots.max(1);
        if epochs < epochs_wanted || self.loads.len() < epochs_wanted * slots as usize {
            return None;
        }
        Some(Loop {
            file,
            process,
            size: self.size,
            loads: self.loads.len() as u32,
            epochs: epochs as u32,
            slots,
            span_ns: self.loads.back()?.saturating_sub(first_ns),
            gap_ns: last_gap_ns,
        })
    }

    pub(crate) fn write(&self, out: &mut Writer) {
        out.u64(self.size);
        out.u32(self.slots);
        out.u64(self.slots_ns);
        out.list(self.loads.iter(), |out, at_ns| out.u64(*at_ns));
        let mut users: Vec<_> = self.in_use().collect();
        users.sort_unstable_by_key(|(id, _)| **id);
        out.list(users.into_iter(), |out, (id, user)| {
            write_process(out, *id);
            out.u64(user.mapped);
            out.u8(u8::from(user.loaded_ns.is_some()));
            out.u64(user.loaded_ns.unwrap_or_default());
            out.u64(user.read);
            out.u8(u8::from(user.opened));
        });
    }

    /// Reads what [`Self::write`] of that state version wrote.
    pub(crate) fn read(from: &mut Reader<'_>, version: u32) -> Option<Self> {
        let mut file = Self {
            size: from.u64()?,
            slots: from.u32()?,
            slots_ns: from.u64()?,
            loads: from.list(MAX_LOADS, Reader::u64)?.into(),
            ..Self::default()
        };
        let users = from.list(MAX_READERS, |from| {
            let id = read_process(from)?;
            let mapped = from.u64()?;
            let has_loaded = from.u8()? != 0;
            let loaded_ns = Some(from.u64()?).filter(|_| has_loaded);
            let user = User {
                mapped,
                loaded_ns,
                ..User::default()
            };
            // The first version knew of no reads.
            if version < 2 {
                return Some((id, user));
            }
            let (read, opened) = (from.u64()?, from.u8()? != 0);
            Some((
                id,
                User {
                    read,
                    opened,
                    ..user
                },
            ))
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
        out.u32(self.loads);
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
            loads: from.u32()?,
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
