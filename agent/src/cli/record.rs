//! `palisade record`: what the sensors see, into a file.

use super::style::{Style, escape};
use super::{Paths, exit};
use crate::config::{Config, DEFAULT_CONFIG_FILE, units};
use crate::identity::ScopeRoots;
use crate::recording::{DEFAULT_MAX_BYTES, Destination, LEAST_MAX_BYTES};
use crate::replay::kind_name;
use crate::runtime::record::{self, RecordOptions, Recorded};
use crate::sensors::WatchedProcesses;
use anyhow::Result;
use clap::Args;
use palisade_abi::Kind;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const AFTER_HELP: &str = "\
Examples:
  palisade record --for 60s                               the whole host, into palisade.arrows
  palisade record --cgroup /ml --output ml.arrows         one cgroup and what is below, until Ctrl-C
  palisade record --kinds exec,exit,sample-gpu --for 5m   only these kinds
  palisade record --for 8h --max-size 20GiB               let the file become larger than 4GiB
  palisade record --for 10s --json | jq .kinds            for scripts
  palisade replay ml.arrows --summary                     what is in it

It reads the configuration's [watch], [[devices]] and [limits], if there is one, and may run beside the agent.
The file opens in pyarrow and DuckDB: see docs/recordings.md.";

/// Only on demand: kinds with a record for every call, and the one whose hooks cost every user of the CUDA
/// library microseconds a call, watched or not.
const ON_DEMAND: &[Kind] = &[Kind::Mmap, Kind::Munmap, Kind::GpuEnter, Kind::SampleCuda];

/// Options of `record`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct RecordArgs {
    /// How long, like 60s or 5m [default: until Ctrl-C].
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    limit: Option<Duration>,
    /// The file; an existing one is kept under this name with `.old` behind it.
    #[arg(long, short, value_name = "FILE", default_value = "palisade.arrows")]
    output: PathBuf,
    /// How large the file may become, like 512MiB; then the recording ends [default: 4GiB].
    #[arg(long, value_name = "SIZE", value_parser = max_size)]
    max_size: Option<u64>,
    /// Kinds of record, with commas between, or `all` [default: all but mmap, munmap, gpu-enter and sample-cuda].
    #[arg(long, value_name = "KINDS", value_parser = kinds)]
    kinds: Option<u64>,
    /// A cgroup to watch with all that is below it, like /ml; may be given again [default: the configuration's].
    #[arg(long, value_name = "PATH", value_parser = cgroup)]
    cgroup: Vec<String>,
    /// Sampling window [default: the configuration's].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    window: Option<Duration>,
    /// Only a JSON object at the end.
    #[arg(long)]
    json: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let time =
        units::duration(text).map_err(|error| format!("{}: {}", error.message, error.help))?;
    if time.is_zero() {
        return Err("it must be longer than nothing".to_owned());
    }
    Ok(time)
}

/// A largest size of a recording.
pub(super) fn max_size(text: &str) -> Result<u64, String> {
    let bytes = units::size(text).map_err(|error| format!("{}: {}", error.message, error.help))?;
    if bytes < LEAST_MAX_BYTES {
        let least = units::show_size(LEAST_MAX_BYTES);
        return Err(format!("a recording needs at least {least}"));
    }
    Ok(bytes)
}

/// Every kind that can be subscribed to: the rest comes by itself.
fn choice() -> impl Iterator<Item = Kind> {
    let own = [Kind::Lost, Kind::FileName, Kind::Absent];
    Kind::ALL
        .iter()
        .copied()
        .filter(move |kind| !own.contains(kind))
}

fn bits(kinds: impl Iterator<Item = Kind>) -> u64 {
    kinds.fold(0, |bits, kind| bits | kind.bit())
}

fn kinds(text: &str) -> Result<u64, String> {
    if text == "all" {
        return Ok(bits(choice()));
    }
    text.split(',').try_fold(0, |bits, name| {
        let kind = choice().find(|kind| kind.name() == name.trim());
        let known = || choice().map(Kind::name).collect::<Vec<_>>().join(", ");
        kind.map(|kind| bits | kind.bit())
            .ok_or_else(|| format!("`{name}` is no kind of record; there are: {}", known()))
    })
}

