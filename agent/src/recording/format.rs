//! The bytes of a recording.
//!
//! ```text
//! file  = "PALREC\0" version:u32 frame*
//! frame = len:u32 crc32:u32 type:u8 payload        all integers little endian
//!         len counts type and payload; crc32 is over both
//! type 1 header    JSON object: agent, kernel, window, configuration's digest, boot id; the first frame
//! type 2 batch     seq:u64 now_ns:u64 window_end:u8, then 64-byte records
//! type 3 identity  JSON of Identity: what the tables know from here on
//! type 4 order     JSON: the order in which requests reached the core
//! type 5 end       empty: the recording was closed in order
//! ```
//!
//! Invariants: types are only ever added; a reader skips those that it does not know.

use crate::batch::Batch;
use palisade_abi::RECORD_BYTES;
use palisade_core::{ProcessId, WorkloadId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How a recording begins.
pub const MAGIC: &[u8; 7] = b"PALREC\0";

/// Version of the format.
pub const FORMAT_VERSION: u32 = 1;

/// Longest frame, type and payload, in bytes.
pub const MAX_FRAME: usize = 4 << 20;

const HEADER: u8 = 1;
const BATCH: u8 = 2;
const IDENTITY: u8 = 3;
const ORDER: u8 = 4;
const END: u8 = 5;

/// Bytes of a batch frame before its records, type included.
const BATCH_HEAD: usize = 1 + 8 + 8 + 1;

/// What the identity tables learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// About a process.
    Process {
        /// Which.
        process: ProcessId,
        /// Pid of its parent; 0 if unknown.
        parent: u32,
        /// The name that it gives itself.
        comm: String,
        /// Executable's path; empty if unknown.
        exe: String,
        /// Its cgroup.
        workload: Option<WorkloadId>,
    },
    /// About a cgroup.
    Workload {
        /// Which.
        workload: WorkloadId,
        /// Its path below the hierarchy's mount point.
        cgroup: String,
        /// Container id.
        container: Option<String>,
    },
    /// About a file.
    File {
        /// Device, as records carry it.
        device: u32,
        /// Inode on it.
        inode: u64,
        /// Its path.
        path: String,
    },
}

/// One part of a recording.
#[derive(Clone, Debug)]
pub enum Frame {
    /// Where it comes from.
    Header(Value),
    /// Records.
    Batch(Batch),
    /// What the identity tables learned.
    Identity(Identity),
    /// Order of requests, as the runtime writes it.
    Order(Value),
    /// Closed in order.
    End,
    /// Of a later version of the agent: type and payload.
    Unknown(u8, Vec<u8>),
}

/// Type and payload of a frame.
///
/// # Errors
/// If something in it cannot be written as JSON.
pub(super) fn encode(frame: &Frame) -> serde_json::Result<Vec<u8>> {
    let tagged = |tag: u8, payload: &[u8]| [&[tag], payload].concat();
    Ok(match frame {
        Frame::Header(header) => tagged(HEADER, &serde_json::to_vec(header)?),
        Frame::Batch(batch) => {
            let mut out = Vec::with_capacity(BATCH_HEAD + batch.records.len() * RECORD_BYTES);
            out.push(BATCH);
            out.extend_from_slice(&batch.seq.to_le_bytes());
            out.extend_from_slice(&batch.now_ns.to_le_bytes());
            out.push(u8::from(batch.window_end));
            out.extend_from_slice(bytemuck::cast_slice(&batch.records));
            out
        }
        Frame::Identity(identity) => tagged(IDENTITY, &serde_json::to_vec(identity)?),
        Frame::Order(order) => tagged(ORDER, &serde_json::to_vec(order)?),
        Frame::End => vec![END],
        Frame::Unknown(tag, payload) => tagged(*tag, payload),
    })
}

/// A frame from its type and payload; the error says what is wrong.
pub(super) fn decode(bytes: &[u8]) -> Result<Frame, &'static str> {
    let (tag, payload) = bytes.split_first().ok_or("an empty frame")?;
    Ok(match *tag {
        HEADER => Frame::Header(
            serde_json::from_slice(payload).map_err(|_| "a header that does not read")?,
        ),
        BATCH => Frame::Batch(batch(payload).ok_or("a batch of no whole number of records")?),
        // One that does not read is of a kind that later agents added: its checksum was right.
        IDENTITY => serde_json::from_slice(payload).map_or_else(
            |_| Frame::Unknown(IDENTITY, payload.to_vec()),
            Frame::Identity,
        ),
        ORDER => Frame::Order(
            serde_json::from_slice(payload).map_err(|_| "an order that does not read")?,
        ),
        END => Frame::End,
        tag => Frame::Unknown(tag, payload.to_vec()),
    })
}

fn batch(payload: &[u8]) -> Option<Batch> {
    let (seq, rest) = payload.split_first_chunk::<8>()?;
    let (now, rest) = rest.split_first_chunk::<8>()?;
    let (flags, rest) = rest.split_first()?;
    if !rest.len().is_multiple_of(RECORD_BYTES) {
        return None;
    }
    // The payload's address has no alignment: records are copied out.
    let records = rest
        .chunks_exact(RECORD_BYTES)
        .map(bytemuck::pod_read_unaligned)
        .collect();
    Some(Batch {
        seq: u64::from_le_bytes(*seq),
        now_ns: u64::from_le_bytes(*now),
        window_end: flags & 1 == 1,
        records,
    })
}
