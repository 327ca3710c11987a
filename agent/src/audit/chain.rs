//! The chain: each line carries the SHA-256 of the bytes of the line before it.
//!
//! Invariants: a line is one JSON object without a newline inside; its first fields are `v`,
//! `seq`, `time`, `boot_ns`, `prev`, `kind`, in this order. The hash is over the bytes as they
//! stand in the file, without the newline. Nothing here touches the disk.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Version of the line format.
pub const VERSION: u32 = 1;

/// What is hashed for `prev` of the first line of a log, which has no line before it.
pub const GENESIS: &[u8] = b"palisade audit log v1";

/// SHA-256 of a line.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Of a line's bytes, without its newline.
    pub fn of(line: &[u8]) -> Self {
        Self(Sha256::digest(line).into())
    }

    /// What the first line of a log carries.
    pub fn genesis() -> Self {
        Self::of(GENESIS)
    }

    /// Whether `text` is this hash in lower-case hex.
    pub fn is(&self, text: &str) -> bool {
        text.len() == 64 && *self.to_string() == *text
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

/// The end of a log. Kept elsewhere, it proves later that nothing up to it was changed or cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Sequence number of the last record; 0 for an empty log.
    pub seq: u64,
    /// Hash of its line.
    pub hash: Hash,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl Serialize for Head {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("\"{text}\" is no head: SEQ:HASH is a number, a colon and 64 hex digits");
        let (seq, hex) = text.trim().split_once(':').ok_or_else(wrong)?;
        let seq = seq.parse().map_err(|_| wrong())?;
        if hex.len() != 64 || !hex.is_ascii() {
            return Err(wrong());
        }
        let mut hash = [0; 32];
        for (i, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self {
            seq,
            hash: Hash(hash),
        })
    }
}

/// The fields that every line starts with.
#[derive(Debug, Deserialize)]
pub(crate) struct Meta<'a> {
    /// Format version.
    pub(crate) v: u32,
    /// Sequence number.
    pub(crate) seq: u64,
    /// Hash of the line before.
    #[serde(borrow)]
    pub(crate) prev: Cow<'a, str>,
    /// What kind of record.
    #[serde(borrow)]
    pub(crate) kind: Cow<'a, str>,
}

impl<'a> Meta<'a> {
    /// `None` if the line is no record (not JSON, or a field is missing or of another type).
    pub(crate) fn parse(line: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

/// Appends a line's leading fields, up to and with the comma before `kind`.
pub(crate) fn begin_line(out: &mut Vec<u8>, seq: u64, time: &str, boot_ns: u64, prev: &Hash) {
    // Writing to a Vec cannot fail.
    let _ = std::io::Write::write_fmt(
        out,
        format_args!(
            "{{\"v\":{VERSION},\"seq\":{seq},\"time\":\"{time}\",\"boot_ns\":{boot_ns},\"prev\":\"{prev}\","
        ),
    );
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(DIGITS[(byte >> 4) as usize] as char);
        text.push(DIGITS[(byte & 15) as usize] as char);
    }
    text
}
