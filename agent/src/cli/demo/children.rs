//! The demo's child processes: the workloads and the agent under it.
//!
//! Invariants:
//! - Every process started here is ended and waited for here, at the latest on drop.
//! - Children sit in a process group of their own: Ctrl-C reaches the demo alone, which ends
//!   them in order. If the demo is killed, the workload binary ties each of them to it.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// How often a child that was asked to end is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A line that a workload printed.
#[derive(Clone, Debug)]
pub(super) struct Said {
    /// Which workload.
    pub(super) name: &'static str,
    /// What.
    pub(super) value: Value,
}

/// A child that does not outlive this value.
#[derive(Debug)]
pub(super) struct Offspring {
    name: &'static str,
    child: Child,
    status: Option<ExitStatus>,
}

impl Offspring {
    /// Starts it. Its JSON lines go to `lines`, if there is somebody to read them.
    pub(super) fn start(
        name: &'static str,
        mut command: Command,
        lines: Option<Sender<Said>>,
    ) -> io::Result<Self> {
        command.process_group(0).stdin(Stdio::null());
        if lines.is_some() {
            command.stdout(Stdio::piped());
        }
        let mut child = command.spawn()?;
        if let Some((lines, stdout)) = lines.zip(child.stdout.take()) {
            // Ends with the child, whose exit closes the pipe.
            std::thread::Builder::new()
                .name(format!("demo-{name}"))
                .spawn(move || relay(name, stdout, &lines))?;
        }
        Ok(Self {
            name,
            child,
            status: None,
        })
    }

    /// As named at the start.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// SIGTERM, without waiting: a throttled process may take a while to get to its end.
    pub(super) fn ask_to_end(&mut self) {
        if self.ended().is_none() {
            // Not waited for yet, so the pid is still this child's.
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        }
    }

    /// SIGTERM, and SIGKILL if it has not ended within the time given.
    pub(super) fn end(&mut self, within: Duration) -> Option<ExitStatus> {
        self.ask_to_end();
        if self.status.is_none() {
            let deadline = Instant::now() + within;
            while self.ended().is_none() && Instant::now() < deadline {
                std::thread::sleep(LOOK_EVERY);
            }
            if self.ended().is_none() {
                let _ = self.child.kill();
                self.status = self.child.wait().ok();
            }
        }
        self.status
    }
}

impl Drop for Offspring {
    fn drop(&mut self) {
        self.end(Duration::from_secs(2));
    }
}

fn relay(name: &'static str, stdout: ChildStdout, lines: &Sender<Said>) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { return };
        let Ok(value) = serde_json::from_str(&line) else {
            continue;
        };
        if lines.send(Said { name, value }).is_err() {
            return;
        }
    }
}
