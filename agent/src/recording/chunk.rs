//! A chunk's columns, while they grow.
//!
//! Invariant: after each entry all columns have the same length.

use super::entry::{Entry, Identity};
use super::schema::{ENTRIES, Row};
use crate::batch::Batch;
use arrow_array::builder::{
    ArrayBuilder, BooleanBuilder, Int8Builder, Int16Builder, PrimitiveBuilder, StringBuilder,
};
use arrow_array::types::{ArrowPrimitiveType, UInt16Type, UInt32Type, UInt64Type};
use arrow_array::{ArrayRef, DictionaryArray, RecordBatch, StringArray};
use arrow_schema::{ArrowError, SchemaRef};
use palisade_abi::{Kind, Record};
use std::sync::Arc;

/// What the column `json` holds of an entry.
pub(super) fn json(entry: &Entry) -> Option<String> {
    let text = match entry {
        Entry::Core(start) => serde_json::to_string(start),
        Entry::Input { input, .. } => serde_json::to_string(input),
        Entry::Facts { target, facts } => serde_json::to_string(&(target, facts)),
        Entry::Answer {
            question, answer, ..
        } => serde_json::to_string(&(question, answer)),
        Entry::Changed { what, .. } => serde_json::to_string(what),
        Entry::Order {
            sha256: Some(digest),
            ..
        } => serde_json::to_string(digest),
        _ => return None,
    };
    // No map in them has keys other than text: they always are JSON.
    text.ok()
}

/// The columns of a chunk, while they grow.
#[derive(Debug)]
pub(super) struct Chunk {
    schema: SchemaRef,
    entries: Arc<StringArray>,
    kinds: Kinds,
    text: usize,
    entry: Int8Builder,
    time_ns: PrimitiveBuilder<UInt64Type>,
    seq: PrimitiveBuilder<UInt64Type>,
    workload: PrimitiveBuilder<UInt64Type>,
    start_ns: PrimitiveBuilder<UInt64Type>,
    pid: PrimitiveBuilder<UInt32Type>,
    tid: PrimitiveBuilder<UInt32Type>,
    kind: PrimitiveBuilder<UInt16Type>,
    kind_name: Int16Builder,
    flags: PrimitiveBuilder<UInt16Type>,
    cpu: PrimitiveBuilder<UInt32Type>,
    body: [PrimitiveBuilder<UInt64Type>; 3],
    window_end: BooleanBuilder,
    count: PrimitiveBuilder<UInt64Type>,
    parent: PrimitiveBuilder<UInt32Type>,
    name: StringBuilder,
    path: StringBuilder,
    container: StringBuilder,
    device: PrimitiveBuilder<UInt32Type>,
    inode: PrimitiveBuilder<UInt64Type>,
    json: StringBuilder,
}

impl Chunk {
    /// An empty one.
    pub(super) fn new(schema: SchemaRef) -> Self {
        Self {
            schema,
            entries: Arc::new(StringArray::from(ENTRIES.to_vec())),
            kinds: Kinds::new(),
            text: 0,
            entry: Int8Builder::new(),
            time_ns: PrimitiveBuilder::new(),
            seq: PrimitiveBuilder::new(),
            workload: PrimitiveBuilder::new(),
            start_ns: PrimitiveBuilder::new(),
            pid: PrimitiveBuilder::new(),
            tid: PrimitiveBuilder::new(),
            kind: PrimitiveBuilder::new(),
            kind_name: Int16Builder::new(),
            flags: PrimitiveBuilder::new(),
            cpu: PrimitiveBuilder::new(),
            body: Default::default(),
            window_end: BooleanBuilder::new(),
            count: PrimitiveBuilder::new(),
            parent: PrimitiveBuilder::new(),
            name: StringBuilder::new(),
            path: StringBuilder::new(),
            container: StringBuilder::new(),
            device: PrimitiveBuilder::new(),
            inode: PrimitiveBuilder::new(),
            json: StringBuilder::new(),
        }
    }

    /// Its columns' names and types, and where they come from.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Rows in it.
    pub(super) fn rows(&self) -> usize {
        self.entry.len()
    }

