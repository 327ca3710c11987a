//! Ring-buffer entries into records and paths.

use super::path;
use bytemuck::Zeroable;
use palisade_abi::{FileKey, FilePath, ModelFile, PATH_SLOTS, RECORD_BYTES, Record, kind};

/// One entry of the ring buffer.
#[derive(Debug, PartialEq)]
pub(super) enum Entry {
    /// A record for policies.
    Record(Record),
    /// A file's name for the file table.
    Name {
        /// Which file.
        key: FileKey,
        /// Its path; see [`path::text`]. Empty if it is unknown.
        name: String,
        /// Whose descriptor.
        pid: u32,
        /// The descriptor.
        fd: u32,
        /// Size of the file, bytes.
        bytes: u64,
    },
    /// A record for policies, and the path of what was executed.
    Executed {
        /// The record.
        record: Record,
        /// See [`path::text`].
        path: Option<String>,
    },
    /// None of these.
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
        length if length == PATH_SLOTS * RECORD_BYTES => with_path(bytes),
        _ => Entry::Malformed,
    }
}

fn with_path(bytes: &[u8]) -> Entry {
    let (head, tail) = bytes.split_at(RECORD_BYTES);
    let mut record = Record::zeroed();
    bytemuck::bytes_of_mut(&mut record).copy_from_slice(head);
    let mut path = FilePath::zeroed();
    if tail.len() != size_of::<FilePath>() {
        return Entry::Malformed;
    }
    bytemuck::bytes_of_mut(&mut path).copy_from_slice(tail);
    let path = path::text(&path);
    match record.header.kind {
        kind::EXEC => Entry::Executed { record, path },
        kind::FILE_NAME => {
            let file: ModelFile = bytemuck::cast(record.body);
            Entry::Name {
                key: FileKey {
                    inode: file.inode,
                    device: file.device,
                    pad: 0,
                },
                name: path.unwrap_or_default(),
                pid: record.header.pid,
                fd: file.fd,
                bytes: file.bytes,
            }
        }
        _ => Entry::Malformed,
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
        let mut path = FilePath::zeroed();
        path.names[..11].copy_from_slice(b"a.gguf\0tmp\0");
        (path.length, path.flags) = (11, palisade_abi::PATH_WHOLE);
        let path = bytemuck::bytes_of(&path);
        let bytes = [bytemuck::bytes_of(&head), path].concat();
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
            (12, 8 << 20, "/tmp/a.gguf", 77, 3, 99)
        );
        assert_eq!(decode(bytemuck::bytes_of(&head)), Entry::Malformed);
        let bytes = [bytemuck::bytes_of(&record), path].concat();
        let path = Some("/tmp/a.gguf".into());
        assert_eq!(decode(&bytes), Entry::Executed { record, path });
    }

    #[test]
    fn no_length_and_no_byte_panics() {
        for length in 0..900 {
            let bytes: Vec<u8> = (0..length).map(|at| (at * 37 + length) as u8).collect();
            let _ = decode(&bytes);
            let _ = decode(&vec![0xff; length]);
        }
    }
}
