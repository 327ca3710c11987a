//! Writing a recording.
//!
//! Invariants: a chunk (one Arrow record batch) reaches the file in one write, so that a crash tears
//! the last one at most; a batch of records is never split between two chunks; a chunk is written
//! when it spans [`CHUNK_NS`] of the batches' own time or has [`CHUNK_ROWS`] rows, whichever is first; with a largest size
//! the file never exceeds it, and ends in order before the first chunk that would.

use super::chunk::{self, Chunk};
use super::entry::{Entry, Identity, Origin};
use super::limit::Limit;
use super::schema;
use super::tally::Tally;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow_ipc::{CompressionType, MetadataVersion};
use arrow_schema::{ArrowError, Schema};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Rows after which a chunk is written.
const CHUNK_ROWS: usize = 16_384;
/// Time between batches after which a chunk is written, nanoseconds.
const CHUNK_NS: u64 = 1_000_000_000;
/// Bytes of names and paths after which a chunk is written.
const CHUNK_TEXT: usize = 1 << 20;
/// Buffers begin at multiples of this many bytes: the least that Arrow allows, for there are many small ones.
const ALIGNMENT: usize = 8;
/// Records in one batch at most; a larger batch is an error of the caller's.
pub const MAX_BATCH_RECORDS: usize = 65_535;
/// Bytes of one name or path at most.
pub const MAX_TEXT: usize = 64 << 10;
/// Bytes of one entry's JSON at most: the facts of a target with as many processes as it may have, at 500 each.
pub const MAX_JSON: usize = 2 << 20;

/// Why an entry was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file refused.
    #[error("cannot write the recording: {0}")]
    Io(#[from] std::io::Error),
    /// The entries do not make a chunk.
    #[error("cannot encode a chunk of the recording: {0}")]
    Arrow(#[from] ArrowError),
    /// A batch has too many records.
    #[error(
        "a batch of {records} records is too large for a recording (at most {MAX_BATCH_RECORDS})"
    )]
    TooManyRecords {
        /// How many.
        records: usize,
    },
    /// A name or path is too long.
    #[error(
        "a text of {bytes} bytes is too long for a recording (at most {MAX_TEXT}, as JSON {MAX_JSON})"
    )]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The largest size is not even enough for an empty recording.
    #[error("a recording of at most {max_bytes} bytes has no room for its beginning and its end")]
    TooSmall {
        /// That size.
        max_bytes: u64,
    },
}

impl WriteError {
    /// Whether only that entry was refused, and the recording goes on without it.
    pub fn is_of_the_entry(&self) -> bool {
        matches!(self, Self::TooManyRecords { .. } | Self::TooLong { .. })
    }
}

/// Writes a recording, entry by entry.
pub struct Writer<W: Write = File> {
    out: W,
    /// Encodes into memory, which is emptied into `out`.
    stream: StreamWriter<Vec<u8>>,
    chunk: Chunk,
    /// Time of the first batch in the chunk.
    chunk_began_ns: Option<u64>,
    bytes: u64,
    limit: Option<Limit>,
    full: bool,
    /// What is in the file.
    written: Tally,
    /// What is in the chunk.
    waiting: Tally,
}

impl<W: Write> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("rows", &self.chunk.rows())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// Begins a recording in a new file, mode 0600. A file of this name is kept with `.old` behind
    /// its name: after a crash and a restart it is the one that shows what happened.
    pub fn create(path: &Path, origin: &Origin) -> Result<Self, WriteError> {
        if std::fs::symlink_metadata(path).is_ok_and(|file| file.is_file()) {
            let mut old = path.as_os_str().to_owned();
            old.push(".old");
            std::fs::rename(path, old)?;
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        sync_folder(path)?;
        Self::new(file, origin)
    }

    /// Brings what was written to the disk itself.
    pub(super) fn sync(&self) -> std::io::Result<()> {
        or_no_disk(self.out.sync_data())
    }
}

/// Brings the names in the file's folder to the disk: a file without its name is as good as none.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    or_no_disk(File::open(folder.unwrap_or(Path::new(".")))?.sync_all())
}

