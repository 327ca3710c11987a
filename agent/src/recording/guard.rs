//! Looks a message over before Arrow's decoder is given it.
//!
//! Invariant: whatever passes has lengths that lie within its body and buffers of the size that their
//! column needs, compressed or not. (The decoder checks values, but it slices and allocates by what
//! the message says.)

use arrow_ipc::{Buffer, CompressionType, FieldNode, RecordBatch};
use arrow_schema::DataType;

/// Rows of one chunk at most.
pub(super) const MAX_ROWS: usize = 1 << 17;
/// Bytes of all texts of one column in one chunk at most.
pub(super) const MAX_COLUMN_TEXT: usize = 4 << 20;
/// Buffers may end in padding to a multiple of this many bytes.
const PADDING: usize = 64;

/// Checks that `batch` in `body` is a chunk of these columns.
pub(super) fn check<'t>(
    batch: RecordBatch<'_>,
    body: &[u8],
    columns: impl ExactSizeIterator<Item = &'t DataType>,
) -> Result<(), &'static str> {
    let rows = usize::try_from(batch.length()).unwrap_or(usize::MAX);
    if rows > MAX_ROWS {
        return Err("a chunk of impossible length");
    }
    let compressed = match batch.compression() {
        None => false,
        Some(compression) if compression.codec() == CompressionType::LZ4_FRAME => true,
        Some(_) => return Err("a compression that recordings do not use"),
    };
    let nodes = batch.nodes().ok_or("a chunk without columns")?;
    let buffers = batch.buffers().ok_or("a chunk without buffers")?;
    if nodes.len() != columns.len() {
        return Err("a chunk with another number of columns");
    }
    let mut buffers = buffers.iter();
    // A buffer of so many elements of so many bytes; `most` is in bytes, beyond the elements.
    let mut fits = |elements: usize, width: usize, most: usize| -> Result<(), &'static str> {
        let buffer = buffers.next().ok_or("a chunk with too few buffers")?;
        let size = size(buffer, body, compressed).ok_or("a buffer outside of its chunk")?;
        let least = elements * width;
        // No rows need no buffer, whatever the column.
        if (size >= least || rows == 0) && size <= least + most && size.is_multiple_of(width) {
            Ok(())
        } else {
            Err("a buffer of another size than its column needs")
        }
    };
    for (node, column) in nodes.iter().zip(columns) {
        let bits = rows.div_ceil(8);
        if nulls(node, rows)? {
            fits(bits, 1, PADDING)?;
        } else {
            fits(0, 1, bits + PADDING)?;
        }
        match column {
            DataType::Boolean => fits(bits, 1, PADDING)?,
            DataType::Utf8 => {
                fits(rows + 1, 4, PADDING)?;
                fits(0, 1, MAX_COLUMN_TEXT)?;
            }
            other => {
                let width = match other {
                    DataType::Dictionary(keys, _) => keys.primitive_width(),
                    other => other.primitive_width(),
                };
                let width = width.ok_or("a column of a type that recordings do not use")?;
                fits(rows, width, PADDING)?;
            }
        }
    }
    match buffers.next() {
        None => Ok(()),
        Some(_) => Err("a chunk with too many buffers"),
    }
}

/// Whether a column has nulls; fails if its lengths are not the chunk's.
fn nulls(node: &FieldNode, rows: usize) -> Result<bool, &'static str> {
    let nulls = usize::try_from(node.null_count()).unwrap_or(usize::MAX);
    if usize::try_from(node.length()) == Ok(rows) && nulls <= rows {
        Ok(nulls > 0)
    } else {
        Err("a column of another length than its chunk")
    }
}

/// Bytes of a buffer's content; `None` if it is not within the body.
fn size(buffer: &Buffer, body: &[u8], compressed: bool) -> Option<usize> {
    let start = usize::try_from(buffer.offset()).ok()?;
    let length = usize::try_from(buffer.length()).ok()?;
    let bytes = body.get(start..start.checked_add(length)?)?;
    if !compressed || bytes.is_empty() {
        return Some(length);
    }
    let (prefix, content) = bytes.split_first_chunk::<8>()?;
    match i64::from_le_bytes(*prefix) {
        // Stored as it is, because it did not become shorter.
        -1 => Some(content.len()),
        length => usize::try_from(length).ok(),
    }
}
