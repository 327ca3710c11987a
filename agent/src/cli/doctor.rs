//! `palisade doctor`: what this kernel and host allow, what is missing, what to do.
//!
//! Invariant: it leaves no folder, file or program behind. Every hook is attached for a moment with
//! nobody watched (which mounts tracefs where it is not), and detached again; the rest only looks.
//! Whatever is not in order comes with a remedy.

mod host;
mod sensing;
mod signals;

use super::Paths;
use super::exit;
use super::style::{Colour, Style};
use crate::config::Config;
use crate::identity::layout::{Flavour, Layout};
use crate::sensors::{SignalReport, capabilities};
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use std::io::Write;
use std::path::Path;

/// Arguments of `palisade doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// How it stands with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// In order.
    Ok,
    /// Something will not work, but the agent will.
    Warn,
    /// The agent cannot do its work.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is about.
    pub name: String,
    /// How it stands.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do; present unless it is in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    /// In order.
    pub fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            status: Status::Ok,
            detail: detail.into(),
            remedy: None,
        }
    }

    /// Something will not work.
    pub fn warn(
        name: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            status: Status::Warn,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// The agent cannot do its work.
    pub fn missing(
        name: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Missing,
            ..Self::warn(name, detail, remedy)
        }
    }
}

/// Runs the command: 0 if the agent can work, 5 if something essential is missing, 8 if that is
/// only the eBPF object.
pub fn run(args: &DoctorArgs, paths: &Paths) -> Result<u8> {
    let (checks, signals) = look(paths);
    let mut out = std::io::stdout().lock();
    if args.json {
        let verdict = verdict(&checks);
        let report =
            serde_json::json!({ "verdict": verdict, "checks": checks, "signals": signals });
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        let style = Style::of_stdout();
        if !signals.is_empty() {
            writeln!(out, "{}", signals::table(&signals, style))?;
        }
        out.write_all(table(&checks, style).as_bytes())?;
    }
    Ok(exit_code(&checks))
}

/// Everything that there is to look at, and every signal with its hooks if they could be tried.
fn look(paths: &Paths) -> (Vec<Check>, Vec<SignalReport>) {
    let layout = Layout::detect();
    let cgroup_v2 = layout
        .as_ref()
        .is_ok_and(|layout| layout.flavour == Flavour::V2);
    let object = crate::ebpf_object::embedded();
    // As the agent would be run; a faulty file is told below.
    let sensors = Config::load(&paths.config).ok().map(|it| it.sensors);
    let (avoid, library) = sensors.map_or_else(Default::default, |it| (it.avoid, it.cuda_library));
    let found = capabilities(object, cgroup_v2, &avoid, library.as_deref());
    let signals = match &found.trial {
        Some(Ok(report)) => report.signals(),
        _ => Vec::new(),
    };
    let mut checks = sensing::checks(&found, object.map(<[u8]>::len));
    checks.extend(host::processes());
    checks.extend(host::cgroups(&layout));
    checks.push(host::pressure());
    checks.push(host::gpus());
    checks.push(configuration(&paths.config));
    // A faulty file has been told; the options and defaults still say where to look.
    let folders = paths.resolve().unwrap_or_default();
    checks.push(host::folder("run folder", &folders.run_dir));
    checks.push(host::folder("state folder", &folders.state_dir));
    checks.push(host::agent(&folders.socket()));
    (checks, signals)
}

fn configuration(file: &Path) -> Check {
    let name = "configuration";
    if !file.exists() {
        return Check::warn(
            name,
            format!("there is no {}", file.display()),
            "install examples/palisade.toml there and its policies beside it (see README.md), or \
             name another file with --config",
        );
    }
    match Config::load(file) {
        Ok(config) => Check::ok(
            name,
            format!("{}, {} policies", file.display(), config.policies.len()),
        ),
        Err(errors) => Check::missing(
            name,
            format!("{} has {} fault(s)", file.display(), errors.faults.len()),
            errors.faults.first().map_or_else(String::new, |fault| {
                format!("line {}: {}", fault.line, fault.message)
            }),
        ),
    }
}

fn verdict(checks: &[Check]) -> &'static str {
    match checks.iter().map(|check| check.status).max() {
        Some(Status::Missing) => "unable",
        Some(Status::Warn) => "limited",
        Some(Status::Ok) | None => "ready",
    }
}

fn exit_code(checks: &[Check]) -> u8 {
    let mut missing = checks
        .iter()
        .filter(|check| check.status == Status::Missing)
        .peekable();
    if missing.peek().is_none() {
        return exit::OK;
    }
    if missing.all(|check| check.name == sensing::OBJECT) {
        return exit::NO_OBJECT;
    }
    exit::KERNEL
}

/// For a person.
fn table(checks: &[Check], style: Style) -> String {
    let width = checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    let mut lines = Vec::new();
    for check in checks {
        let (mark, colour) = match check.status {
            Status::Ok => ("ok     ", Colour::Green),
            Status::Warn => ("warn   ", Colour::Yellow),
            Status::Missing => ("MISSING", Colour::Red),
        };
        let mark = style.paint(colour, mark);
        lines.push(format!("{mark}  {:width$}  {}", check.name, check.detail));
        if let Some(remedy) = &check.remedy {
            lines.push(format!("         {:width$}  -> {remedy}", ""));
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (missing, warnings) = (count(Status::Missing), count(Status::Warn));
    lines.push(String::new());
    lines.push(match (missing, warnings) {
        (0, 0) => "Palisade can do all of its work here.".to_owned(),
        (0, _) => format!("Palisade can work here, with {warnings} limitation(s)."),
        _ => format!("Palisade cannot work here: {missing} essential thing(s) missing."),
    });
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_tells_what_is_missing() {
        let ok = Check::ok("a", "x");
        let warn = Check::warn("b", "x", "y");
        let missing = Check::missing("c", "x", "y");
        let object = Check::missing(sensing::OBJECT, "x", "y");
        assert_eq!(exit_code(&[]), exit::OK);
        assert_eq!(exit_code(&[ok.clone(), warn.clone()]), exit::OK);
        assert_eq!(exit_code(&[ok.clone(), object.clone()]), exit::NO_OBJECT);
        assert_eq!(exit_code(&[missing.clone(), object]), exit::KERNEL);
        assert_eq!(verdict(std::slice::from_ref(&ok)), "ready");
        assert_eq!(verdict(&[ok.clone(), warn.clone()]), "limited");
        assert_eq!(verdict(&[missing.clone(), warn.clone()]), "unable");
        let text = table(&[ok, warn, missing], Style::PLAIN);
        assert_eq!(
            text,
            "ok       a  x\nwarn     b  x\n            -> y\nMISSING  c  x\n            -> y\n\n\
             Palisade cannot work here: 1 essential thing(s) missing.\n"
        );
    }
}