/// A pipe, a device, or a folder of some file systems has no disk.
fn or_no_disk(synced: std::io::Result<()>) -> std::io::Result<()> {
    match synced {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

impl<W: Write> Writer<W> {
    /// Begins a recording.
    pub fn new(out: W, origin: &Origin) -> Result<Self, WriteError> {
        let schema = schema::schema(origin);
        let mut writer = Self {
            out,
            stream: encoder(&schema)?,
            chunk: Chunk::new(schema),
            chunk_began_ns: None,
            bytes: 0,
            limit: None,
            full: false,
            written: Tally::default(),
            waiting: Tally::default(),
        };
        writer.empty()?;
        Ok(writer)
    }

    /// Lets the file become so large and no larger; without it there is no bound.
    pub fn at_most(mut self, max_bytes: u64) -> Result<Self, WriteError> {
        let limit = Limit::new(self.chunk.schema(), max_bytes)?;
        if !limit.allows(self.bytes) {
            return Err(WriteError::TooSmall { max_bytes });
        }
        self.limit = Some(limit);
        Ok(self)
    }

    /// Adds an entry. An identity comes before the batch that needs it. A recording that is full ignores it.
    ///
    /// # Errors
    /// [`WriteError::TooManyRecords`] and [`WriteError::TooLong`] leave the recording as it was.
    pub fn write(&mut self, entry: &Entry) -> Result<(), WriteError> {
        let json = chunk::json(entry);
        check(entry, json.as_deref())?;
        if self.full {
            return Ok(());
        }
        self.chunk.push(entry, json.as_deref());
        let mut full = self.chunk.rows() >= CHUNK_ROWS || self.chunk.text() >= CHUNK_TEXT;
        if let Entry::Batch(batch) = entry {
            let began = *self.chunk_began_ns.get_or_insert(batch.now_ns);
            full |= batch.now_ns.saturating_sub(began) >= CHUNK_NS;
            self.waiting.count(batch);
        }
        if full { self.flush() } else { Ok(()) }
    }

    /// Writes what is waiting as a chunk or, where the file would become too large, the end instead of it.
    pub fn flush(&mut self) -> Result<(), WriteError> {
        self.chunk_began_ns = None;
        if self.full || self.chunk.rows() == 0 {
            return Ok(());
        }
        self.stream.write(&self.chunk.finish()?)?;
        let waiting = std::mem::take(&mut self.waiting);
        let encoded = self.stream.get_mut();
        let bytes = self.bytes + encoded.len() as u64;
        if let Some(limit) = self.limit.as_ref().filter(|limit| !limit.allows(bytes)) {
            self.full = true;
            encoded.clear();
            encoded.extend_from_slice(limit.end_after(self.written.chunks));
            return self.empty();
        }
        self.empty()?;
        self.written.add_chunk(waiting);
        Ok(())
    }

    /// Ends the recording in order and hands the file back.
    pub fn finish(mut self) -> Result<W, WriteError> {
        self.end()?;
        Ok(self.out)
    }

    /// Ends the recording in order. It takes nothing more.
    pub(super) fn end(&mut self) -> Result<(), WriteError> {
        self.flush()?;
        if !self.full {
            self.stream.finish()?;
            self.empty()?;
        }
        Ok(())
    }

    /// Whether it has reached its largest size: it has ended in order, without the chunk that was too much.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// What is in the file.
    pub(super) fn written(&self) -> &Tally {
        &self.written
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn empty(&mut self) -> Result<(), WriteError> {
        let encoded = self.stream.get_mut();
        self.out.write_all(encoded)?;
        self.out.flush()?;
        self.bytes += encoded.len() as u64;
        encoded.clear();
        Ok(())
    }
}

/// Encodes chunks into memory, and has begun with the schema.
pub(super) fn encoder(schema: &Schema) -> Result<StreamWriter<Vec<u8>>, ArrowError> {
    let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)?
        .try_with_compression(Some(CompressionType::LZ4_FRAME))?;
    StreamWriter::try_new_with_options(Vec::new(), schema, options)
}

/// Whether a reader would take it back.
fn check(entry: &Entry, json: Option<&str>) -> Result<(), WriteError> {
    let bytes = json.map_or(0, str::len);
    if bytes > MAX_JSON {
        return Err(WriteError::TooLong { bytes });
    }
    let texts: [&str; 2] = match entry {
        Entry::Batch(batch) => {
            let records = batch.records.len();
            if records > MAX_BATCH_RECORDS {
                return Err(WriteError::TooManyRecords { records });
            }
            return Ok(());
        }
        Entry::Identity(Identity::Process { comm, exe, .. }) => [comm, exe],
        Entry::Identity(Identity::Workload {
            cgroup, container, ..
        }) => [cgroup, container.as_deref().unwrap_or_default()],
        Entry::Identity(Identity::File { path, .. }) => [path, ""],
        Entry::Lost { policy, .. } => [policy.as_deref().unwrap_or_default(), ""],
        Entry::Order { policy, .. }
        | Entry::Dropped { policy, .. }
        | Entry::Changed { policy, .. }
        | Entry::Answer { policy, .. } => [policy, ""],
        Entry::Tick { .. }
        | Entry::Gap { .. }
        | Entry::Full { .. }
        | Entry::Core(_)
        | Entry::Input { .. }
        | Entry::Facts { .. } => return Ok(()),
    };
    match texts.iter().map(|text| text.len()).max() {
        Some(bytes) if bytes > MAX_TEXT => Err(WriteError::TooLong { bytes }),
        _ => Ok(()),
    }
}