    /// Bytes of text in it.
    pub(super) fn text(&self) -> usize {
        self.text
    }

    /// Adds an entry's rows. `json` is [`json`] of it.
    pub(super) fn push(&mut self, entry: &Entry, json: Option<&str>) {
        match entry {
            Entry::Batch(batch) => self.batch(batch),
            Entry::Identity(Identity::Process {
                process,
                parent,
                comm,
                exe,
                workload,
            }) => {
                self.entry.append_value(Row::Process as i8);
                self.pid.append_value(process.pid);
                self.start_ns.append_value(process.start_ns);
                self.workload
                    .append_option(workload.map(|workload| workload.0));
                self.parent.append_value(*parent);
                self.say(comm);
                self.lead(exe);
            }
            Entry::Identity(Identity::Workload {
                workload,
                cgroup,
                container,
            }) => {
                self.entry.append_value(Row::Workload as i8);
                self.workload.append_value(workload.0);
                self.lead(cgroup);
                self.text += container.as_ref().map_or(0, String::len);
                self.container.append_option(container.as_deref());
            }
            Entry::Identity(Identity::File {
                device,
                inode,
                path,
            }) => {
                self.entry.append_value(Row::File as i8);
                self.device.append_value(*device);
                self.inode.append_value(*inode);
                self.lead(path);
            }
            Entry::Tick { time_ns } => {
                self.entry.append_value(Row::Tick as i8);
                self.time_ns.append_value(*time_ns);
            }
            Entry::Lost {
                time_ns,
                policy,
                seq,
                records,
            } => {
                self.entry.append_value(Row::Lost as i8);
                self.time_ns.append_value(*time_ns);
                self.seq.append_value(*seq);
                self.count.append_value(*records);
                if let Some(policy) = policy {
                    self.say(policy);
                }
            }
            Entry::Order {
                time_ns,
                policy,
                seq,
                requests,
                ..
            } => {
                self.entry.append_value(Row::Order as i8);
                self.time_ns.append_value(*time_ns);
                self.seq.append_value(*seq);
                self.count.append_value(*requests);
                self.say(policy);
            }
            Entry::Dropped {
                policy,
                seq,
                records,
            } => {
                self.entry.append_value(Row::Dropped as i8);
                self.seq.append_value(*seq);
                self.count.append_value(*records);
                self.say(policy);
            }
            Entry::Gap { notes } => {
                self.entry.append_value(Row::Gap as i8);
                self.count.append_value(*notes);
            }
            Entry::Full { max_bytes } => {
                self.entry.append_value(Row::Full as i8);
                self.count.append_value(*max_bytes);
            }
            Entry::Core(_) => self.entry.append_value(Row::Core as i8),
            Entry::Input { time_ns, .. } => {
                self.entry.append_value(Row::Input as i8);
                self.time_ns.append_value(*time_ns);
            }
            Entry::Changed { policy, .. } => {
                self.entry.append_value(Row::Changed as i8);
                self.say(policy);
            }
            Entry::Facts { .. } => self.entry.append_value(Row::Facts as i8),
            Entry::Answer { policy, number, .. } => {
                self.entry.append_value(Row::Answer as i8);
                self.seq.append_value(*number);
                self.say(policy);
            }
        }
        if let Some(json) = json {
            self.text += json.len();
            self.json.append_value(json);
        }
        self.level();
    }

    fn say(&mut self, name: &str) {
        self.text += name.len();
        self.name.append_value(name);
    }

    fn lead(&mut self, path: &str) {
        self.text += path.len();
        self.path.append_value(path);
    }

