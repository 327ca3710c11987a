//! Compiling a policy in a process of its own: the compiler's memory, and the pages of its code, go with it.
//!
//! Invariants:
//! - The agent never holds the compiler: its engine is set up without one.
//! - What comes back was made by this very binary, with the same settings, of the bytes that were sent, over a
//!   pipe that nobody else has. It is code that will run: nothing else may be taken for it.
//! - A file that the compiler fails on, or does not come to an end with, is refused; the agent goes on.

use super::engine;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// The hidden subcommand of the `palisade` binary.
pub const SUBCOMMAND: &str = "compile";
/// CPU time that it may take, seconds.
const CPU_SECONDS: u64 = 60;
/// Address space that it may take, bytes.
const ADDRESS_SPACE: u64 = 4 << 30;
/// Exit code where it says why a policy cannot be compiled; its standard output is the reason.
const REFUSED: u8 = 3;

/// The agent's side: compiles `wasm` with `program`, a binary that ends up in [`main`].
pub(super) fn compile(program: &Path, wasm: &[u8]) -> Result<Vec<u8>, String> {
    let failed = |error: io::Error| format!("the compiler could not be run: {error}");
    let mut child = Command::new(program)
        .arg(SUBCOMMAND)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    // It reads to the end before it writes: neither waits for the other. One that ended early shows below.
    let sent = child.stdin.take().map(|mut stdin| stdin.write_all(wasm));
    let mut output = Vec::new();
    let read = child
        .stdout
        .take()
        .map(|mut stdout| stdout.read_to_end(&mut output));
    let status = child.wait().map_err(failed)?;
    if status.code() == Some(i32::from(REFUSED)) {
        return Err(String::from_utf8_lossy(&output).into_owned());
    }
    match (sent, read) {
        _ if !status.success() => Err(format!("the compiler ended with {status}")),
        (Some(Ok(())), Some(Ok(_))) => Ok(output),
        (Some(Err(error)), _) | (_, Some(Err(error))) => Err(failed(error)),
        (None, _) | (_, None) => Err("no pipe to the compiler".to_owned()),
    }
}

/// The compiler's side: from standard input to standard output.
pub fn main() -> ExitCode {
    for (resource, most) in [(Resource::Cpu, CPU_SECONDS), (Resource::As, ADDRESS_SPACE)] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        // A lower limit that is there already is as good.
        let _ = setrlimit(resource, limit);
    }
    let mut wasm = Vec::new();
    if io::stdin().read_to_end(&mut wasm).is_err() {
        return ExitCode::from(2);
    }
    let (output, code) = match engine::compile(&wasm) {
        Ok(code) => (code, ExitCode::SUCCESS),
        Err(error) => (format!("{error:#}").into_bytes(), ExitCode::from(REFUSED)),
    };
    let mut stdout = io::stdout().lock();
    match stdout.write_all(&output).and_then(|()| stdout.flush()) {
        Ok(()) => code,
        Err(_) => ExitCode::from(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_that_is_not_there_or_fails_is_an_error_and_not_code() {
        let no = |program: &str| compile(Path::new(program), b"\0asm").expect_err("no compiler");
        assert!(no("/nonexistent").contains("could not be run"));
        assert!(no("/bin/false").contains("ended with exit status: 1"));
    }
}
