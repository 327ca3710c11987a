//! The columns of a recording, their order and types, and what the schema's metadata says.
//!
//! Invariant: a change of a column's name, type, order or meaning is a change of [`FORMAT_VERSION`].

use super::entry::Origin;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use std::collections::HashMap;
use std::sync::Arc;

/// Version of the format. Version 1 lacks the column `json` and the rows that need it; version 2 lacks the row `full`.
pub const FORMAT_VERSION: u32 = 3;

/// The metadata key that makes an Arrow stream a recording.
pub(super) const VERSION_KEY: &str = "palisade.recording";

/// What a row is, by its index in the dictionary of the column `entry`.
pub(super) const ENTRIES: [&str; 16] = [
    "batch", "record", "process", "workload", "file", "tick", "lost", "order", "dropped", "gap",
    "core", "input", "facts", "answer", "changed", "full",
];

/// The kinds of row; the numbers are indices into [`ENTRIES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    Batch = 0,
    Record = 1,
    Process = 2,
    Workload = 3,
    File = 4,
    Tick = 5,
    Lost = 6,
    Order = 7,
    Dropped = 8,
    Gap = 9,
    Core = 10,
    Input = 11,
    Facts = 12,
    Answer = 13,
    Changed = 14,
    Full = 15,
}

impl Row {
    pub(super) const ALL: [Row; 16] = [
        Row::Batch,
        Row::Record,
        Row::Process,
        Row::Workload,
        Row::File,
        Row::Tick,
        Row::Lost,
        Row::Order,
        Row::Dropped,
        Row::Gap,
        Row::Core,
        Row::Input,
        Row::Facts,
        Row::Answer,
        Row::Changed,
        Row::Full,
    ];

    pub(super) fn from_name(name: &str) -> Option<Row> {
        let index = ENTRIES.iter().position(|entry| *entry == name)?;
        Self::ALL.get(index).copied()
    }
}

/// Where each column is.
pub(super) mod column {
    pub(crate) const ENTRY: usize = 0;
    pub(crate) const TIME_NS: usize = 1;
    pub(crate) const SEQ: usize = 2;
    pub(crate) const WORKLOAD: usize = 3;
    pub(crate) const START_NS: usize = 4;
    pub(crate) const PID: usize = 5;
    pub(crate) const TID: usize = 6;
    pub(crate) const KIND: usize = 7;
    pub(crate) const FLAGS: usize = 9;
    pub(crate) const CPU: usize = 10;
    pub(crate) const BODY: [usize; 3] = [11, 12, 13];
    pub(crate) const WINDOW_END: usize = 14;
    pub(crate) const COUNT: usize = 15;
    pub(crate) const PARENT: usize = 16;
    pub(crate) const NAME: usize = 17;
    pub(crate) const PATH: usize = 18;
    pub(crate) const CONTAINER: usize = 19;
    pub(crate) const DEVICE: usize = 20;
    pub(crate) const INODE: usize = 21;
    pub(crate) const JSON: usize = 22;
}

/// The columns of every recording of that version; `None`: there is no such version.
pub(super) fn fields_of(version: &str) -> Option<Vec<Field>> {
    let mut fields = fields();
    match version {
        "1" => fields.truncate(column::JSON),
        "2" | "3" => {}
        _ => return None,
    }
    Some(fields)
}

/// The columns of every recording of this version.
fn fields() -> Vec<Field> {
    let text = || Box::new(DataType::Utf8);
    let entry = DataType::Dictionary(Box::new(DataType::Int8), text());
    let kind_name = DataType::Dictionary(Box::new(DataType::Int16), text());
    let optional = |name: &str, kind: DataType| Field::new(name, kind, true);
    vec![
        Field::new("entry", entry, false),
        optional("time_ns", DataType::UInt64),
        optional("seq", DataType::UInt64),
        optional("workload", DataType::UInt64),
        optional("start_ns", DataType::UInt64),
        optional("pid", DataType::UInt32),
        optional("tid", DataType::UInt32),
        optional("kind", DataType::UInt16),
        optional("kind_name", kind_name),
        optional("flags", DataType::UInt16),
        optional("cpu", DataType::UInt32),
        optional("body0", DataType::UInt64),
        optional("body1", DataType::UInt64),
        optional("body2", DataType::UInt64),
        optional("window_end", DataType::Boolean),
        optional("count", DataType::UInt64),
        optional("parent", DataType::UInt32),
        optional("name", DataType::Utf8),
        optional("path", DataType::Utf8),
        optional("container", DataType::Utf8),
        optional("device", DataType::UInt32),
        optional("inode", DataType::UInt64),
        optional("json", DataType::Utf8),
    ]
}

/// The schema of a recording from there.
pub(super) fn schema(origin: &Origin) -> SchemaRef {
    let metadata = [
        (VERSION_KEY, FORMAT_VERSION.to_string()),
        ("palisade.agent", origin.agent.clone()),
        ("palisade.abi", origin.abi.to_string()),
        ("palisade.boot_id", origin.boot_id.clone()),
        ("palisade.kernel", origin.kernel.clone()),
        ("palisade.config_sha256", origin.config_sha256.clone()),
        ("palisade.window_ns", origin.window_ns.to_string()),
        ("palisade.started_ns", origin.started_ns.to_string()),
        (
            "palisade.started_unix_ns",
            origin.started_unix_ns.to_string(),
        ),
        ("palisade.policies", origin.policies.join(",")),
    ];
    let metadata: HashMap<String, String> = metadata
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    Arc::new(Schema::new(fields()).with_metadata(metadata))
}

/// What the metadata says about where it comes from; what is missing is empty or 0.
pub(super) fn origin(schema: &Schema) -> Origin {
    let text = |key: &str| schema.metadata().get(key).cloned().unwrap_or_default();
    let number = |key: &str| text(key).parse().unwrap_or(0);
    Origin {
        agent: text("palisade.agent"),
        abi: text("palisade.abi").parse().unwrap_or(0),
        boot_id: text("palisade.boot_id"),
        kernel: text("palisade.kernel"),
        config_sha256: text("palisade.config_sha256"),
        window_ns: number("palisade.window_ns"),
        started_ns: number("palisade.started_ns"),
        started_unix_ns: number("palisade.started_unix_ns"),
        policies: text("palisade.policies")
            .split(',')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect(),
    }
}
