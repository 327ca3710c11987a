//! From a chunk's columns back to entries.
//!
//! Invariant: a chunk is taken whole or not at all; a row that lacks what its entry needs is an error.

use super::entry::{Entry, Identity};
use super::schema::{Row, column};
use crate::batch::Batch;
use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Int8Type, UInt16Type, UInt32Type, UInt64Type};
use arrow_array::{Array, BooleanArray, PrimitiveArray, RecordBatch, StringArray};
use palisade_abi::{Header, Record};
use palisade_core::{ProcessId, WorkloadId};
use serde::de::DeserializeOwned;

const TYPE: &str = "a column of another type";
const EMPTY: &str = "a row that lacks a value";
const JSON: &str = "a row whose JSON is not what its entry needs";

/// The entries of a chunk, in order.
pub(super) fn decode(chunk: &RecordBatch) -> Result<Vec<Entry>, &'static str> {
    let rows = Rows::of(chunk)?;
    let mut entries = Vec::new();
    let mut at = 0;
    while let Some(row) = rows.entry.get(at) {
        entries.push(match row {
            Row::Batch => {
                let batch = rows.batch(at)?;
                at += batch.records.len();
                Entry::Batch(batch)
            }
            Row::Record => return Err("a record outside of a batch"),
            Row::Process => Entry::Identity(Identity::Process {
                process: ProcessId {
                    pid: get(rows.pid, at)?,
                    start_ns: get(rows.start_ns, at)?,
                },
                parent: get(rows.parent, at)?,
                comm: text(rows.name, at)?,
                exe: text(rows.path, at)?,
                workload: get(rows.workload, at).ok().map(WorkloadId),
            }),
            Row::Workload => Entry::Identity(Identity::Workload {
                workload: WorkloadId(get(rows.workload, at)?),
                cgroup: text(rows.path, at)?,
                container: text(rows.container, at).ok(),
            }),
            Row::File => Entry::Identity(Identity::File {
                device: get(rows.device, at)?,
                inode: get(rows.inode, at)?,
                path: text(rows.path, at)?,
            }),
            Row::Tick => Entry::Tick {
                time_ns: get(rows.time_ns, at)?,
            },
            Row::Lost => Entry::Lost {
                time_ns: get(rows.time_ns, at)?,
                policy: text(rows.name, at).ok(),
                seq: get(rows.seq, at)?,
                records: get(rows.count, at)?,
            },
            Row::Order => Entry::Order {
                time_ns: get(rows.time_ns, at)?,
                policy: text(rows.name, at)?,
                seq: get(rows.seq, at)?,
                requests: get(rows.count, at)?,
                sha256: rows.json.map(|_| rows.json(at)).transpose()?,
            },
            Row::Dropped => Entry::Dropped {
                policy: text(rows.name, at)?,
                seq: get(rows.seq, at)?,
                records: get(rows.count, at)?,
            },
            Row::Gap => Entry::Gap {
                notes: get(rows.count, at)?,
            },
            Row::Full => Entry::Full {
                max_bytes: get(rows.count, at)?,
            },
            Row::Core => Entry::Core(rows.json(at)?),
            Row::Input => Entry::Input {
                time_ns: get(rows.time_ns, at)?,
                input: rows.json(at)?,
            },
            Row::Changed => Entry::Changed {
                policy: text(rows.name, at)?,
                what: rows.json(at)?,
            },
            Row::Facts => {
                let (target, facts) = rows.json(at)?;
                Entry::Facts { target, facts }
            }
            Row::Answer => {
                let (question, answer) = rows.json(at)?;
                Entry::Answer {
                    policy: text(rows.name, at)?,
                    number: get(rows.seq, at)?,
                    question,
                    answer,
                }
            }
        });
        at += 1;
    }
    Ok(entries)
}

fn get<T: ArrowPrimitiveType>(
    column: &PrimitiveArray<T>,
    at: usize,
) -> Result<T::Native, &'static str> {
    let values = column.values();
    values
        .get(at)
        .filter(|_| column.is_valid(at))
        .copied()
        .ok_or(EMPTY)
}

fn text(column: &StringArray, at: usize) -> Result<String, &'static str> {
    if at < column.len() && column.is_valid(at) {
        Ok(column.value(at).to_owned())
    } else {
        Err(EMPTY)
    }
}

/// A chunk's columns, by name.
struct Rows<'a> {
    entry: Vec<Row>,
    time_ns: &'a PrimitiveArray<UInt64Type>,
    seq: &'a PrimitiveArray<UInt64Type>,
    workload: &'a PrimitiveArray<UInt64Type>,
    start_ns: &'a PrimitiveArray<UInt64Type>,
    pid: &'a PrimitiveArray<UInt32Type>,
    tid: &'a PrimitiveArray<UInt32Type>,
    kind: &'a PrimitiveArray<UInt16Type>,
    flags: &'a PrimitiveArray<UInt16Type>,
    cpu: &'a PrimitiveArray<UInt32Type>,
    body: [&'a PrimitiveArray<UInt64Type>; 3],
    window_end: &'a BooleanArray,
    count: &'a PrimitiveArray<UInt64Type>,
    parent: &'a PrimitiveArray<UInt32Type>,
    name: &'a StringArray,
    path: &'a StringArray,
    container: &'a StringArray,
    device: &'a PrimitiveArray<UInt32Type>,
    inode: &'a PrimitiveArray<UInt64Type>,
    /// Not in version 1.
    json: Option<&'a StringArray>,
}

