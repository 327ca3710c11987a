//! Reading a recording, whatever its bytes.
//!
//! Invariants: at most one chunk is in memory; no length is believed before it is checked; after an
//! error or the end the reader yields nothing more.

use super::decode::decode;
use super::entry::{Entry, Origin};
use super::guard;
use super::schema::{self, FORMAT_VERSION, VERSION_KEY};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::{Message, MessageHeader};
use arrow_schema::{DataType, SchemaRef};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

/// Bytes of a message's description at most.
const MAX_META: usize = 1 << 20;
/// Bytes of a message's content at most.
const MAX_BODY: usize = 64 << 20;
/// Zeros at the end of a message and behind it from which on a damaged one counts as torn: an undamaged one may end in a few.
const ZEROS: u64 = 64;
/// Bytes that are looked at for whether all are zeros, at most: a stream need not end.
const MAX_ZEROS: u64 = 4 << 30;
/// How each message begins.
const CONTINUATION: [u8; 4] = [0xff; 4];

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
    #[error(
        "this is no Palisade recording (an Arrow IPC stream with {VERSION_KEY} in its metadata)"
    )]
    NotARecording,
    /// It was made by an agent with another format.
    #[error(
        "the recording has format version {found}; this program reads versions 1 to {FORMAT_VERSION}"
    )]
    Version {
        /// Its version.
        found: String,
    },
    /// It stops in the middle of a chunk, or is zeros from some place on: whoever wrote it, or its host, was cut off.
    #[error(
        "the recording was cut off at byte {offset}: what came after is lost, all before it is good"
    )]
    Torn {
        /// Where the first chunk begins that is not whole.
        offset: u64,
    },
    /// Its bytes were changed.
    #[error("the recording is damaged at byte {offset}: {what}")]
    Corrupt {
        /// Where the chunk begins.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}

impl ReadError {
    /// Whether all that was read is good and only the end is missing.
    pub fn is_torn(&self) -> bool {
        matches!(self, Self::Torn { .. })
    }
}

/// Yields the entries of a recording.
#[derive(Debug)]
pub struct Reader<R: Read = BufReader<File>> {
    input: R,
    offset: u64,
    schema: SchemaRef,
    dictionaries: HashMap<i64, ArrayRef>,
    chunk: std::vec::IntoIter<Entry>,
    chunks: u64,
    over: bool,
    ended: bool,
}

impl Reader {
    /// Reads the beginning of a file, up to and with the schema.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|source| ReadError::Io { offset: 0, source })?;
        Self::new(BufReader::with_capacity(256 * 1024, file))
    }
}

impl<R: Read> Reader<R> {
    /// Reads the beginning, up to and with the schema.
    pub fn new(input: R) -> Result<Self, ReadError> {
        let mut reader = Self {
            input,
            offset: 0,
            schema: Arc::new(arrow_schema::Schema::empty()),
            dictionaries: HashMap::new(),
            chunk: Vec::new().into_iter(),
            chunks: 0,
            over: false,
            ended: false,
        };
        let first = match reader.raw() {
            Ok(Some(raw)) => raw,
            Ok(None) | Err(ReadError::Corrupt { .. }) => return Err(ReadError::NotARecording),
            Err(error) => return Err(error),
        };
        let message =
            arrow_ipc::root_as_message(&first.meta).map_err(|_| ReadError::NotARecording)?;
        let schema = message
            .header_as_schema()
            .and_then(|schema| arrow_ipc::convert::try_fb_to_schema(schema).ok())
            .ok_or(ReadError::NotARecording)?;
        let version = schema.metadata().get(VERSION_KEY);
        let version = version.ok_or(ReadError::NotARecording)?;
        let columns = schema::fields_of(version).ok_or_else(|| ReadError::Version {
            found: version.chars().take(20).collect(),
        })?;
        let same = schema.fields().len() == columns.len()
            && schema.fields().iter().zip(&columns).all(|(has, wants)| {
                has.name() == wants.name() && has.data_type() == wants.data_type()
            });
        if !same {
            let what = "its columns are not those of its version".to_owned();
            return Err(reader.damage(0, &first.meta, &first.body, what));
        }
        reader.schema = Arc::new(schema);
        Ok(reader)
    }

    /// Where it comes from.
    pub fn origin(&self) -> Origin {
        schema::origin(&self.schema)
    }

    /// Bytes read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Chunks read so far.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Whether its end was reached and it was closed in order.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Reads up to and with the next chunk; `false` at the end.
    fn advance(&mut self) -> Result<bool, ReadError> {
        loop {
            let offset = self.offset;
            let Some(raw) = self.raw()? else {
                return Ok(false);
            };
            match self.take_in(&raw) {
                Ok(None) => {}
                Ok(Some(chunk)) => {
                    self.chunk = chunk.into_iter();
                    self.chunks += 1;
                    return Ok(true);
                }
                Err(what) => return Err(self.damage(offset, &raw.meta, &raw.body, what)),
            }
        }
    }

    /// The entries of a chunk; `None` of another message.
    fn take_in(&mut self, raw: &Raw) -> Result<Option<Vec<Entry>>, String> {
        let message = arrow_ipc::root_as_message(&raw.meta)
            .map_err(|error| format!("a message that does not read: {error}"))?;
        match message.header_type() {
            MessageHeader::DictionaryBatch => {
                self.learn(message, &raw.body)?;
                Ok(None)
            }
            MessageHeader::RecordBatch => {
                let chunk = self.chunk_of(message, &raw.body)?;
                Ok(Some(decode(&chunk)?))
            }
            _ => Err("a message that is no chunk".to_owned()),
        }
    }

