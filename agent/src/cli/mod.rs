//! The command line: one file a subcommand.

pub mod audit;
pub mod demo;
pub mod doctor;
mod leases;
mod policy;
mod record;
mod replay;
mod run;
mod status;
pub mod style;
mod top;

use crate::config::{self, Config};
use crate::control;
use crate::exit;
use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use std::io::{self, Write};
use std::path::PathBuf;

const AFTER_HELP: &str = "\
Examples:
  palisade doctor                              what this host allows, and what to do about the rest
  palisade demo                                see it work, in under a minute, leaving nothing behind
  palisade run --config /etc/palisade/palisade.toml     guard this host
  palisade status                              what the running agent is doing
  palisade top                                 what every workload is doing, live
  palisade audit tail -f                       follow its decisions
  palisade disarm                              kill switch: undo everything, act on nothing

Exit codes: 0 done · 1 failed · 2 command line · 3 configuration · 4 policy refused · 5 no permission or the
kernel lacks something · 6 another agent runs, or none · 7 audit log not intact · 8 built without eBPF programs";

/// The guardrail agent for hosts that serve AI models.
#[derive(Debug, Parser)]
#[command(name = "palisade", version, after_help = AFTER_HELP, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    paths: Paths,
    #[command(subcommand)]
    command: Command,
}

/// Where the agent keeps things. Every command finds them the same way.
#[derive(Clone, Debug, Args)]
pub struct Paths {
    /// Configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = config::DEFAULT_CONFIG_FILE)]
    config: PathBuf,
    /// Folder of the control socket, the lock and the lease journal [default: the configuration's, else /run/palisade].
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Folder of the audit log [default: the configuration's, else /var/lib/palisade].
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl Paths {
    /// The folders: by option, else by the configuration file, else the defaults. Looks at nothing else in
    /// the file, so that the log can be read beside a faulty one.
    pub fn resolve(&self) -> Result<config::Paths> {
        let mut paths = if self.config.exists() {
            config::Paths::load(&self.config).map_err(|error| exit::coded(exit::CONFIG, error))?
        } else {
            config::Paths::default()
        };
        if let Some(dir) = &self.run_dir {
            paths.run_dir.clone_from(dir);
        }
        if let Some(dir) = &self.state_dir {
            paths.state_dir.clone_from(dir);
        }
        Ok(paths)
    }

    /// The whole configuration, with the options on top.
    pub fn load(&self) -> Result<Config> {
        let mut config =
            Config::load(&self.config).map_err(|error| exit::coded(exit::CONFIG, error))?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        config.paths = self.resolve()?;
        Ok(config)
    }

    /// The configuration without a look at this host: its cgroups and devices may be another's.
    pub fn load_without_host(&self) -> Result<Config> {
        Config::load_for(&self.config, None).map_err(|error| exit::coded(exit::CONFIG, error))
    }

    /// Asks the running agent.
    pub fn call(&self, request: &control::Request) -> Result<serde_json::Value> {
        let answer = control::call(&self.resolve()?.socket(), request).map_err(|error| {
            let code = match error {
                control::ControlError::NoAgent { .. } => exit::AGENT,
                control::ControlError::Denied { .. } => exit::KERNEL,
                _ => exit::FAILED,
            };
            exit::coded(code, error)
        })?;
        match answer {
            control::Response::Ok(value) => Ok(value),
            control::Response::Error(failure) => {
                let code = if failure.code == control::ErrorCode::Refused {
                    exit::POLICY
                } else {
                    exit::FAILED
                };
                Err(exit::coded(code, failure))
            }
        }
    }
}

/// Runs what prints to standard output. `palisade audit list | head`: a reader that had enough is no error.
fn printing(print: impl FnOnce(&mut dyn Write) -> Result<u8>) -> Result<u8> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let result = print(&mut out).and_then(|code| {
        out.flush()?;
        Ok(code)
    });
    match result {
        Err(error)
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) =>
        {
            Ok(exit::OK)
        }
        other => other,
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Guard this host: load policies, attach sensors, act.
    Run(run::RunArgs),
    /// What this kernel and host allow, what is missing, what to do.
    Doctor(doctor::DoctorArgs),
    /// Watch it work on this very kernel; leaves nothing behind.
    Demo(demo::DemoArgs),
    /// What the running agent is doing.
    Status(status::StatusArgs),
    /// Metrics per workload, live: CPU waits, requests, driver, model loads.
    Top(top::TopArgs),
    /// List, check or reload policies.
    Policy(policy::PolicyArgs),
    /// Review the audit log.
    Audit(audit::AuditArgs),
    /// List or release leases, with or without a running agent.
    Leases(leases::LeasesArgs),
    /// Kill switch: undo every lease and act on nothing until `arm`.
    Disarm,
    /// Let the agent act again.
    Arm,
    /// Record what the sensors see; loads no policy, acts on nothing.
    Record(record::RecordArgs),
    /// Run policies over a recording and print their decisions.
    Replay(replay::ReplayArgs),
}

/// Runs the command and returns its exit code.
pub fn run(cli: &Cli) -> Result<u8> {
    match &cli.command {
        Command::Run(args) => run::run(args, &cli.paths),
        Command::Doctor(args) => doctor::run(args, &cli.paths),
        Command::Demo(args) => demo::run(args),
        Command::Status(args) => status::run(args, &cli.paths),
        Command::Top(args) => top::run(args, &cli.paths),
        Command::Policy(args) => policy::run(args, &cli.paths),
        Command::Audit(args) => audit::run(args, &cli.paths.resolve()?.audit_dir()),
        Command::Leases(args) => leases::run(args, &cli.paths),
        Command::Disarm => status::disarm(&cli.paths, true),
        Command::Arm => status::disarm(&cli.paths, false),
        Command::Record(args) => record::run(args, &cli.paths),
        Command::Replay(args) => replay::run(args, &cli.paths),
    }
}
