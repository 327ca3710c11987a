//! Starting the `load` program: it says when it is ready, works whenever it is told to, says what it made, and
//! stays until it is let go, so that its start and its end fall into nobody's measurement.

use super::yardstick::InYardsticks;
use crate::{TestCgroup, Ward, binaries};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

/// What a load made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Made {
    /// Things made: calls, round trips, requests, processes.
    pub made: u64,
    /// Time that it took, seconds.
    pub seconds: f64,
    /// Median latency of one, nanoseconds; 0 where it is not measured.
    pub p50_ns: u64,
    /// 99th percentile, nanoseconds; 0 where it is not measured.
    pub p99_ns: u64,
    /// What each cost in the server's own work.
    pub yardsticks: InYardsticks,
}

impl Made {
    /// Things a second.
    pub fn rate(&self) -> f64 {
        self.made as f64 / self.seconds.max(1e-9)
    }
}

/// A load that waits or works.
#[derive(Debug)]
pub struct Load {
    ward: Ward,
    say: Option<ChildStdin>,
    hear: BufReader<ChildStdout>,
}

impl Load {
    /// Starts `load ARGUMENTS` in a cgroup and waits until it is ready.
    pub fn start(cgroup: &TestCgroup, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(binaries().join("load"));
        command.args(arguments);
        Self::of(cgroup, command)
    }

    /// The same with another program that keeps to the same words.
    pub fn of(cgroup: &TestCgroup, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        cgroup.enter(&mut command);
        let mut ward = Ward::start(&mut command)?;
        let say = ward.0.stdin.take();
        let out = ward.0.stdout.take().context("no standard output")?;
        let mut load = Self {
            ward,
            say,
            hear: BufReader::new(out),
        };
        let word = load.line()?;
        if !word.starts_with("ready") {
            bail!("{command:?} says {word:?} instead of being ready");
        }
        Ok(load)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.ward.pid()
    }

    /// The next line that it says.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.hear.read_line(&mut line)?;
        if line.is_empty() {
            bail!("a load ended early: {:?}", self.ward.0.wait());
        }
        Ok(line.trim().to_owned())
    }

    /// Lets it work for as long as its arguments say.
    pub fn go(&mut self) -> Result<()> {
        self.say("go\n")
    }

    /// Lets it work for so long.
    pub fn go_for(&mut self, seconds: f64) -> Result<()> {
        self.say(&format!("go {seconds}\n"))
    }

    fn say(&mut self, words: &str) -> Result<()> {
        let say = self.say.as_mut().context("it was let go")?;
        Ok(say.write_all(words.as_bytes())?)
    }

    /// Waits until it has worked.
    pub fn made(&mut self) -> Result<Made> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("a load says {line:?}"))
    }

    /// Lets it end, and waits for that.
    pub fn finish(mut self) -> Result<()> {
        self.say = None;
        let status = self.ward.0.wait()?;
        if !status.success() {
            bail!("a load ended with {status}");
        }
        Ok(())
    }
}
