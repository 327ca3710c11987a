//! Recordings: a run of the sensors in one file, to be fed through policies again, and to be opened
//! with the tools that people have. The file is an Apache Arrow IPC stream; docs/recordings.md has its columns.
//!
//! Invariants: the schema carries a version, and only that version and the ones before are read; a crash loses the last
//! chunk only, and the reader says so; a file that has reached its largest size is whole, and says so; damaged bytes give
//! an error with their offset, never a panic or an allocation larger than a chunk may be. Nothing here knows about policies or the identity tables,
//! or about the kinds of record beyond their names: what is said is written down as it is given.

mod chunk;
mod decode;
mod entry;
mod guard;
mod limit;
mod reader;
mod recorder;
mod schema;
mod tally;
mod writer;

#[cfg(test)]
mod tests;

pub use entry::{CoreStart, Entry, Identity, Origin, Question, digest};
pub use limit::{DEFAULT_MAX_BYTES, Destination, LEAST_MAX_BYTES};
pub use reader::{ReadError, Reader};
pub use recorder::{Progress, Recorder};
pub use schema::FORMAT_VERSION;
pub use writer::{MAX_BATCH_RECORDS, MAX_JSON, MAX_TEXT, WriteError, Writer};
