//! Writing a recording.
//!
//! Invariant: each frame reaches the file in one write, so that a crash tears the last one at
//! most. Nothing is buffered between calls.

use super::format::{self, FORMAT_VERSION, Frame, Identity, MAGIC, MAX_FRAME};
use crate::batch::Batch;
use palisade_abi::RECORD_BYTES;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Records in one batch frame at most; a larger batch is an error of the caller's.
const MAX_RECORDS: usize = (MAX_FRAME - 64) / RECORD_BYTES;

/// Why a frame was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file refused.
    #[error("cannot write the recording: {0}")]
    Io(#[from] std::io::Error),
    /// It cannot be said in JSON.
    #[error("cannot write a part of the recording as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It is larger than a frame may be.
    #[error("a frame of {bytes} bytes is too large for a recording (at most {MAX_FRAME})")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

/// Writes a recording, frame by frame.
#[derive(Debug)]
pub struct Writer<W: Write = File> {
    out: W,
}

impl Writer {
    /// Begins a recording in a new file (an old one of this name is replaced), mode 0600.
    pub fn create(path: &Path, header: &Value) -> Result<Self, WriteError> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        Self::new(file, header)
    }
}

impl<W: Write> Writer<W> {
    /// Begins a recording. `header` is an object that says where it comes from.
    pub fn new(mut out: W, header: &Value) -> Result<Self, WriteError> {
        let mut start = MAGIC.to_vec();
        start.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.write_all(&start)?;
        let mut writer = Self { out };
        writer.frame(&Frame::Header(header.clone()))?;
        Ok(writer)
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`] for more than 65,535 records.
    pub fn batch(&mut self, batch: &Batch) -> Result<(), WriteError> {
        if batch.records.len() > MAX_RECORDS {
            return Err(WriteError::TooLarge {
                bytes: batch.records.len() * RECORD_BYTES,
            });
        }
        self.frame(&Frame::Batch(batch.clone()))
    }

    /// Adds what the identity tables learned. It comes before the batch that needs it.
    pub fn identity(&mut self, identity: &Identity) -> Result<(), WriteError> {
        self.frame(&Frame::Identity(identity.clone()))
    }

    /// Adds a note on the order in which requests reached the core.
    pub fn order(&mut self, order: &Value) -> Result<(), WriteError> {
        self.frame(&Frame::Order(order.clone()))
    }

    /// Ends the recording in order and hands the file back.
    pub fn finish(mut self) -> Result<W, WriteError> {
        self.frame(&Frame::End)?;
        Ok(self.out)
    }

    fn frame(&mut self, frame: &Frame) -> Result<(), WriteError> {
        let body = format::encode(frame)?;
        if body.len() > MAX_FRAME {
            return Err(WriteError::TooLarge { bytes: body.len() });
        }
        let mut bytes = Vec::with_capacity(body.len() + 8);
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        self.out.write_all(&bytes)?;
        self.out.flush()?;
        Ok(())
    }
}
