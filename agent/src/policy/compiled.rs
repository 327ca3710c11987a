//! From a file to a compiled policy that fits this agent and the operator's configuration.
//!
//! Invariants: the bytes that were hashed and checked are the bytes that are compiled; nothing of
//! the policy runs before its manifest, imports and powers were checked.

use super::bindings::PolicyPre;
use super::compiler::Fault;
use super::engine::{EngineShared, NoLookup};
use super::error::LoadError;
use super::host::HostState;
use super::instance::{Instance, StartError};
use super::manifest::{Manifest, SECTION};
use super::registry::PolicySource;
use super::settings::{Settings, resolve};
use super::strikes::tidy;
use palisade_abi::ABI_VERSION;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wasmparser::{Encoding, Parser, Payload};
use wasmtime::component::{Component, types::ComponentItem};

/// The interfaces of the agent, without their version.
const IMPORTS: [&str; 2] = ["palisade:policy/host", "palisade:policy/types"];
/// Their version up to the part that may differ.
const IMPORT_VERSION: &str = "1.";
/// The functions of a policy.
const EXPORTS: [&str; 5] = ["checkpoint", "init", "on-batch", "on-tick", "restore"];
/// Bytes of what the validator says.
const DETAIL_BYTES: usize = 2048;

/// A policy's file, as read.
pub(super) struct PolicyFile {
    path: PathBuf,
    bytes: Vec<u8>,
    /// SHA-256 of the bytes, lower-case hex.
    pub sha256: String,
}

/// A compiled policy, ready to be instantiated any number of times.
#[derive(Clone)]
pub struct Compiled {
    pub(super) pre: PolicyPre<HostState>,
    /// The manifest that the file holds.
    pub manifest: Manifest,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            manifest, sha256, ..
        } = self;
        f.debug_struct("Compiled")
            .field("manifest", manifest)
            .field("sha256", sha256)
            .finish_non_exhaustive()
    }
}

/// Reads the manifest of the policy in `path`, without compiling or running anything.
///
/// # Errors
/// The file cannot be read, is no component, or its manifest has faults.
pub fn inspect(path: &Path) -> Result<Manifest, LoadError> {
    PolicyFile::read(path, super::limits::Limits::default().file_bytes)?.manifest()
}

/// Everything that loading does, up to a trial start with `init`. Looks nothing up.
///
/// # Errors
/// As [`super::Engine::load`].
pub fn check(source: &PolicySource) -> Result<Manifest, LoadError> {
    let shared = EngineShared::new(Arc::new(NoLookup)).map_err(|error| LoadError::Engine {
        name: source.name.clone(),
        detail: format!("{error:#}"),
    })?;
    let file = PolicyFile::read(&source.path, source.limits.file_bytes)?;
    Ok(Prepared::new(&shared, source, &file)?
        .compiled
        .manifest
        .clone())
}

