//! The compiler's side: from standard input to standard output, within limits, and gone with its parent.

use super::super::engine;
use super::{REFUSED, UNFIT};
use crate::exit;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit,
};
use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;

/// CPU time that it may take, seconds.
const CPU_SECONDS: u64 = super::WAIT.as_secs();
/// Address space that it may take, bytes. Policies of 180 KB took 61 MiB.
const ADDRESS_SPACE: u64 = 2 << 30;
/// When memory is short it is the first to go, not the agent, whose score it inherits.
const OOM_SCORE: &str = "1000";

/// To be called first in `main`; `arguments` are those after the subcommand, and there are none.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    if arguments.next().is_some() || io::stdin().is_terminal() || io::stdout().is_terminal() {
        eprintln!(
            "palisade: `{}` is for the agent itself; to check a policy: palisade policy check FILE",
            super::SUBCOMMAND
        );
        return ExitCode::from(exit::USAGE);
    }
    if let Err(error) = begin() {
        return answer(error.to_string().as_bytes(), UNFIT);
    }
    let mut wasm = Vec::new();
    if let Err(error) = io::stdin().read_to_end(&mut wasm) {
        return answer(error.to_string().as_bytes(), UNFIT);
    }
    match engine::compile(&wasm) {
        Ok(code) => answer(&code, exit::OK),
        Err(error) => answer(format!("{error:#}").as_bytes(), REFUSED),
    }
}

fn answer(text: &[u8], code: u8) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::from(code),
        Err(_) => ExitCode::from(exit::FAILED),
    }
}

fn begin() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have ended before that: then nobody reads.
    let stdout = io::stdout();
    let mut reader = [PollFd::new(&stdout, PollFlags::empty())];
    poll(&mut reader, Some(&Timespec::default()))?;
    if reader[0].revents().contains(PollFlags::ERR) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    let file = "/proc/self/oom_score_adj";
    std::fs::write(file, OOM_SCORE).map_err(|error| named(file, &error))?;
    limit(Resource::Core, "RLIMIT_CORE", 0)?;
    limit(Resource::Cpu, "RLIMIT_CPU", CPU_SECONDS)?;
    limit(Resource::As, "RLIMIT_AS", ADDRESS_SPACE)
}

/// Not above what there is already.
fn limit(resource: Resource, name: &str, most: u64) -> io::Result<()> {
    let most = getrlimit(resource)
        .maximum
        .map_or(most, |maximum| maximum.min(most));
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(resource, limit).map_err(|error| named(name, &error.into()))
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