    fn batch(&mut self, batch: &Batch) {
        let records = &batch.records;
        self.entry.append_value(Row::Batch as i8);
        self.time_ns.append_value(batch.now_ns);
        self.window_end.append_value(batch.window_end);
        self.count.append_value(records.len() as u64);
        self.seq.append_value_n(batch.seq, records.len() + 1);
        // The boundary's own row has none of these.
        self.workload.append_null();
        self.start_ns.append_null();
        self.pid.append_null();
        self.tid.append_null();
        self.kind.append_null();
        self.kind_name.append_null();
        self.flags.append_null();
        self.cpu.append_null();
        self.body.iter_mut().for_each(PrimitiveBuilder::append_null);
        self.entry.append_value_n(Row::Record as i8, records.len());
        add(&mut self.time_ns, records, |r| r.header.time_ns);
        add(&mut self.workload, records, |r| r.header.workload);
        add(&mut self.start_ns, records, |r| r.header.start_ns);
        add(&mut self.pid, records, |r| r.header.pid);
        add(&mut self.tid, records, |r| r.header.tid);
        add(&mut self.kind, records, |r| r.header.kind);
        for record in records.iter() {
            let index = self.kinds.index(record.header.kind);
            self.kind_name.append_option(index);
        }
        add(&mut self.flags, records, |r| r.header.flags);
        add(&mut self.cpu, records, |r| r.header.cpu);
        for (i, body) in self.body.iter_mut().enumerate() {
            add(body, records, |r| r.body[i]);
        }
    }

    /// Fills the columns that the last entry said nothing about.
    fn level(&mut self) {
        let rows = self.rows();
        macro_rules! fill {
            ($($column:expr),*) => {$( $column.append_nulls(rows - $column.len()); )*};
        }
        fill!(
            self.time_ns,
            self.seq,
            self.workload,
            self.start_ns,
            self.pid,
            self.tid
        );
        fill!(self.kind, self.kind_name, self.flags, self.cpu);
        fill!(self.body[0], self.body[1], self.body[2]);
        fill!(
            self.window_end,
            self.count,
            self.parent,
            self.device,
            self.inode
        );
        fill!(self.name, self.path, self.container, self.json);
    }

    /// The chunk as a record batch; empty afterwards.
    pub(super) fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        self.text = 0;
        let [body0, body1, body2] = &mut self.body;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(DictionaryArray::try_new(
                self.entry.finish(),
                Arc::clone(&self.entries) as ArrayRef,
            )?),
            Arc::new(self.time_ns.finish()),
            Arc::new(self.seq.finish()),
            Arc::new(self.workload.finish()),
            Arc::new(self.start_ns.finish()),
            Arc::new(self.pid.finish()),
            Arc::new(self.tid.finish()),
            Arc::new(self.kind.finish()),
            Arc::new(DictionaryArray::try_new(
                self.kind_name.finish(),
                Arc::clone(&self.kinds.names) as ArrayRef,
            )?),
            Arc::new(self.flags.finish()),
            Arc::new(self.cpu.finish()),
            Arc::new(body0.finish()),
            Arc::new(body1.finish()),
            Arc::new(body2.finish()),
            Arc::new(self.window_end.finish()),
            Arc::new(self.count.finish()),
            Arc::new(self.parent.finish()),
            Arc::new(self.name.finish()),
            Arc::new(self.path.finish()),
            Arc::new(self.container.finish()),
            Arc::new(self.device.finish()),
            Arc::new(self.inode.finish()),
            Arc::new(self.json.finish()),
        ];
        RecordBatch::try_new(Arc::clone(&self.schema), columns)
    }
}

fn add<T: ArrowPrimitiveType>(
    column: &mut PrimitiveBuilder<T>,
    records: &[Record],
    value: impl Fn(&Record) -> T::Native,
) {
    for record in records {
        column.append_value(value(record));
    }
}

/// The names of the kinds that this agent knows, whichever they are.
#[derive(Debug)]
struct Kinds {
    names: Arc<StringArray>,
    /// Index in `names`, by the kind's number.
    index: Vec<Option<i16>>,
}

impl Kinds {
    fn new() -> Self {
        let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        let numbers = Kind::ALL.iter().map(|kind| *kind as usize);
        let mut index = vec![None; numbers.clone().max().unwrap_or(0) + 1];
        for (at, number) in numbers.enumerate() {
            index[number] = i16::try_from(at).ok();
        }
        Self {
            names: Arc::new(StringArray::from(names)),
            index,
        }
    }

    fn index(&self, kind: u16) -> Option<i16> {
        self.index.get(kind as usize).copied().flatten()
    }
}
