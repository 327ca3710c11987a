//! The keeper: a tiny process that undoes what is in force when the agent is gone.
//!
//! Invariants:
//! - It acts on entries of its own agent's run only, so it never undoes what a later agent did.
//! - It acts when the agent is dead, or when a lease is past its deadline by [`OVERDUE_NS`]
//!   (the agent hangs). A clean stop tells it to go.
//! - It holds none of the agent's descriptors, is in a session of its own, blocks all signals,
//!   and has one thread.
//!
//! The agent's life is the write end of a pipe that only the agent holds: it closes when the last
//! thread of the agent is gone, so no write of the agent can come after the keeper's undo. What
//! SIGKILLs every process of the agent's cgroup at once (`systemctl kill -s KILL`, an OOM kill of
//! the group) ends the keeper too; then the next start of the agent finds the leases in the journal.
//!
//! What it did goes to `keeper.log` (JSON lines, [`Note`]) for the next agent's audit log.

use super::journal::{self, Entry, JournalError};
use super::restore::{is_final, restore};
use crate::boot_clock::now_ns;
use nix::sys::signal::SigSet;
use palisade_core::{ActOutcome, Lease};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The hidden subcommand of the `palisade` binary.
pub const SUBCOMMAND: &str = "keeper";
/// How far past its deadline a lease must be before the keeper takes the agent for hung. More than
/// the journal's renewal step.
pub const OVERDUE_NS: u64 = 5_000_000_000;
/// How often it looks for overdue leases.
const LOOK_NS: i64 = 1_000_000_000;
/// Tries per entry after the agent's death, and the pause between them.
const TRIES: u32 = 5;
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// Longest wait for a new keeper to report that it is ready.
const READY_WAIT: Duration = Duration::from_secs(5);
/// Why it acted, as in [`Note::why`].
const OVERDUE: &str = "overdue";
const AGENT_DIED: &str = "agent died";
/// Longest wait for a dismissed keeper to end.
const GO_WAIT: Duration = Duration::from_secs(2);
/// Lowest number of the pipe's descriptor; below the usual soft limit of 1,024.
const LIFE_FD: i32 = 1000;
/// Sent by the agent on a clean stop.
const GO: u8 = b'q';
/// Sent by the keeper when it watches.
const READY: u8 = b'r';

/// One line of `keeper.log`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// Version of this format: 1.
    pub format: u32,
    /// `CLOCK_BOOTTIME` nanoseconds.
    pub time_ns: u64,
    /// The run of the agent that had set it.
    pub run: String,
    /// "agent died" or "overdue".
    pub why: String,
    /// What was undone.
    pub lease: Lease,
    /// How that went.
    pub outcome: ActOutcome,
    /// From the moment that the keeper learned of it to the end of the undo, microseconds.
    pub after_us: u64,
}

/// The agent's side: a running keeper. Dropping it without [`Keeper::dismiss`] is to the keeper
/// like the agent's death: what is in force is undone.
#[derive(Debug)]
pub struct Keeper {
    program: PathBuf,
    dir: PathBuf,
    run: String,
    child: Child,
    life: File,
}

impl Keeper {
    /// Starts this very binary as `palisade keeper DIR RUN` and waits until it watches. To be
    /// called before the first lease.
    pub fn spawn(journal: &journal::Journal) -> io::Result<Self> {
        Self::spawn_program(Path::new("/proc/self/exe"), journal.dir(), journal.run())
    }

