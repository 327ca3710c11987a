//! Why a policy was not taken.

use palisade_core::Power;
use std::path::PathBuf;

/// A policy was refused. Every variant says which file or setting and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read policy {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The path leads to a folder, a device or the like.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is larger than a policy may be.
    #[error("{path} has {bytes} bytes; a policy may have {limit}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The file does not begin like WebAssembly.
    #[error("{path} is not WebAssembly (it does not begin with the bytes \\0asm)")]
    NotWasm {
        /// The file.
        path: PathBuf,
    },
    /// A core module: what the compiler made, not yet made a component.
    #[error(
        "{path} is a core WebAssembly module, not a component: run `./x build` or \
         `palisade policy build` to make a component of it"
    )]
    CoreModule {
        /// The file.
        path: PathBuf,
    },
    /// WebAssembly, but damaged or using what is switched off here.
    #[error("{path} is not a valid component: {detail}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the validator says.
        detail: String,
    },
    /// The process that compiles did not bring it to an end.
    #[error("{path} could not be compiled: {detail}")]
    Compiler {
        /// The file.
        path: PathBuf,
        /// What happened to it.
        detail: String,
    },
    /// No custom section with the manifest.
    #[error(
        "{path} has no manifest (custom section `palisade:manifest`): is `policy.toml` beside \
         its Cargo.toml, and does the policy use the SDK's export macro?"
    )]
    NoManifest {
        /// The file.
        path: PathBuf,
    },
    /// The manifest has faults; all of them.
    #[error("the manifest of {path} has faults:{}", list(faults))]
    Manifest {
        /// The file.
        path: PathBuf,
        /// One sentence each.
        faults: Vec<String>,
    },
    /// A component, but not for the world `palisade:policy/policy`.
    #[error("{path} is not a Palisade policy:{}", list(faults))]
    World {
        /// The file.
        path: PathBuf,
        /// What is missing, foreign or of another type.
        faults: Vec<String>,
    },
    /// The policy was built for a newer agent.
    #[error(
        "{path} was built for version {policy} of the policy ABI; this agent has versions 1 to \
         {agent}: update the agent, or build the policy with an older SDK"
    )]
    Abi {
        /// The file.
        path: PathBuf,
        /// What the manifest says.
        policy: u32,
        /// What this agent has.
        agent: u32,
    },
    /// The policy asks for more than the operator grants.
    #[error(
        "policy {name} asks for the power `{}`, the operator grants up to `{}`: raise `power` in \
         [policies.{name}] or take a milder policy",
        power_name(*asked), power_name(*granted)
    )]
    Power {
        /// Name from the configuration.
        name: String,
        /// The strongest power asked for.
        asked: Power,
        /// The strongest power granted.
        granted: Power,
    },
    /// The operator's settings do not fit the policy; all faults.
    #[error("the settings of policy {name} have faults:{}", list(faults))]
    Settings {
        /// Name from the configuration.
        name: String,
        /// One sentence each.
        faults: Vec<String>,
    },
    /// The component could not be instantiated.
    #[error("policy {name} cannot be started: {detail}")]
    Instantiate {
        /// Name from the configuration.
        name: String,
        /// Why.
        detail: String,
    },
    /// The policy's `init` said no, or misbehaved.
    #[error("policy {name} refused to start: {detail}")]
    Init {
        /// Name from the configuration.
        name: String,
        /// In the policy's own words, or the strike.
        detail: String,
    },
    /// The new version could not take over the old one's state; the old one goes on.
    #[error("the new version of policy {name} did not take over the state: {detail}")]
    Restore {
        /// Name from the configuration.
        name: String,
        /// In the policy's own words, or the strike.
        detail: String,
    },
    /// There is a policy of that name already.
    #[error("a policy named {name} is loaded already")]
    AlreadyLoaded {
        /// The name.
        name: String,
    },
    /// There is no policy of that name.
    #[error("no policy named {name} is loaded")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The new version is ready, but the policy has not come to the swap in time.
    #[error("policy {name} is busy: the new version takes over when it has caught up")]
    Busy {
        /// Name from the configuration.
        name: String,
    },
    /// The engine or a thread could not be started.
    #[error("the policy engine cannot run policy {name}: {detail}")]
    Engine {
        /// Name from the configuration.
        name: String,
        /// Why.
        detail: String,
    },
}

/// Name of a power, as in manifests and in the configuration.
pub fn power_name(power: Power) -> &'static str {
    match power {
        Power::Alert => "alert",
        Power::Throttle => "throttle",
        Power::Freeze => "freeze",
        Power::Signal => "signal",
        Power::Kill => "kill",
    }
}

/// Every power, mildest first.
pub const POWERS: [Power; 5] = [
    Power::Alert,
    Power::Throttle,
    Power::Freeze,
    Power::Signal,
    Power::Kill,
];

fn list(faults: &[String]) -> String {
    use std::fmt::Write;
    match faults {
        [one] => format!(" {one}"),
        many => many.iter().fold(String::new(), |mut text, fault| {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n  - {fault}");
            text
        }),
    }
}
