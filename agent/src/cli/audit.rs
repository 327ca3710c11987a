//! `palisade audit`: reading and checking the log, with or without a running agent.
//!
//! Invariants: never writes to the log; what it prints of a record is escaped; a verdict is
//! never better than what `verify` found.

mod words;

use super::style::{Style, ago};
use crate::audit::{self, Filter, Follow, Head, Record, Report, Status, VerifyOptions, clock};
use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Exit code of `verify` for a log that is not intact.
const NOT_INTACT: u8 = 7;

/// Read and check the audit log.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  palisade audit tail -f                                 what happens now
  palisade audit list --since \"2h ago\" --verdict refused   what was refused, and why
  palisade audit list --action freeze --target /ml/job-7 --json
  palisade audit explain 4711                            the whole story of one record
  palisade audit head > /elsewhere/head                  keep the end of the log off this host
  palisade audit verify --head-file /elsewhere/head      nothing was changed or cut since

Times: \"10m\", \"2h ago\", 2026-11-22T23:30:00Z. Piped output is one line a record; --json prints
the lines of the log themselves.
Exit codes: 0 intact, or nothing found wrong; 7 the log is not intact; 1 it cannot be read.")]
pub struct AuditArgs {
    /// Read the log in this directory instead of the configured one
    #[arg(long, global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Print JSON: the log's own lines, or a report as one object
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// Show the latest records
    Tail {
        /// How many
        #[arg(short = 'n', long, default_value_t = 20, value_name = "N")]
        lines: usize,
        /// Go on as the log grows, until interrupted
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        which: Which,
    },
    /// Show the records that match, oldest first
    List {
        #[command(flatten)]
        which: Which,
        /// So many at most
        #[arg(short = 'n', long, value_name = "N")]
        limit: Option<usize>,
        /// Newest first
        #[arg(short, long)]
        reverse: bool,
    },
    /// Show all fields of one record
    Show {
        /// Its number
        seq: u64,
    },
    /// Tell the whole story that a record belongs to: why, what, how it went, how it was undone
    Explain {
        /// Number of any record of the story
        seq: u64,
    },
    /// Check that nothing was changed, removed, reordered or cut
    Verify {
        /// A head that was kept elsewhere (from `palisade audit head`)
        #[arg(long, value_name = "SEQ:HASH", conflicts_with = "head_file")]
        head: Option<Head>,
        /// A file that holds such a head
        #[arg(long, value_name = "FILE")]
        head_file: Option<PathBuf>,
        /// Public key of the checkpoints, kept elsewhere [default: checkpoint.pub of the log]
        #[arg(long, value_name = "FILE")]
        public_key: Option<PathBuf>,
        /// Old segments were moved away on purpose
        #[arg(long)]
        allow_pruned: bool,
    },
    /// Print the end of the log as SEQ:HASH, to be kept elsewhere
    Head,
}

/// Which records.
#[derive(Args, Clone, Debug, Default)]
struct Which {
    /// Not before this time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// About this policy
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// About this pid, or a cgroup, executable or container whose name contains this
    #[arg(long, value_name = "PID|TEXT")]
    target: Option<String>,
    /// About this action: alert, cpu-weight, cpu-quota, freeze, terminate, kill
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// With this verdict or result: granted, observed, refused, renewed, done, failed, gone, …
    #[arg(long, visible_alias = "outcome", value_name = "WORD")]
    verdict: Option<String>,
    /// Of this kind: decision, intent, outcome, renew, undo-intent, policy, loss, note, … (may be repeated)
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<String>,
}

impl Which {
    fn filter(&self) -> anyhow::Result<Filter> {
        let now = clock::wall_ns();
        let when = |text: &Option<String>, flag: &str| {
            text.as_deref()
                .map(|t| clock::parse_when(t, now).map_err(|e| anyhow!("{flag}: {e}")))
                .transpose()
        };
        Ok(Filter {
            since_ns: when(&self.since, "--since")?,
            until_ns: when(&self.until, "--until")?,
            policy: self.policy.clone(),
            target: self.target.clone(),
            action: self.action.clone(),
            outcome: self.verdict.clone(),
            kinds: self.kinds.clone(),
            limit: None,
            reverse: false,
        })
    }
}

/// Runs the command on the log in `dir` (unless `--dir` names another); returns the exit code.
///
/// # Errors
/// If there is no log, it cannot be read, or an argument makes no sense. The message says what
/// to try next.
pub fn run(args: &AuditArgs, dir: &Path) -> anyhow::Result<u8> {
    let dir = args.dir.as_deref().unwrap_or(dir);
    let style = Style::of_stdout();
    super::printing(|out| dispatch(args, dir, style, out))
}

