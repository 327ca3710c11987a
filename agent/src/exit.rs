//! Exit codes, documented in `palisade --help` and docs/cli.md.

/// Done.
pub const OK: u8 = 0;
/// Failed for a reason that none of the others names.
pub const FAILED: u8 = 1;
/// The command line is wrong (clap's own code).
pub const USAGE: u8 = 2;
/// The configuration is wrong.
pub const CONFIG: u8 = 3;
/// A policy was refused.
pub const POLICY: u8 = 4;
/// No permission, or the kernel lacks something.
pub const KERNEL: u8 = 5;
/// Another agent is running, or none is where one is needed.
pub const AGENT: u8 = 6;
/// The audit log is not intact.
pub const AUDIT: u8 = 7;
/// Built without the eBPF object.
pub const NO_OBJECT: u8 = 8;

/// An error that knows its exit code.
#[derive(Debug)]
pub struct Coded {
    /// One of the constants of this module.
    pub code: u8,
    /// What happened and what to do next.
    pub message: String,
}

impl std::fmt::Display for Coded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Coded {}

/// An error with that code.
pub fn coded(code: u8, message: impl std::fmt::Display) -> anyhow::Error {
    Coded {
        code,
        message: message.to_string(),
    }
    .into()
}

/// The code of an error: the innermost [`Coded`], else [`FAILED`].
pub fn of(error: &anyhow::Error) -> u8 {
    error
        .downcast_ref::<Coded>()
        .map_or(FAILED, |coded| coded.code)
}