    /// The same with another program that ends up in [`main`].
    pub fn spawn_program(program: &Path, dir: &Path, run: &str) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg(SUBCOMMAND)
            .arg(dir)
            .arg(run)
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (Some(life), Some(ready)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("no pipe to the keeper"));
        };
        let life = closed_first(life)?;
        let mut answer = [0u8; 1];
        let seen = wait_readable(&ready, READY_WAIT)?;
        let mut ready = ready;
        if !seen || ready.read(&mut answer)? != 1 || answer[0] != READY {
            drop(life);
            // Ours, by handle, and not yet waited for: its pid cannot have been reused.
            let _ = child.kill();
            let status = child.wait()?;
            return Err(io::Error::other(format!(
                "the keeper did not start: {status}"
            )));
        }
        Ok(Self {
            program: program.to_owned(),
            dir: dir.to_owned(),
            run: run.to_owned(),
            child,
            life,
        })
    }

    /// Its pid, for status and for the protect list.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Starts another one if it does not run any more. `true` if that was needed.
    pub fn ensure(&mut self) -> io::Result<bool> {
        if self.alive() {
            return Ok(false);
        }
        *self = Self::spawn_program(&self.program, &self.dir, &self.run)?;
        Ok(true)
    }

    /// The clean stop: the agent has undone its leases, or leaves them to the next agent. Waits for
    /// the keeper's end, [`io::ErrorKind::TimedOut`] if that does not come.
    pub fn dismiss(mut self) -> io::Result<()> {
        match self.life.write_all(&[GO]) {
            // It is gone already.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            other => other?,
        }
        drop(self.life);
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            if start.elapsed() >= GO_WAIT {
                return Err(io::Error::from(io::ErrorKind::TimedOut));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Moves the pipe to a high descriptor. At a process's end the kernel releases its files in the
/// reverse of the order of their numbers (the work queue of a task is a stack), and detaching eBPF
/// programs takes tens of milliseconds: the keeper is not to wait for that.
fn closed_first(life: ChildStdin) -> io::Result<File> {
    Ok(File::from(rustix::io::fcntl_dupfd_cloexec(life, LIFE_FD)?))
}

/// The keeper's side; `args` are those after the subcommand. To be called first in `main`, before a
/// thread is started or a file is opened (open descriptors are closed). Runs until the agent is
/// gone or says go. Exit code 0 unless it could not even begin (2) or could not undo everything (1).
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let (Some(dir), Some(run), None) = (args.next(), args.next(), args.next()) else {
        return ExitCode::from(2);
    };
    // Blocked, not handled: a SIGTERM to the agent's group must not end the keeper before it.
    if SigSet::all().thread_block().is_err() {
        return ExitCode::from(2);
    }
    close_inherited();
    be_unobtrusive();
    let mut stdout = io::stdout();
    if stdout
        .write_all(&[READY])
        .and_then(|()| stdout.flush())
        .is_err()
    {
        return ExitCode::from(2);
    }
    watch(&PathBuf::from(dir), &run.to_string_lossy())
}

/// Closes what the agent itself inherited without close-on-exec (a service manager's sockets, a
/// shell's redirections): the keeper must not keep those open after the agent's death.
fn close_inherited() {
    let Ok(list) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let inherited: Vec<i32> = list
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for fd in inherited {
        // The listing's own descriptor is in the list too, and is closed by now.
        if fd <= 2 || fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_err() {
            continue;
        }
        // SAFETY: needed because nobody owns an inherited descriptor, so there is nothing to drop.
        // Sound because the keeper is at its start, has one thread, and has opened nothing that it
        // still holds: no owned descriptor has this number.
        unsafe { rustix::io::close(fd) };
    }
}

/// Its own session and name, first in line for the CPU, last in line for the OOM killer. All of
/// it helps, none of it is needed, so failures are ignored.
fn be_unobtrusive() {
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"palisade-keeper");
    let _ = rustix::process::setpriority_process(None, -10);
    let _ = fs::write("/proc/self/oom_score_adj", "-900");
}

/// Inode, size and time of change of the journal file (`None`: it is missing), and the earliest
/// deadline in it.
type Seen = (Option<(u64, u64, i64)>, Option<u64>);

fn watch(dir: &Path, run: &str) -> ExitCode {
    let stdin = io::stdin();
    let mut seen: Option<Seen> = None;
    loop {
        match agent_state(&stdin) {
            Life::Runs => {
                // Only a file that changed can have new leases; old ones become overdue by time.
                let stamp = fs::metadata(journal::path(dir))
                    .ok()
                    .map(|m| (m.ino(), m.len(), m.mtime_nsec()));
                let deadline = match seen {
                    Some((known, deadline)) if known == stamp => deadline,
                    _ => earliest_deadline(dir, run),
                };
                seen = Some((stamp, deadline));
                if deadline.is_some_and(|until| is_overdue(until, now_ns())) {
                    // Failures show at the next look, which comes as long as it is overdue.
                    let _ = undo_all(dir, run, OVERDUE, |e| {
                        is_overdue(e.lease.until_ns, now_ns())
                    });
                    seen = None;
                }
            }
            Life::SaidGo => return ExitCode::SUCCESS,
            Life::Gone => {
                return match undo_all(dir, run, AGENT_DIED, |_| true) {
                    Ok(true) => ExitCode::SUCCESS,
                    Ok(false) | Err(_) => ExitCode::FAILURE,
                };
            }
        }
    }
}