    /// Why a message cannot be read that ends in that: a host that crashed may leave a file as long as it was to be,
    /// with nothing in it from some place on, which is seldom where a chunk begins.
    fn damage(&mut self, offset: u64, meta: &[u8], body: &[u8], what: String) -> ReadError {
        let mut zeros = zeros_at_end(body);
        if zeros == body.len() {
            zeros += zeros_at_end(meta);
        }
        let zeros = zeros as u64;
        let behind = match zeros {
            0 => Ok(None),
            _ => only_zeros(&mut self.input),
        };
        match behind {
            Ok(Some(behind)) if zeros + behind >= ZEROS => ReadError::Torn { offset },
            Ok(_) => ReadError::Corrupt { offset, what },
            Err(source) => ReadError::Io { offset, source },
        }
    }

    /// Takes in the names that a column's numbers stand for.
    fn learn(&mut self, message: Message<'_>, body: &Buffer) -> Result<(), String> {
        let dictionary = message
            .header_as_dictionary_batch()
            .ok_or("a dictionary that does not read")?;
        if dictionary.isDelta() {
            return Err("a dictionary in parts, which recordings do not use".to_owned());
        }
        let data = dictionary.data().ok_or("a dictionary without names")?;
        guard::check(data, body, [DataType::Utf8].iter())?;
        arrow_ipc::reader::read_dictionary(
            body,
            dictionary,
            &self.schema,
            &mut self.dictionaries,
            &message.version(),
        )
        .map_err(|error| error.to_string())
    }

    fn chunk_of(&self, message: Message<'_>, body: &Buffer) -> Result<RecordBatch, String> {
        let batch = message
            .header_as_record_batch()
            .ok_or("a chunk that does not read")?;
        let columns = self.schema.fields().iter().map(|field| field.data_type());
        guard::check(batch, body, columns)?;
        arrow_ipc::reader::read_record_batch(
            body,
            batch,
            Arc::clone(&self.schema),
            &self.dictionaries,
            None,
            &message.version(),
        )
        .map_err(|error| error.to_string())
    }

    /// The next message; `None` at the end.
    fn raw(&mut self) -> Result<Option<Raw>, ReadError> {
        let offset = self.offset;
        let io = |source| ReadError::Io { offset, source };
        let mut head = [0u8; 8];
        match fill(&mut self.input, &mut head).map_err(io)? {
            0 => return Ok(None),
            8 => {}
            got if CONTINUATION.starts_with(&head[..got.min(4)]) => {
                return Err(ReadError::Torn { offset });
            }
            _ => {}
        }
        let corrupt = |what: &str| ReadError::Corrupt {
            offset,
            what: what.to_owned(),
        };
        let [a, b, c, d, length @ ..] = head;
        if [a, b, c, d] != CONTINUATION {
            let zeros = offset > 0 && head == [0; 8];
            return Err(
                if zeros && only_zeros(&mut self.input).map_err(io)?.is_some() {
                    ReadError::Torn { offset }
                } else {
                    corrupt("no message of an Arrow stream")
                },
            );
        }
        let length = u32::from_le_bytes(length) as usize;
        if length == 0 {
            self.offset += 8;
            self.ended = true;
            return Ok(None);
        }
        if length > MAX_META {
            return Err(corrupt("a message of impossible length"));
        }
        let mut meta = vec![0u8; length];
        if fill(&mut self.input, &mut meta).map_err(io)? < length {
            return Err(ReadError::Torn { offset });
        }
        let body = arrow_ipc::root_as_message(&meta)
            .ok()
            .and_then(|message| usize::try_from(message.bodyLength()).ok())
            .filter(|bytes| *bytes <= MAX_BODY);
        let Some(body) = body else {
            let what = "a message that does not read".to_owned();
            return Err(self.damage(offset, &meta, &[], what));
        };
        // Grows with what is there, not with what is claimed.
        let mut content = Vec::new();
        let limit = body as u64;
        let got = self
            .input
            .by_ref()
            .take(limit)
            .read_to_end(&mut content)
            .map_err(io)?;
        if got < body {
            return Err(ReadError::Torn { offset });
        }
        self.offset += (head.len() + length + body) as u64;
        Ok(Some(Raw {
            meta,
            body: Buffer::from_vec(content),
        }))
    }
}

/// A message: its description and its content.
struct Raw {
    meta: Vec<u8>,
    body: Buffer,
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.chunk.next() {
                return Some(Ok(entry));
            }
            if self.over {
                return None;
            }
            match self.advance() {
                Ok(true) => {}
                Ok(false) => self.over = true,
                Err(error) => {
                    self.over = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

fn zeros_at_end(bytes: &[u8]) -> usize {
    bytes.iter().rev().take_while(|byte| **byte == 0).count()
}

/// How much is left, if all of it is zeros.
fn only_zeros(input: &mut impl Read) -> std::io::Result<Option<u64>> {
    const NONE: [u8; 4096] = [0; 4096];
    let mut buffer = NONE;
    let mut zeros = 0;
    while zeros < MAX_ZEROS {
        match fill(input, &mut buffer)? {
            0 => return Ok(Some(zeros)),
            got if buffer[..got] != NONE[..got] => return Ok(None),
            got => zeros += got as u64,
        }
    }
    Ok(None)
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