impl<'a> Rows<'a> {
    fn of(chunk: &'a RecordBatch) -> Result<Self, &'static str> {
        let any = |index: usize| -> Result<&'a dyn Array, &'static str> {
            chunk.columns().get(index).map(AsRef::as_ref).ok_or(TYPE)
        };
        let u64s = |index| any(index)?.as_primitive_opt::<UInt64Type>().ok_or(TYPE);
        let u32s = |index| any(index)?.as_primitive_opt::<UInt32Type>().ok_or(TYPE);
        let u16s = |index| any(index)?.as_primitive_opt::<UInt16Type>().ok_or(TYPE);
        let texts = |index| any(index)?.as_string_opt::<i32>().ok_or(TYPE);
        Ok(Self {
            entry: kinds_of_rows(any(column::ENTRY)?)?,
            time_ns: u64s(column::TIME_NS)?,
            seq: u64s(column::SEQ)?,
            workload: u64s(column::WORKLOAD)?,
            start_ns: u64s(column::START_NS)?,
            pid: u32s(column::PID)?,
            tid: u32s(column::TID)?,
            kind: u16s(column::KIND)?,
            flags: u16s(column::FLAGS)?,
            cpu: u32s(column::CPU)?,
            body: [
                u64s(column::BODY[0])?,
                u64s(column::BODY[1])?,
                u64s(column::BODY[2])?,
            ],
            window_end: any(column::WINDOW_END)?.as_boolean_opt().ok_or(TYPE)?,
            count: u64s(column::COUNT)?,
            parent: u32s(column::PARENT)?,
            name: texts(column::NAME)?,
            path: texts(column::PATH)?,
            container: texts(column::CONTAINER)?,
            device: u32s(column::DEVICE)?,
            inode: u64s(column::INODE)?,
            json: match chunk.columns().get(column::JSON) {
                Some(_) => Some(texts(column::JSON)?),
                None => None,
            },
        })
    }

    fn json<T: DeserializeOwned>(&self, at: usize) -> Result<T, &'static str> {
        let column = self.json.filter(|column| column.is_valid(at));
        serde_json::from_str(column.ok_or(EMPTY)?.value(at)).map_err(|_| JSON)
    }

    /// The batch whose boundary is row `at`; its records are the rows after it.
    fn batch(&self, at: usize) -> Result<Batch, &'static str> {
        let seq = get(self.seq, at)?;
        let count = usize::try_from(get(self.count, at)?).unwrap_or(usize::MAX);
        let start = at + 1;
        let end = start
            .checked_add(count)
            .filter(|end| *end <= self.entry.len());
        let range = start..end.ok_or("a batch that is cut short")?;
        let own = |row: usize| {
            self.entry[row] == Row::Record && get(self.seq, row).is_ok_and(|of| of == seq)
        };
        if !range.clone().all(own) {
            return Err("a batch that is cut short");
        }
        let record_columns: [&dyn Array; 11] = [
            self.time_ns,
            self.workload,
            self.start_ns,
            self.pid,
            self.tid,
            self.kind,
            self.flags,
            self.cpu,
            self.body[0],
            self.body[1],
            self.body[2],
        ];
        let empty = |column: &&dyn Array| {
            let nulls = column.nulls();
            nulls.is_some_and(|nulls| nulls.slice(range.start, count).null_count() > 0)
        };
        if record_columns.iter().any(empty) {
            return Err(EMPTY);
        }
        if !self.window_end.is_valid(at) {
            return Err(EMPTY);
        }
        Ok(Batch {
            seq,
            now_ns: get(self.time_ns, at)?,
            window_end: self.window_end.value(at),
            records: range.map(|row| self.record(row)).collect(),
        })
    }

    fn record(&self, row: usize) -> Record {
        Record {
            header: Header {
                time_ns: self.time_ns.value(row),
                workload: self.workload.value(row),
                start_ns: self.start_ns.value(row),
                pid: self.pid.value(row),
                tid: self.tid.value(row),
                kind: self.kind.value(row),
                flags: self.flags.value(row),
                cpu: self.cpu.value(row),
            },
            body: self.body.map(|body| body.value(row)),
        }
    }
}

/// What each row is.
fn kinds_of_rows(column: &dyn Array) -> Result<Vec<Row>, &'static str> {
    let column = column.as_dictionary_opt::<Int8Type>().ok_or(TYPE)?;
    let names = column.values().as_string_opt::<i32>().ok_or(TYPE)?;
    let known: Vec<Option<Row>> = names
        .iter()
        .map(|name| name.and_then(Row::from_name))
        .collect();
    let row = |key: Option<i8>| known.get(usize::try_from(key?).ok()?).copied().flatten();
    column
        .keys()
        .iter()
        .map(|key| row(key).ok_or("a row of an unknown kind"))
        .collect()
}
