//! Reading a recording, whatever its bytes.
//!
//! Invariants: at most one frame is in memory; no length is believed before it is checked
//! against [`MAX_FRAME`]; after an error or the end the reader yields nothing more.

use super::format::{self, FORMAT_VERSION, Frame, MAGIC, MAX_FRAME};
use serde_json::Value;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// Why a recording cannot be read (any further).
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file refused.
    #[error("cannot read the recording at byte {offset}: {source}")]
    Io {
        /// Where.
        offset: u64,
        /// Why.
        source: std::io::Error,
    },
    /// It is something else.
    #[error("this is no Palisade recording (it does not begin with PALREC)")]
    NotARecording,
    /// It was made by a later agent.
    #[error("the recording has format version {found}; this program reads up to {FORMAT_VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// It stops in the middle of a frame: whoever wrote it was cut off. All before is good.
    #[error(
        "the recording was cut off at byte {offset}: its last frame is lost, all before it is good"
    )]
    Torn {
        /// Where the unfinished frame begins.
        offset: u64,
    },
    /// Its bytes were changed.
    #[error("the recording is damaged at byte {offset}: {what}")]
    Corrupt {
        /// Where the frame begins.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
}

impl ReadError {
    /// Whether all that was read is good and only the last frame is missing.
    pub fn is_torn(&self) -> bool {
        matches!(self, Self::Torn { .. })
    }
}

/// Yields the frames of a recording. A recording without [`Frame::End`] was not closed in order.
#[derive(Debug)]
pub struct Reader<R: Read = BufReader<File>> {
    input: R,
    offset: u64,
    header: Value,
    over: bool,
}

impl Reader {
    /// Reads the beginning of a file, up to and with the header.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|source| ReadError::Io { offset: 0, source })?;
        Self::new(BufReader::with_capacity(256 * 1024, file))
    }
}

impl<R: Read> Reader<R> {
    /// Reads the beginning, up to and with the header.
    pub fn new(mut input: R) -> Result<Self, ReadError> {
        let mut start = [0u8; 11];
        let got =
            fill(&mut input, &mut start).map_err(|source| ReadError::Io { offset: 0, source })?;
        if got < start.len() || &start[..7] != MAGIC {
            return Err(ReadError::NotARecording);
        }
        let found = u32::from_le_bytes([start[7], start[8], start[9], start[10]]);
        if found == 0 || found > FORMAT_VERSION {
            return Err(ReadError::Version { found });
        }
        let mut reader = Self {
            input,
            offset: start.len() as u64,
            header: Value::Null,
            over: false,
        };
        let offset = reader.offset;
        match reader.frame()? {
            Some(Frame::Header(header)) => reader.header = header,
            Some(_) => {
                return Err(ReadError::Corrupt {
                    offset,
                    what: "no header at its start",
                });
            }
            None => return Err(ReadError::Torn { offset }),
        }
        Ok(reader)
    }

    /// Where it comes from, a JSON object.
    pub fn header(&self) -> &Value {
        &self.header
    }

    /// Bytes read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next frame; `None` at the end of the file.
    fn frame(&mut self) -> Result<Option<Frame>, ReadError> {
        let offset = self.offset;
        let io = |source| ReadError::Io { offset, source };
        let mut head = [0u8; 8];
        match fill(&mut self.input, &mut head).map_err(io)? {
            0 => return Ok(None),
            8 => {}
            _ => return Err(ReadError::Torn { offset }),
        }
        let (len, crc) = head.split_at(4);
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .rev()
                .fold(0u32, |n, byte| n << 8 | u32::from(*byte))
        };
        let len = number(len) as usize;
        let crc = number(crc);
        if len == 0 || len > MAX_FRAME {
            return Err(ReadError::Corrupt {
                offset,
                what: "a frame of impossible length",
            });
        }
        let mut body = vec![0u8; len];
        if fill(&mut self.input, &mut body).map_err(io)? < len {
            return Err(ReadError::Torn { offset });
        }
        if crc32fast::hash(&body) != crc {
            return Err(ReadError::Corrupt {
                offset,
                what: "a frame whose checksum is wrong",
            });
        }
        let frame = format::decode(&body).map_err(|what| ReadError::Corrupt { offset, what })?;
        self.offset += 8 + len as u64;
        Ok(Some(frame))
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Frame, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        match self.frame() {
            Ok(Some(frame)) => {
                self.over = matches!(frame, Frame::End);
                Some(Ok(frame))
            }
            Ok(None) => {
                self.over = true;
                None
            }
            Err(error) => {
                self.over = true;
                Some(Err(error))
            }
        }
    }
}

/// Reads until `buffer` is full or the input ends; returns how much.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match input.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
