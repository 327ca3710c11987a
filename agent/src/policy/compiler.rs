//! Compiling a policy in a process of its own: the compiler's memory, and the pages of its code, go with it.
//!
//! Invariants:
//! - The agent never holds the compiler: its engine is set up without one.
//! - What comes back was made by this very binary, with the same settings, of the bytes that were sent, over a
//!   pipe that nobody else has. It is code that will run: nothing else may be taken for it.
//! - A file that the compiler fails on, or does not come to an end with, is refused; the agent goes on.
//! - No compiler outlives the call that started it, and none holds up a stop.

mod child;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub use child::main;

/// The hidden subcommand of the `palisade` binary.
pub const SUBCOMMAND: &str = "compile";
/// How long a compiler may take. Policies of 180 KB took up to 2.1 s on a loaded host, with an unoptimised build; the
/// rest is for larger ones and for emulated hosts.
pub(super) const WAIT: Duration = Duration::from_secs(30);
/// Machine code that it may answer with, bytes: 16 times the largest file. Policies became 3 times as large.
const MAX_CODE: usize = 128 << 20;
/// Exit code where it says why a policy cannot be compiled; its standard output is the reason.
const REFUSED: u8 = 3;
/// Exit code where it says why it cannot begin, likewise.
const UNFIT: u8 = 4;

/// Why there is no code.
#[derive(Debug)]
pub(super) enum Fault {
    /// What is wrong with the policy.
    Policy(String),
    /// What happened to the compiler.
    Compiler(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Compiler(format!("the compiler could not be run: {error}"))
    }
}

impl From<Errno> for Fault {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// The agent's side.
#[derive(Debug)]
pub(super) struct Compiler {
    /// A binary that ends up in [`main`].
    program: PathBuf,
    wait: Duration,
    /// Readable for ever once it is to stop.
    stop: OwnedFd,
}

impl Compiler {
    pub fn new(program: PathBuf, wait: Duration) -> io::Result<Self> {
        Ok(Self {
            program,
            wait,
            stop: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Ends what is compiled now, and whatever is asked for later.
    pub fn stop(&self) {
        // A full counter is as readable.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }

    /// The machine code of `wasm`.
    pub fn compile(&self, wasm: &[u8]) -> Result<Vec<u8>, Fault> {
        let begun = Instant::now();
        let mut child = Started(
            Command::new(&self.program)
                .arg(SUBCOMMAND)
                .current_dir("/")
                .env_clear()
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()?,
        );
        let output = self.talk(&mut child.0, wasm, begun)?;
        let status = child.0.wait()?;
        verdict(status, output)
    }

    /// Sends it `wasm` and returns its answer once it has ended.
    fn talk(&self, child: &mut Child, wasm: &[u8], begun: Instant) -> Result<Vec<u8>, Fault> {
        let no_pid = || Errno::SRCH;
        let pid = Pid::from_raw(child.id().cast_signed()).ok_or_else(no_pid)?;
        let end = pidfd_open(pid, PidfdFlags::empty())?;
        let (mut stdin, mut stdout) = (child.stdin.take(), child.stdout.take());
        if let (Some(stdin), Some(stdout)) = (&stdin, &stdout) {
            never_wait(stdin)?;
            never_wait(stdout)?;
        }
        let (mut unsent, mut output) = (wasm, Vec::new());
        loop {
            let left = self.wait.saturating_sub(begun.elapsed());
            let mut fds = vec![
                PollFd::new(&self.stop, PollFlags::IN),
                PollFd::new(&end, PollFlags::IN),
            ];
            fds.extend(stdin.iter().map(|fd| PollFd::new(fd, PollFlags::OUT)));
            fds.extend(stdout.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
            let timeout = Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let told = |fd: usize| fds.get(fd).is_some_and(|fd| !fd.revents().is_empty());
            let (stopped, ended) = (told(0), told(1));
            if stopped {
                let text = "the agent stops; the compiler was killed";
                return Err(Fault::Compiler(text.to_owned()));
            }
            // One that does not read to the end says so by its exit code, or its answer is not code.
            stdin = stdin.filter(|stdin| send(stdin, &mut unsent));
            if let Some(from) = &mut stdout
                && !receive(from, &mut output)?
            {
                stdout = None;
            }
            // Looked at before what it had written was read.
            if ended {
                return Ok(output);
            }
            if left.is_zero() {
                let wait = self.wait.as_secs_f64();
                let text = format!("the compiler had not ended after {wait} s and was killed");
                return Err(Fault::Compiler(text));
            }
        }
    }
}

/// What an answer means, by how the compiler ended.
fn verdict(status: ExitStatus, output: Vec<u8>) -> Result<Vec<u8>, Fault> {
    let said = || String::from_utf8_lossy(&output).into_owned();
    match status.code().map(u8::try_from) {
        Some(Ok(0)) => Ok(output),
        Some(Ok(REFUSED)) => Err(Fault::Policy(said())),
        Some(Ok(UNFIT)) => Err(Fault::Compiler(format!(
            "the compiler could not begin: {}",
            said()
        ))),
        _ => Err(Fault::Compiler(format!("the compiler ended with {status}"))),
    }
}

/// Kills and buries the compiler, unless it has been waited for.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // Ours, by handle: once it was waited for, the standard library kills nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn never_wait(fd: impl AsFd) -> Result<(), Errno> {
    let flags = fcntl_getfl(&fd)?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK)
}

/// Writes what the pipe takes; `false` if there is nothing left to write, or nobody who reads.
fn send(mut to: impl Write, unsent: &mut &[u8]) -> bool {
    while !unsent.is_empty() {
        match to.write(unsent) {
            Ok(sent) => *unsent = unsent.get(sent..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    false
}

/// Reads what is there; `false` at its end.
fn receive(from: impl Read, output: &mut Vec<u8>) -> Result<bool, Fault> {
    let room = (MAX_CODE + 1).saturating_sub(output.len());
    let more = match from.take(room as u64).read_to_end(output) {
        Ok(_) => false,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
        Err(error) => return Err(error.into()),
    };
    if output.len() > MAX_CODE {
        let text = format!("the compiler answered with more than {MAX_CODE} bytes and was killed");
        return Err(Fault::Compiler(text));
    }
    Ok(more)
}