impl PolicyFile {
    /// Reads `path`, at most `limit` bytes.
    pub fn read(path: &Path, limit: u64) -> Result<Self, LoadError> {
        let failed = |error| LoadError::Read {
            path: path.to_owned(),
            error,
        };
        // Opening a FIFO would wait for a writer.
        if !path.metadata().map_err(failed)?.is_file() {
            return Err(LoadError::NotAFile {
                path: path.to_owned(),
            });
        }
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let mut bytes = Vec::with_capacity(size.min(limit) as usize);
        file.take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > limit {
            let bytes = size.max(bytes.len() as u64);
            return Err(LoadError::TooLarge {
                path: path.to_owned(),
                bytes,
                limit,
            });
        }
        let digits = Sha256::digest(&bytes)
            .into_iter()
            .flat_map(|byte| [byte >> 4, byte & 15]);
        let sha256 = digits
            .filter_map(|digit| char::from_digit(digit.into(), 16))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            bytes,
            sha256,
        })
    }

    /// The manifest, checked.
    pub fn manifest(&self) -> Result<Manifest, LoadError> {
        let path = || self.path.clone();
        if !self.bytes.starts_with(b"\0asm") {
            return Err(LoadError::NotWasm { path: path() });
        }
        let text = self
            .section()?
            .ok_or_else(|| LoadError::NoManifest { path: path() })?;
        // A newer manifest may hold what this agent does not know: that is the wrong complaint.
        if let Some(policy) = Manifest::abi_of(text)
            && policy > ABI_VERSION
        {
            return Err(LoadError::Abi {
                path: path(),
                policy,
                agent: ABI_VERSION,
            });
        }
        Manifest::parse(text).map_err(|faults| LoadError::Manifest {
            path: path(),
            faults,
        })
    }

    fn section(&self) -> Result<Option<&[u8]>, LoadError> {
        let malformed = |detail: String| LoadError::Malformed {
            path: self.path.clone(),
            detail,
        };
        let mut found: Option<&[u8]> = None;
        let mut outermost = true;
        for payload in Parser::new(0).parse_all(&self.bytes) {
            match payload.map_err(|error| malformed(error.to_string()))? {
                Payload::Version { encoding, .. } => {
                    if outermost && encoding == Encoding::Module {
                        return Err(LoadError::CoreModule {
                            path: self.path.clone(),
                        });
                    }
                    outermost = false;
                }
                Payload::CustomSection(section) if section.name() == SECTION => {
                    if found.is_some_and(|other| other != section.data()) {
                        return Err(malformed("it holds two different manifests".to_owned()));
                    }
                    found = Some(section.data());
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

impl Compiled {
    /// Checks and compiles the policy in `path`, at most `limit` bytes. For use without an
    /// [`super::Engine`]: replay, benchmarks.
    ///
    /// # Errors
    /// The file is no policy for this agent.
    pub fn load(shared: &EngineShared, path: &Path, limit: u64) -> Result<Self, LoadError> {
        let file = PolicyFile::read(path, limit)?;
        let manifest = file.manifest()?;
        Self::new(shared, &file, manifest)
    }

    fn new(
        shared: &EngineShared,
        file: &PolicyFile,
        manifest: Manifest,
    ) -> Result<Self, LoadError> {
        let component = shared.component(&file.bytes).map_err(|fault| match fault {
            Fault::Policy(detail) => LoadError::Malformed {
                path: file.path.clone(),
                detail: tidy(&detail, DETAIL_BYTES),
            },
            Fault::Compiler(detail) => LoadError::Compiler {
                path: file.path.clone(),
                detail: tidy(&detail, DETAIL_BYTES),
            },
        })?;
        let faults = world_faults(shared, &component);
        if !faults.is_empty() {
            return Err(LoadError::World {
                path: file.path.clone(),
                faults,
            });
        }
        let pre = shared
            .linker
            .instantiate_pre(&component)
            .and_then(PolicyPre::new);
        let pre = pre.map_err(|error| LoadError::World {
            path: file.path.clone(),
            faults: vec![tidy(&format!("{error:#}"), DETAIL_BYTES)],
        })?;
        Ok(Self {
            pre,
            manifest,
            sha256: file.sha256.clone(),
        })
    }
}

/// How the component differs from the world, by name.
fn world_faults(shared: &EngineShared, component: &Component) -> Vec<String> {
    let component = component.component_type();
    let mut faults = Vec::new();
    for (name, _) in component.imports(&shared.engine) {
        let (interface, version) = name.split_once('@').unwrap_or((name, ""));
        if !IMPORTS.contains(&interface) {
            let hint = if name.starts_with("wasi:") {
                " (policies have no WASI)"
            } else {
                ""
            };
            let name = tidy(name, 200);
            faults.push(format!(
                "it imports {name}, which the agent does not offer{hint}"
            ));
        } else if !version.starts_with(IMPORT_VERSION) {
            let name = tidy(name, 200);
            faults.push(format!(
                "it imports {name}, the agent has version {IMPORT_VERSION}x"
            ));
        }
    }
    let mut missing: BTreeSet<&str> = EXPORTS.into();
    let mut others = Vec::new();
    for (name, item) in component.exports(&shared.engine) {
        let function = matches!(item.ty, ComponentItem::ComponentFunc(_));
        if !(function && missing.remove(name)) {
            others.push(tidy(name, 200));
        }
    }
    if !missing.is_empty() {
        let missing: Vec<_> = missing.into_iter().collect();
        faults.push(format!("it does not export {}", missing.join(", ")));
        if !others.is_empty() {
            others.truncate(8);
            faults.push(format!("it exports {} instead", others.join(", ")));
        }
    }
    faults
}

/// A policy that was checked against the operator's configuration and has started once.
pub(super) struct Prepared {
    pub compiled: Arc<Compiled>,
    pub settings: Arc<Settings>,
    pub instance: Instance,
}

impl Prepared {
    /// Checks, compiles and starts `source`, whose file was read before.
    pub fn new(
        shared: &Arc<EngineShared>,
        source: &PolicySource,
        file: &PolicyFile,
    ) -> Result<Self, LoadError> {
        let name = &source.name;
        let manifest = file.manifest()?;
        if let Some(asked) = manifest.strongest_power()
            && asked > source.max_power
        {
            let granted = source.max_power;
            return Err(LoadError::Power {
                name: name.clone(),
                asked,
                granted,
            });
        }
        let settings =
            resolve(&manifest, &source.settings).map_err(|faults| LoadError::Settings {
                name: name.clone(),
                faults,
            })?;
        let compiled = Compiled::new(shared, file, manifest)?;
        let instance = Instance::new(shared, &source.name, &compiled, &settings, &source.limits);
        let instance = instance.map_err(|error| match error {
            StartError::World(detail) => LoadError::World {
                path: source.path.clone(),
                faults: vec![detail],
            },
            StartError::Instantiate(strike) => LoadError::Instantiate {
                name: name.clone(),
                detail: strike.to_string(),
            },
            StartError::Refused(detail) => LoadError::Init {
                name: name.clone(),
                detail,
            },
            StartError::Init(strike) => LoadError::Init {
                name: name.clone(),
                detail: strike.to_string(),
            },
        })?;
        Ok(Self {
            compiled: Arc::new(compiled),
            settings: Arc::new(settings),
            instance,
        })
    }
}