fn is_overdue(until_ns: u64, now_ns: u64) -> bool {
    now_ns > until_ns.saturating_add(OVERDUE_NS)
}

enum Life {
    Runs,
    SaidGo,
    Gone,
}

/// Waits for news of the agent, at most one look's time.
fn agent_state(stdin: &io::Stdin) -> Life {
    let timeout = Timespec {
        tv_sec: LOOK_NS / 1_000_000_000,
        tv_nsec: LOOK_NS % 1_000_000_000,
    };
    match poll(&mut [PollFd::new(stdin, PollFlags::IN)], Some(&timeout)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => Life::Runs,
        Ok(_) => {
            let mut byte = [0u8; 1];
            match rustix::io::read(stdin, &mut byte) {
                Ok(1) if byte[0] == GO => Life::SaidGo,
                Ok(1) | Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Life::Runs,
                // End of file: nobody holds the other end any more.
                Ok(_) | Err(_) => Life::Gone,
            }
        }
        Err(_) => Life::Gone,
    }
}

fn earliest_deadline(dir: &Path, run: &str) -> Option<u64> {
    let boot = journal::boot_id().ok()?;
    let loaded = journal::load(dir, &boot).ok()?;
    loaded
        .entries
        .iter()
        .filter(|(owner, _)| owner == run)
        .map(|(_, entry)| entry.lease.until_ns)
        .min()
}

/// Undoes this run's entries that `which` picks, newest first. `Ok(true)` if all of them ended.
fn undo_all(
    dir: &Path,
    run: &str,
    why: &str,
    which: impl Fn(&Entry) -> bool,
) -> Result<bool, JournalError> {
    let start = Instant::now();
    let _lock = journal::lock(dir)?;
    let loaded = journal::load(dir, &journal::boot_id()?)?;
    let mut all = true;
    for (owner, entry) in loaded.entries.iter().rev() {
        if owner != run || !which(entry) {
            continue;
        }
        let mut outcome = restore(entry, None);
        for _ in 1..TRIES {
            if is_final(&outcome) {
                break;
            }
            std::thread::sleep(TRY_AGAIN);
            outcome = restore(entry, None);
        }
        if is_final(&outcome) {
            // If this cannot be written, the next start looks again and finds it as it was.
            let _ = journal::mark_undone(dir, run, entry.lease.id, why);
        } else {
            all = false;
            if why == OVERDUE {
                // Tried again at the next look; a note each second would fill the disk.
                continue;
            }
        }
        let note = Note {
            format: 1,
            time_ns: now_ns(),
            run: run.to_owned(),
            why: why.to_owned(),
            lease: entry.lease.clone(),
            outcome,
            after_us: start.elapsed().as_micros() as u64,
        };
        // Nobody is left to be told of a full disk.
        let _ = append_note(dir, &note);
    }
    Ok(all)
}

fn append_note(dir: &Path, note: &Note) -> io::Result<()> {
    let mut line = serde_json::to_vec(note)?;
    line.push(b'\n');
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(log_path(dir))?
        .write_all(&line)
}

fn log_path(dir: &Path) -> PathBuf {
    dir.join("keeper.log")
}

/// What keepers did since the log was last cleared, oldest first; lines that cannot be read are
/// skipped.
pub fn read_log(dir: &Path) -> io::Result<Vec<Note>> {
    match fs::read_to_string(log_path(dir)) {
        Ok(text) => Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// To be called once the notes are in the audit log.
pub fn clear_log(dir: &Path) -> io::Result<()> {
    match fs::remove_file(log_path(dir)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn wait_readable(fd: &impl std::os::fd::AsFd, wait: Duration) -> io::Result<bool> {
    let timeout = Timespec {
        tv_sec: wait.as_secs() as i64,
        tv_nsec: wait.subsec_nanos().into(),
    };
    let ready = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout))?;
    Ok(ready > 0)
}
