//! Where the CUDA driver's user-space library is, and where in it the watched calls begin.
//!
//! Invariant: a library that makes no sense is an error, never a panic; only its headers and its
//! table of dynamic symbols are read.

use object::{Object as _, ObjectSegment as _, ObjectSymbol, ReadCache};
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
};
use thiserror::Error;

const NAME: &str = "libcuda.so.1";
const LINKER_CACHE: &str = "/etc/ld.so.cache";
/// Where distributions and container toolkits put it, besides what the linker's cache says.
const FOLDERS: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/run/nvidia/driver/usr/lib/x86_64-linux-gnu",
    "/run/nvidia/driver/usr/lib64",
    "/home/kubernetes/bin/nvidia/lib64",
    "/usr/lib/wsl/lib",
];

/// Why the library cannot be watched.
#[derive(Debug, Error)]
pub enum CudaError {
    /// It is nowhere.
    #[error("there is no {NAME} on this host; [sensors] cuda-library can name it")]
    NoLibrary,
    /// It cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// The library.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no ELF library.
    #[error("{path}: {detail}")]
    Malformed {
        /// The library.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// It has none of the calls.
    #[error("{path} has none of {symbols}")]
    NoSymbol {
        /// The library.
        path: PathBuf,
        /// The names that were looked for.
        symbols: String,
    },
}

/// The library with those of the wanted calls that it has.
#[derive(Debug)]
pub(super) struct Library {
    path: PathBuf,
    /// Name by offset in the file. Two names of one function are one call.
    calls: BTreeMap<u64, String>,
}

impl Library {
    /// Finds the library (`configured`, else in the usual places) and in it the functions named
    /// by `symbols`. Names that it does not have are left out; one at least must be there.
    pub(super) fn find(configured: Option<&Path>, symbols: &[&str]) -> Result<Self, CudaError> {
        let path = match configured {
            Some(path) => path.to_path_buf(),
            None => usual().ok_or(CudaError::NoLibrary)?,
        };
        let file = File::open(&path).map_err(|source| CudaError::Unreadable {
            path: path.clone(),
            source,
        })?;
        let malformed = |error: object::Error| CudaError::Malformed {
            path: path.clone(),
            detail: error.to_string(),
        };
        let cache = ReadCache::new(file);
        let object = object::File::parse(&cache).map_err(malformed)?;
        let mut calls = BTreeMap::new();
        for symbol in object.dynamic_symbols().filter(ObjectSymbol::is_definition) {
            let name = symbol.name().map_err(malformed)?;
            if symbols.contains(&name)
                && let Some(offset) = file_offset(&object, symbol.address())
            {
                calls.entry(offset).or_insert_with(|| name.to_owned());
            }
        }
        if calls.is_empty() {
            return Err(CudaError::NoSymbol {
                path,
                symbols: symbols.join(", "),
            });
        }
        Ok(Self { path, calls })
    }

    /// The library's file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the calls begin, bytes into the file.
    pub(super) fn offsets(&self) -> impl Iterator<Item = u64> {
        self.calls.keys().copied()
    }

    /// For people: `uprobe:/usr/lib/libcuda.so.1:cuLaunchKernel,cuGraphLaunch`.
    pub(super) fn place(&self) -> String {
        let names: Vec<&str> = self.calls.values().map(String::as_str).collect();
        format!("uprobe:{}:{}", self.path.display(), names.join(","))
    }
}

/// Where an address of the loaded library lies in its file.
fn file_offset<'data>(object: &impl object::Object<'data>, address: u64) -> Option<u64> {
    object.segments().find_map(|segment| {
        let (offset, size) = segment.file_range();
        let behind = address.checked_sub(segment.address())?;
        (behind < size).then_some(offset + behind)
    })
}

fn usual() -> Option<PathBuf> {
    let cached = std::fs::read(LINKER_CACHE).unwrap_or_default();
    let folders = FOLDERS.iter().map(|folder| Path::new(folder).join(NAME));
    in_linker_cache(&cached)
        .chain(folders)
        .find(|path| path.is_file())
}

/// The paths in the linker's cache that end in the library's name. Its strings end in NULs; what
/// is in front of them does not matter here.
fn in_linker_cache(cache: &[u8]) -> impl Iterator<Item = PathBuf> {
    cache
        .split(|byte| *byte == 0)
        .filter_map(|text| std::str::from_utf8(text).ok())
        .map(Path::new)
        .filter(|path| path.is_absolute() && path.ends_with(NAME))
        .map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linker_s_cache_is_searched_for_absolute_paths() {
        let cache = b"glibc-ld.so.cache1.1\x02\0\xff\xfe\0libcuda.so.1\0/usr/lib/libcuda.so.1\0\
            /usr/lib/libcuda.so.1.2\0/opt/xlibcuda.so.1\0";
        let found: Vec<PathBuf> = in_linker_cache(cache).collect();
        assert_eq!(found, [PathBuf::from("/usr/lib/libcuda.so.1")]);
    }

    #[test]
    fn what_is_no_library_is_an_error_with_its_name() {
        let none = Library::find(Some(Path::new("/nonexistent/libcuda.so.1")), &["cuInit"]);
        assert!(
            matches!(none, Err(CudaError::Unreadable { .. })),
            "{none:?}"
        );
        let text = Library::find(Some(Path::new("/proc/self/status")), &["cuInit"]);
        assert!(matches!(text, Err(CudaError::Malformed { .. })), "{text:?}");
        let other = Library::find(Some(Path::new("/proc/self/exe")), &["cuInit"]);
        assert!(
            matches!(other, Err(CudaError::NoSymbol { .. })),
            "{other:?}"
        );
    }
}
