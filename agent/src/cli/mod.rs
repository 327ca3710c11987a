//! The command line: one file a subcommand.

pub mod audit;
pub mod demo;
pub mod doctor;
pub mod exit;
mod leases;
mod policy;
mod replay;
mod run;
mod status;
pub mod style;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use std::path::{Path, PathBuf};

const AFTER_HELP: &str = "\
Examples:
  palisade doctor                              what this host allows, and what to do about the rest
  palisade demo                                see it work, in under a minute, leaving nothing behind
  palisade run --config /etc/palisade.toml     guard this host
  palisade status                              what the running agent is doing
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
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/palisade.toml")]
    config: PathBuf,
    /// Folder of the control socket, the lock and the lease journal [default: the configuration's, else /run/palisade].
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Folder of the audit log [default: the configuration's, else /var/lib/palisade].
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl Paths {
    /// The run folder: by option, else by the configuration file, else the default.
    pub fn run_dir(&self) -> PathBuf {
        self.folder(self.run_dir.as_deref(), "run_dir", "/run/palisade")
    }

    /// The audit folder: by option, else by the configuration file, else the default.
    pub fn audit_dir(&self) -> PathBuf {
        self.folder(self.state_dir.as_deref(), "state_dir", "/var/lib/palisade").join("audit")
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("control.sock")
    }

    /// Reads one key without judging the rest: looking at the log must work beside a faulty file.
    fn folder(&self, option: Option<&Path>, key: &str, default: &str) -> PathBuf {
        option.map(Path::to_path_buf).unwrap_or_else(|| {
            std::fs::read_to_string(&self.config)
                .ok()
                .and_then(|text| text.parse::<toml::Table>().ok())
                .and_then(|table| Some(PathBuf::from(table.get(key)?.as_str()?)))
                .unwrap_or_else(|| PathBuf::from(default))
        })
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
    /// Run policies over a recording and print their decisions.
    Replay(replay::ReplayArgs),
    /// Undoes leases when the agent dies. Started by the agent.
    #[command(hide = true)]
    Keeper(leases::KeeperArgs),
}

/// Runs the command and returns its exit code.
pub fn run(cli: &Cli) -> Result<u8> {
    match &cli.command {
        Command::Run(args) => run::run(args, &cli.paths),
        Command::Doctor(args) => doctor::run(args, &cli.paths),
        Command::Demo(args) => demo::run(args),
        Command::Status(args) => status::run(args, &cli.paths),
        Command::Policy(args) => policy::run(args, &cli.paths),
        Command::Audit(args) => audit::run(args, &cli.paths.audit_dir()),
        Command::Leases(args) => leases::run(args, &cli.paths),
        Command::Disarm => status::disarm(&cli.paths, true),
        Command::Arm => status::disarm(&cli.paths, false),
        Command::Replay(args) => replay::run(args, &cli.paths),
        Command::Keeper(args) => leases::keeper(args),
    }
}
