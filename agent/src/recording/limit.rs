//! How large a recording may become, and the end of one that would become larger.
//!
//! Invariant: that end is encoded beforehand and room for it is kept from the beginning, so that a file that is full is as
//! whole as any other.

use super::chunk::Chunk;
use super::entry::{Entry, Origin};
use super::writer::{WriteError, Writer, encoder};
use arrow_schema::SchemaRef;
use std::path::PathBuf;

/// Bytes of a recording at most, where nothing else is asked for. A recording that is forgotten must not fill the disk that
/// it shares with the service that it watches.
pub const DEFAULT_MAX_BYTES: u64 = 4 << 30;
/// The least that may be asked for: beginning and end take about 8 KiB, and a chunk should have room beside them.
pub const LEAST_MAX_BYTES: u64 = 64 << 10;

/// Where a recording goes, and how large it may become.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The file.
    pub path: PathBuf,
    /// Bytes of it at most.
    pub max_bytes: u64,
}

impl Destination {
    /// Begins a recording there; see [`Writer::create`].
    pub fn create(&self, origin: &Origin) -> Result<Writer, WriteError> {
        Writer::create(&self.path, origin)?.at_most(self.max_bytes)
    }
}

/// The largest size of a file.
#[derive(Debug)]
pub(super) struct Limit {
    max_bytes: u64,
    /// The dictionaries, a chunk that says why the recording ends, and the mark that it does.
    end: Vec<u8>,
    /// Bytes of the dictionaries; a file that has a chunk has them already.
    dictionaries: usize,
}

impl Limit {
    /// For a recording with those columns.
    pub(super) fn new(schema: &SchemaRef, max_bytes: u64) -> Result<Self, WriteError> {
        let mut last = Chunk::new(SchemaRef::clone(schema));
        last.push(&Entry::Full { max_bytes }, None);
        let last = last.finish()?;
        let mut stream = encoder(schema)?;
        let schema_bytes = stream.get_ref().len();
        stream.write(&last)?;
        let once = stream.get_ref().len();
        // Again, because dictionaries are written before the first chunk only: this one is without.
        stream.write(&last)?;
        let chunk = stream.get_ref().len() - once;
        stream.finish()?;
        let mut end = stream.into_inner()?;
        end.drain(once..once + chunk);
        end.drain(..schema_bytes);
        Ok(Self {
            max_bytes,
            end,
            dictionaries: once - schema_bytes - chunk,
        })
    }

    /// Whether a file of so many bytes has room for the end.
    pub(super) fn allows(&self, bytes: u64) -> bool {
        bytes.saturating_add(self.end.len() as u64) <= self.max_bytes
    }

    /// The end of a file with so many chunks.
    pub(super) fn end_after(&self, chunks: u64) -> &[u8] {
        let from = if chunks == 0 { 0 } else { self.dictionaries };
        &self.end[from..]
    }
}
