//! tracefs: where it is, and whether a system call's tracepoint looks as the programs expect.
//!
//! It mounts tracefs where the kernel has the folder but nothing is mounted; it never unmounts.

use nix::mount::{MsFlags, mount};
use std::{
    io,
    path::{Path, PathBuf},
};
use thiserror::Error;

const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Where the first argument, or the return value, of a system call lies (`struct syscall_tp_t`).
const FIRST_WORD_AT: usize = 16;

/// Why a tracepoint cannot be used.
#[derive(Debug, Error)]
pub enum TracefsError {
    /// tracefs is not mounted and could not be.
    #[error("tracefs is not mounted and mounting it at {} failed: {source}", PLACES[0])]
    NotMounted {
        /// Answer of `mount`.
        source: io::Error,
    },
    /// This kernel or architecture has no such tracepoint.
    #[error("this kernel has no tracepoint {category}:{name}")]
    NoSuchTracepoint {
        /// Folder under `events`.
        category: String,
        /// Folder below.
        name: String,
    },
    /// Its record differs from what the programs read.
    #[error("tracepoint {name}: field {field} is at byte {found:?}, not at {expected}")]
    Layout {
        /// Tracepoint.
        name: String,
        /// Position of the argument, from 0.
        field: usize,
        /// Where the programs read it.
        expected: usize,
        /// Where it is.
        found: Option<usize>,
    },
}

/// The mounted tracefs, without mounting it.
pub(super) fn find() -> Option<PathBuf> {
    PLACES
        .iter()
        .map(Path::new)
        .find(|place| place.join("events").is_dir())
        .map(Path::to_path_buf)
}

/// The mounted tracefs; mounts it if need be.
pub(super) fn ensure() -> Result<PathBuf, TracefsError> {
    if let Some(place) = find() {
        return Ok(place);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("tracefs"),
        PLACES[0],
        Some("tracefs"),
        flags,
        None::<&str>,
    )
    .map_err(|errno| TracefsError::NotMounted {
        source: errno.into(),
    })?;
    find().ok_or(TracefsError::NotMounted {
        source: io::ErrorKind::NotFound.into(),
    })
}

/// Checks that the tracepoint exists and that its first `words` arguments (or, at an exit, the
/// return value) are where the programs read them.
pub(super) fn check(
    tracefs: &Path,
    category: &str,
    name: &str,
    words: usize,
) -> Result<(), TracefsError> {
    let file = tracefs
        .join("events")
        .join(category)
        .join(name)
        .join("format");
    let Ok(text) = std::fs::read_to_string(file) else {
        return Err(TracefsError::NoSuchTracepoint {
            category: category.into(),
            name: name.into(),
        });
    };
    let offsets = field_offsets(&text);
    // The system call's number, then the arguments.
    for word in 0..words {
        let expected = FIRST_WORD_AT + 8 * word;
        let found = offsets.get(1 + word).copied();
        if found != Some(expected) {
            return Err(TracefsError::Layout {
                name: name.into(),
                field: word,
                expected,
                found,
            });
        }
    }
    Ok(())
}

/// Offsets of the fields of a `format` file, without the common ones, in order.
fn field_offsets(format: &str) -> Vec<usize> {
    format
        .lines()
        .filter_map(|line| line.trim().strip_prefix("field:"))
        .filter(|field| {
            !field
                .split(';')
                .next()
                .is_some_and(|text| text.contains("common_"))
        })
        .filter_map(|field| {
            let text = field
                .split(';')
                .find_map(|part| part.trim().strip_prefix("offset:"))?;
            text.parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const IOCTL: &str = "name: sys_enter_ioctl\nID: 898\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
        \tfield:int __syscall_nr;\toffset:8;\tsize:4;\tsigned:1;\n\
        \tfield:unsigned int fd;\toffset:16;\tsize:8;\tsigned:0;\n\
        \tfield:unsigned int cmd;\toffset:24;\tsize:8;\tsigned:0;\n\n\
        print fmt: \"fd: 0x%08lx\", ((unsigned long)(REC->fd))\n";

    #[test]
    fn offsets_of_a_format_file_leave_out_the_common_fields() {
        assert_eq!(field_offsets(IOCTL), [8, 16, 24]);
        assert!(field_offsets("garbage\nfield:x;offset:y;").is_empty());
    }

    #[test]
    fn a_moved_or_missing_field_is_refused() {
        let dir = std::env::temp_dir().join(format!("palisade-tracefs-{}", std::process::id()));
        let point = dir.join("events/syscalls/sys_enter_ioctl");
        std::fs::create_dir_all(&point).expect("temporary folder");
        std::fs::write(point.join("format"), IOCTL).expect("format file");
        assert!(check(&dir, "syscalls", "sys_enter_ioctl", 2).is_ok());
        let three = check(&dir, "syscalls", "sys_enter_ioctl", 3);
        assert!(matches!(
            three,
            Err(TracefsError::Layout {
                field: 2,
                found: None,
                ..
            })
        ));
        let moved = IOCTL.replace("offset:24", "offset:20");
        std::fs::write(point.join("format"), moved).expect("format file");
        let moved = check(&dir, "syscalls", "sys_enter_ioctl", 2);
        assert!(matches!(
            moved,
            Err(TracefsError::Layout {
                field: 1,
                found: Some(20),
                ..
            })
        ));
        let absent = check(&dir, "syscalls", "sys_enter_nothing", 1);
        assert!(matches!(absent, Err(TracefsError::NoSuchTracepoint { .. })));
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
