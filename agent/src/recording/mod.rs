//! Recordings: a run of the sensors in one file, to be fed through policies again.
//!
//! Invariants: the format carries a version; a crash loses the last frame only, and the reader
//! says so; damaged bytes give an error with their offset, never a panic or an allocation larger
//! than a frame may be. Nothing here knows about policies or the
//! identity tables: what they say is written down as it is given.

mod format;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub use format::{FORMAT_VERSION, Frame, Identity, MAGIC, MAX_FRAME};
pub use reader::{ReadError, Reader};
pub use writer::{WriteError, Writer};
