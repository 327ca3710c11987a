//! The operator's configuration: from a TOML file to types that cannot be wrong.
//!
//! Invariants:
//! - All faults of a file are reported together, each with its line and what would be right.
//! - Nothing is read from the environment, and nothing is written.
//! - A [`Config`] needs no further checking, except what only the policy host can know.

mod checked;
mod device_list;
mod devices;
mod faults;
mod policies;
mod raw;
mod sections;
mod sensors;
pub mod units;
mod watch;

pub use checked::{
    Alerts, Config, DEFAULT_CONFIG_FILE, DEFAULT_DEVICES, DEFAULT_DRIVER_CALL_WAIT,
    DEFAULT_HOST_ACTIONS_PER_MINUTE, DEFAULT_LOSS_WINDOW, DEFAULT_MAX_LEASES,
    DEFAULT_MODEL_MIN_BYTES, DEFAULT_MODEL_SUFFIXES, DEFAULT_RUN_DIR, DEFAULT_SLOW_CALL,
    DEFAULT_STATE_DIR, DEFAULT_WINDOW, DeviceClass, Limits, Paths, PolicyConfig, PolicyLimits,
    Protect, Sensors, Watch, default_core, default_grant,
};
pub use devices::{PRESETS, Preset, ProcDevices};
pub use faults::{ConfigErrors, Fault, Warning};

use crate::identity::layout::{Layout, LayoutError};
use faults::Faults;
use raw::Section;
use sections::Context;
use sha2::{Digest, Sha256};
use std::io::{self, Read};
use std::path::Path;
use toml::de::DeTable;

/// A configuration beyond this is a mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What the configuration is checked against.
#[derive(Debug)]
pub struct Host {
    /// The cgroup hierarchies.
    pub layout: Result<Layout, LayoutError>,
    /// The device drivers.
    pub devices: ProcDevices,
}

impl Host {
    /// This host. Without /proc/devices no device preset is present.
    pub fn detect() -> Self {
        Self {
            layout: Layout::detect(),
            devices: ProcDevices::read().unwrap_or_default(),
        }
    }
}

impl Config {
    /// Reads and checks a file against this host. Relative paths in it are relative to its folder.
    pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
        Self::load_for(path, Some(&Host::detect()))
    }

    /// Like [`Config::load`], against another host, or against none: then cgroups, device paths
    /// and policy files are not looked for, and only devices given by number have one.
    pub fn load_for(path: &Path, host: Option<&Host>) -> Result<Config, ConfigErrors> {
        let (file, text) = read(path)?;
        let base = file.parent().unwrap_or(Path::new("/"));
        let mut faults = Faults::new(&text);
        let mut config = with_document(&text, &mut faults, |root, faults| {
            sections::document(root, Context { base, host }, faults)
        });
        let warnings = std::mem::take(&mut faults.warnings);
        refuse(&file, faults)?;
        config.digest = hex_digest(text.as_bytes());
        config.warnings = warnings
            .into_iter()
            .map(|fault| Warning {
                file: Some(file.clone()),
                fault,
            })
            .collect();
        config.source = Some(file);
        Ok(config)
    }

    /// The configuration without a file: watches everything, has no policy, acts on nothing.
    pub fn default_with(paths: Paths) -> Config {
        let text = "";
        let host = Host::detect();
        let context = Context {
            base: Path::new("/"),
            host: Some(&host),
        };
        let mut config = with_document(text, &mut Faults::new(text), |root, faults| {
            sections::document(root, context, faults)
        });
        config.paths = paths;
        config.digest = hex_digest(text.as_bytes());
        config
    }
}

impl Paths {
    /// Only the two folders of a file, for commands that talk to a running agent: other faults of
    /// the file do not keep them from it.
    pub fn load(path: &Path) -> Result<Paths, ConfigErrors> {
        let (file, text) = read(path)?;
        let mut faults = Faults::new(&text);
        let paths = with_document(&text, &mut faults, |mut root, faults| {
            sections::paths(&mut root, faults)
        });
        refuse(&file, faults)?;
        Ok(paths)
    }
}

fn with_document<T>(
    text: &str,
    faults: &mut Faults<'_>,
    read: impl FnOnce(Section<'_>, &mut Faults<'_>) -> T,
) -> T {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        faults.syntax(error);
    }
    let root = Section::new(document.get_ref(), "the file".to_owned(), 0..0);
    read(root, faults)
}

fn refuse(file: &Path, mut faults: Faults<'_>) -> Result<(), ConfigErrors> {
    if faults.faults.is_empty() {
        return Ok(());
    }
    faults.faults.sort();
    faults.faults.dedup();
    Err(ConfigErrors {
        file: file.to_owned(),
        faults: faults.faults,
    })
}

/// The file's absolute path and text.
fn read(path: &Path) -> Result<(std::path::PathBuf, String), ConfigErrors> {
    let fail = |message: String, help: &str| ConfigErrors {
        file: path.to_owned(),
        faults: vec![Fault {
            line: 0,
            column: 0,
            message,
            help: Some(help.to_owned()),
        }],
    };
    let text = read_bounded(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => fail(
            "there is no such file".to_owned(),
            "name one with --config FILE; examples/palisade.toml is a start",
        ),
        _ => fail(
            format!("cannot be read: {error}"),
            "it must be a text file that the agent may read",
        ),
    })?;
    let file = std::path::absolute(path).map_err(|error| {
        fail(
            format!("has no absolute path: {error}"),
            "name it by its whole path",
        )
    })?;
    Ok((file, text))
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is larger than 1 MiB",
        ));
    }
    Ok(text)
}

/// SHA-256 of those bytes, lower-case hex.
pub(crate) fn hex_digest(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

#[cfg(test)]
mod tests;