fn dispatch(args: &AuditArgs, dir: &Path, style: Style, out: &mut dyn Write) -> anyhow::Result<u8> {
    let json = args.json;
    match &args.command {
        Command::Tail {
            lines,
            follow,
            which,
        } => {
            let filter = which.filter()?;
            let newest = Filter {
                reverse: true,
                limit: Some(*lines),
                ..filter.clone()
            };
            let records = audit::read(dir, &newest);
            let mut records = match records {
                // Nothing yet: --follow waits for it.
                Err(audit::AuditError::NoLog { .. }) if *follow => Vec::new(),
                other => other.map_err(|e| hint(e, dir))?,
            };
            records.reverse();
            if *follow {
                return tail(dir, &filter, &records, json, style, out);
            }
            print(out, &records, json, style)?;
        }
        Command::List {
            which,
            limit,
            reverse,
        } => {
            let filter = Filter {
                limit: *limit,
                reverse: *reverse,
                ..which.filter()?
            };
            let records = audit::read(dir, &filter).map_err(|e| hint(e, dir))?;
            print(out, &records, json, style)?;
            if records.is_empty() && style.terminal && !json {
                writeln!(
                    out,
                    "No record matches. Without filters: palisade audit tail"
                )?;
            }
        }
        Command::Show { seq } => {
            let record = audit::find(dir, *seq).map_err(|e| hint(e, dir))?;
            if json || !style.terminal {
                writeln!(out, "{}", record.line)?;
            } else {
                write!(out, "{}", words::fields(&record, style))?;
            }
        }
        Command::Explain { seq } => {
            let story = audit::story(dir, *seq).map_err(|e| hint(e, dir))?;
            if json {
                print(out, &story.records, true, style)?;
            } else {
                write!(out, "{}", words::story(&story, style, clock::wall_ns()))?;
            }
        }
        Command::Verify {
            head,
            head_file,
            public_key,
            allow_pruned,
        } => {
            let head = match head_file {
                Some(path) => Some(read_head(path)?),
                None => *head,
            };
            let options = VerifyOptions {
                head,
                public_key: public_key.clone(),
                allow_pruned: *allow_pruned,
            };
            return verify(dir, &options, json, style, out);
        }
        Command::Head => {
            let head = audit::head(dir).map_err(|e| hint(e, dir))?;
            if json {
                writeln!(
                    out,
                    "{}",
                    serde_json::json!({ "seq": head.seq, "hash": head.hash.to_string() })
                )?;
            } else {
                writeln!(out, "{head}")?;
            }
        }
    }
    Ok(0)
}

fn print(out: &mut dyn Write, records: &[Record], json: bool, style: Style) -> io::Result<()> {
    if json {
        for record in records {
            writeln!(out, "{}", record.line)?;
        }
        return Ok(());
    }
    if records.is_empty() {
        return Ok(());
    }
    write!(out, "{}", words::table(records, style, true))
}

fn tail(
    dir: &Path,
    filter: &Filter,
    latest: &[Record],
    json: bool,
    style: Style,
    out: &mut dyn Write,
) -> anyhow::Result<u8> {
    const POLL: Duration = Duration::from_millis(100);
    print(out, latest, json, style)?;
    out.flush()?;
    let after = latest.last().map_or_else(
        // Nothing matched so far: go on from the present end.
        || audit::head(dir).map_or(0, |head| head.seq),
        |last| last.seq,
    );
    let mut follow = Follow::after(dir, after);
    loop {
        let new: Vec<Record> = follow
            .poll()?
            .into_iter()
            .filter(|record| filter.takes(record))
            .collect();
        if json {
            print(out, &new, true, style)?;
        } else {
            write!(out, "{}", words::table(&new, style, false))?;
        }
        out.flush()?;
        if new.is_empty() {
            std::thread::sleep(POLL);
        }
    }
}

fn verify(
    dir: &Path,
    options: &VerifyOptions,
    json: bool,
    style: Style,
    out: &mut dyn Write,
) -> anyhow::Result<u8> {
    let started = Instant::now();
    let mut told = started;
    let loud = io::stderr().is_terminal();
    let mut progress = |bytes: u64| {
        if loud && told.elapsed() > Duration::from_millis(500) && started.elapsed().as_secs() >= 1 {
            told = Instant::now();
            eprint!("\r{} MiB read", bytes >> 20);
        }
    };
    let report = audit::verify_with_progress(dir, options, &mut progress);
    if loud && started.elapsed().as_secs() >= 1 {
        eprint!("\r\u{1b}[K");
    }
    let report = report.map_err(|e| hint(e, dir))?;
    if json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        write!(out, "{}", words::report(&report, options, style))?;
    }
    Ok(code(&report))
}

fn code(report: &Report) -> u8 {
    match report.status {
        Status::Intact | Status::Unanchored { .. } => 0,
        Status::Broken => NOT_INTACT,
    }
}

fn read_head(path: &Path) -> anyhow::Result<Head> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the head in {}", path.display()))?;
    text.parse()
        .map_err(|e: String| anyhow!("{}: {e}", path.display()))
}

fn hint(error: audit::AuditError, dir: &Path) -> anyhow::Error {
    let next = match &error {
        audit::AuditError::NoLog { .. } => {
            "has an agent run here? (palisade status; another place: --dir DIR)".to_owned()
        }
        audit::AuditError::NoRecord { .. } => "see the latest: palisade audit tail".to_owned(),
        audit::AuditError::Io { source, .. }
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            format!("only root may read {}: try sudo", dir.display())
        }
        _ => return error.into(),
    };
    anyhow!("{error}; {next}")
}

/// How long ago a record was written, for people.
fn age(record: &Record, now_ns: u64) -> String {
    ago(record.time_ns(), now_ns)
}