fn cgroup(text: &str) -> Result<String, String> {
    let tidy = text.starts_with('/') && !text.split('/').any(|part| part == "." || part == "..");
    if !tidy || text.starts_with("/sys/fs/cgroup") {
        return Err(
            "give the path below the mount point, as in /proc/PID/cgroup, like /ml".to_owned(),
        );
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    Ok(format!("/{}", parts.join("/")))
}

pub(super) fn run(args: &RecordArgs, paths: &Paths) -> Result<u8> {
    super::run::start_logging();
    // Without a configuration the whole host is recorded.
    let mut config = if paths.config == Path::new(DEFAULT_CONFIG_FILE) && !paths.config.exists() {
        Config::default_with(paths.resolve()?)
    } else {
        paths.load()?
    };
    if !args.cgroup.is_empty() {
        config.watch.scope = ScopeRoots::Below(args.cgroup.clone());
        config.watch.containers.clear();
        config.watch.processes = WatchedProcesses::default();
    }
    if let Some(window) = args.window {
        config.watch.window = window;
    }
    if !rustix::process::geteuid().is_root() {
        return Err(exit::coded(
            exit::KERNEL,
            "loading eBPF programs needs root; run: sudo palisade record",
        ));
    }
    let default = || bits(choice().filter(|kind| !ON_DEMAND.contains(kind)));
    let options = RecordOptions {
        output: Destination {
            path: args.output.clone(),
            max_bytes: args.max_size.unwrap_or(DEFAULT_MAX_BYTES),
        },
        kinds: args.kinds.unwrap_or_else(default),
        limit: args.limit,
    };
    let mut screen = Screen::new(!args.json);
    let recorded = record::record(&config, &options, &mut |state| screen.show(state))?;
    screen.clear();
    for missing in recorded.report.missing() {
        tracing::warn!("not to be had here: {missing}; to see more: palisade doctor");
    }
    if args.json {
        println!("{}", as_json(&options.output, &recorded));
    } else {
        print(&args.output, &recorded);
    }
    if recorded.progress.full {
        eprintln!("palisade: {}", full(&options.output, &recorded));
    }
    Ok(exit::OK)
}

/// Progress on one line of the terminal.
struct Screen {
    on: bool,
}

impl Screen {
    fn new(wanted: bool) -> Self {
        Self {
            on: wanted && std::io::stderr().is_terminal(),
        }
    }

    fn show(&mut self, state: &Recorded) {
        if self.on {
            // A terminal that is gone is no reason to stop.
            let _ = write!(
                std::io::stderr(),
                "\r\x1b[K{:.1} s  {} records  {}  lost {}  (Ctrl-C ends it)",
                state.elapsed.as_secs_f64(),
                state.progress.records,
                size(state.progress.bytes),
                state.lost.saturating_add(state.progress.lost),
            );
        }
    }

    fn clear(&mut self) {
        if self.on {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn size(bytes: u64) -> String {
    if bytes < 1 << 20 {
        format!("{:.1} KiB", bytes as f64 / 1024.0)
    } else {
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
    }
}

fn names(kinds: &BTreeMap<u16, u64>) -> BTreeMap<String, u64> {
    kinds
        .iter()
        .map(|(kind, count)| (kind_name(*kind), *count))
        .collect()
}

/// That it ended because the file was full, and what would make it longer.
fn full(output: &Destination, recorded: &Recorded) -> String {
    format!(
        "{} is full at {}: the recording ended in order after {:.0} s; for a longer one: --max-size {}",
        escape(&output.path.to_string_lossy()),
        units::show_size(output.max_bytes),
        recorded.elapsed.as_secs_f64(),
        units::show_size(output.max_bytes.saturating_mul(2)),
    )
}

fn as_json(output: &Destination, recorded: &Recorded) -> serde_json::Value {
    json!({
        "file": output.path.to_string_lossy(),
        "seconds": recorded.elapsed.as_secs_f64(),
        "batches": recorded.progress.batches,
        "records": recorded.progress.records,
        "bytes": recorded.progress.bytes,
        "max_bytes": output.max_bytes,
        "full": recorded.progress.full,
        "lost_in_kernel": recorded.lost,
        "lost_to_recording": recorded.progress.lost,
        "kinds": names(&recorded.kinds),
    })
}

fn print(output: &Path, recorded: &Recorded) {
    let mut table = super::style::Table::new(&["KIND", "RECORDS"]);
    for (kind, count) in names(&recorded.kinds) {
        table.row([(kind, None), (count.to_string(), None)]);
    }
    print!("{}", table.render(Style::of_stdout()));
    println!(
        "{} records in {:.1} s, {}, lost {} in the kernel and {} on the way to the disk",
        recorded.progress.records,
        recorded.elapsed.as_secs_f64(),
        size(recorded.progress.bytes),
        recorded.lost,
        recorded.progress.lost,
    );
    let file = escape(&output.to_string_lossy());
    println!("{file}: look at it with `palisade replay {file} --summary`, pyarrow or DuckDB");
}

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;
    use clap::Parser;

    #[test]
    fn kinds_are_named_as_in_manifests() {
        assert_eq!(kinds("exec"), Ok(Kind::Exec.bit()));
        assert_eq!(kinds("exec, exit"), Ok(Kind::Exec.bit() | Kind::Exit.bit()));
        let all = kinds("all").unwrap_or(0);
        assert!(ON_DEMAND.iter().all(|kind| all & kind.bit() != 0));
        assert_eq!(all & Kind::Lost.bit(), 0);
        let error = kinds("exec,exe").unwrap_err();
        assert!(
            error.contains("`exe`") && error.contains("model-open"),
            "{error}"
        );
    }

    #[test]
    fn a_largest_size_is_one_that_a_recording_can_have() {
        let parsed = |arguments: &[&str]| {
            let arguments = ["palisade"].iter().chain(arguments);
            Cli::try_parse_from(arguments).map(|_| ())
        };
        for good in [&["record", "--max-size", "2GiB"][..], &["record"]] {
            assert!(parsed(good).is_ok(), "{good:?}");
        }
        let run = ["run", "--max-size", "512MiB", "--record", "x"];
        assert!(parsed(&run).is_ok() && parsed(&["run"]).is_ok());
        for (wrong, help) in [
            ("4GB", "write \"4GiB\""),
            ("4", "add one of B, KiB"),
            ("0GiB", "a recording needs at least 64KiB"),
            ("lots", "a number and a unit"),
        ] {
            for command in [&["record"][..], &["run", "--record", "x"]] {
                let error = parsed(&[command, &["--max-size", wrong]].concat()).unwrap_err();
                let said = error.to_string();
                assert_eq!(error.exit_code(), i32::from(exit::USAGE), "{said}");
                let first = said.lines().next().unwrap_or_default();
                assert!(
                    first.contains(help) && first.contains("--max-size"),
                    "{said}"
                );
            }
        }
        let alone = parsed(&["run", "--max-size", "1GiB"]).unwrap_err();
        assert_eq!(alone.exit_code(), i32::from(exit::USAGE));
        assert!(alone.to_string().contains("--record"), "{alone}");
        // As the help says.
        assert_eq!(max_size("4GiB"), Ok(DEFAULT_MAX_BYTES));
    }

    #[test]
    fn a_full_file_is_no_failure_and_the_line_says_what_makes_it_longer() {
        let output = Destination {
            path: "ml.arrows".into(),
            max_bytes: 512 << 20,
        };
        let recorded = Recorded {
            elapsed: Duration::from_secs(90),
            ..Recorded::default()
        };
        assert_eq!(
            full(&output, &recorded),
            "ml.arrows is full at 512MiB: the recording ended in order after 90 s; for a longer one: --max-size 1GiB"
        );
    }

    #[test]
    fn cgroups_are_paths_below_the_mount_point() {
        assert_eq!(cgroup("/ml//a/"), Ok("/ml/a".to_owned()));
        assert_eq!(cgroup("/"), Ok("/".to_owned()));
        for wrong in ["ml", "/a/../b", "/sys/fs/cgroup/ml", ""] {
            assert!(cgroup(wrong).is_err(), "{wrong}");
        }
    }
}
