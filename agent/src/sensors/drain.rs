//! Ring-buffer entries into records and file names.

use bytemuck::Zeroable;
use palisade_abi::{FILE_NAME_SLOTS, FileKey, FileName, ModelFile, RECORD_BYTES, Record, kind};

/// One entry of the ring buffer.
#[derive(Debug, PartialEq)]
pub(super) enum Entry {
    /// A record for policies.
    Record(Record),
    /// A file's name for the file table.
    Name {
        /// Which file.
        key: FileKey,
        /// Last component of its path; what is not UTF-8 is replaced.
        name: String,
        /// Whose descriptor.
        pid: u32,
        /// The descriptor.
        fd: u32,
        /// Size of the file, bytes.
        bytes: u64,
    },
    /// Neither.
    Malformed,
}

/// Reads one entry.
pub(super) fn decode(bytes: &[u8]) -> Entry {
    match bytes.len() {
        RECORD_BYTES => {
            let mut record = Record::zeroed();
            bytemuck::bytes_of_mut(&mut record).copy_from_slice(bytes);
            match record.kind() {
                Some(kind) if kind as u16 != kind::FILE_NAME => Entry::Record(record),
                _ => Entry::Malformed,
            }
        }
        length if length == FILE_NAME_SLOTS * RECORD_BYTES => named(bytes),
        _ => Entry::Malformed,
    }
}

fn named(bytes: &[u8]) -> Entry {
    let (head, tail) = bytes.split_at(RECORD_BYTES);
    let mut record = Record::zeroed();
    bytemuck::bytes_of_mut(&mut record).copy_from_slice(head);
    if record.header.kind != kind::FILE_NAME || tail.len() != size_of::<FileName>() {
        return Entry::Malformed;
    }
    let file: ModelFile = bytemuck::cast(record.body);
    let end = tail
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(tail.len());
    Entry::Name {
        key: FileKey {
            inode: file.inode,
            device: file.device,
            pad: 0,
        },
        name: String::from_utf8_lossy(&tail[..end]).into_owned(),
        pid: record.header.pid,
        fd: file.fd,
        bytes: file.bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_abi::{Exec, Header};

    #[test]
    fn records_and_names_are_told_apart_by_length_and_kind() {
        let record = Record::new(Header::default(), Exec::default());
        assert_eq!(decode(bytemuck::bytes_of(&record)), Entry::Record(record));

        let file = ModelFile {
            inode: 12,
            bytes: 99,
            device: 8 << 20,
            fd: 3,
        };
        let mut head = Record {
            header: Header::default(),
            body: bytemuck::cast(file),
        };
        head.header.kind = kind::FILE_NAME;
        head.header.pid = 77;
        let mut name = [0_u8; size_of::<FileName>()];
        name[..6].copy_from_slice(b"a.gguf");
        let bytes = [bytemuck::bytes_of(&head), &name].concat();
        let Entry::Name {
            key,
            name,
            pid,
            fd,
            bytes: size,
        } = decode(&bytes)
        else {
            panic!("not a name");
        };
        assert_eq!(
            (key.inode, key.device, name.as_str(), pid, fd, size),
            (12, 8 << 20, "a.gguf", 77, 3, 99)
        );
        assert_eq!(decode(bytemuck::bytes_of(&head)), Entry::Malformed);
    }

    #[test]
    fn no_length_and_no_byte_panics() {
        for length in 0..700 {
            let bytes: Vec<u8> = (0..length).map(|at| (at * 37 + length) as u8).collect();
            let _ = decode(&bytes);
            let _ = decode(&vec![0xff; length]);
        }
    }
}
