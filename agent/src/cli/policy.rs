//! `palisade policy list | check | reload`.

use super::style::{Colour, Style, Table, escape};
use super::{Paths, exit};
use crate::control::Request;
use crate::policy::{self, Limits, PolicySource};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use palisade_core::Power;
use std::io::Write;
use std::path::PathBuf;

const AFTER_HELP: &str = "\
Examples:
  palisade policy list
  palisade policy check target/policies/gpu-contention.wasm
  palisade policy check my.wasm --set 'window-ms = 500' --power alert
  palisade policy reload gpu-contention";

/// Options of `policy`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// The policies of the running agent.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check a policy file as a load would: size, world, ABI version, powers, settings, a trial start.
    Check {
        /// The component.
        file: PathBuf,
        /// A setting as TOML, `name = value`; may be repeated.
        #[arg(long = "set", value_name = "NAME = VALUE")]
        settings: Vec<String>,
        /// The strongest power that the operator would grant.
        #[arg(long, default_value = "kill", value_parser = ["alert", "throttle", "freeze", "signal", "kill"])]
        power: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Have the running agent load changed files now.
    Reload {
        /// Name in the configuration; all if absent.
        name: Option<String>,
    },
}

pub(super) fn run(args: &PolicyArgs, paths: &Paths) -> Result<u8> {
    super::printing(|out| dispatch(args, paths, out))
}

fn dispatch(args: &PolicyArgs, paths: &Paths, out: &mut dyn Write) -> Result<u8> {
    match &args.command {
        PolicyCommand::List { json } => list(paths, *json, out),
        PolicyCommand::Check {
            file,
            settings,
            power,
            json,
        } => check(file.clone(), settings, power, *json, out),
        PolicyCommand::Reload { name } => {
            let done = paths.call(&Request::PolicyReload { name: name.clone() })?;
            for policy in done.as_array().into_iter().flatten() {
                writeln!(
                    out,
                    "{} {} runs as generation {}",
                    text(policy, "name"),
                    text(policy, "version"),
                    policy["generation"]
                )?;
            }
            Ok(exit::OK)
        }
    }
}

fn list(paths: &Paths, json: bool, out: &mut dyn Write) -> Result<u8> {
    let policies = paths.call(&Request::PolicyList)?;
    if json {
        writeln!(out, "{policies}")?;
    } else {
        write!(out, "{}", table(&policies))?;
    }
    Ok(exit::OK)
}

/// The policies of a status, as a table.
pub(super) fn table(policies: &serde_json::Value) -> String {
    let mut table = Table::new(&[
        "policy", "version", "state", "gen", "records", "requests", "µs/call", "queue", "lost",
        "strikes",
    ]);
    for policy in policies.as_array().into_iter().flatten() {
        let number = |name: &str| policy[name].as_u64().unwrap_or(0);
        let per_call = number("call_ns_total") as f64 / number("calls").max(1) as f64 / 1e3;
        let state = policy["state"].as_str().unwrap_or_default();
        let state_colour = if state == "ejected" {
            Colour::Red
        } else {
            Colour::Green
        };
        let alarm = |count: u64| (count.to_string(), (count > 0).then_some(Colour::Yellow));
        let cells = [
            (text(policy, "name"), Some(Colour::Cyan)),
            (text(policy, "version"), None),
            (state.to_owned(), Some(state_colour)),
            (number("running_generation").to_string(), None),
            (number("records").to_string(), None),
            (number("requests").to_string(), None),
            (format!("{per_call:.1}"), None),
            (number("queue_batches").to_string(), None),
            alarm(number("lost")),
            alarm(number("strikes")),
        ];
        table.row(cells.iter().map(|(text, colour)| (text.as_str(), *colour)));
    }
    table.render(Style::of_stdout())
}

/// Checks a policy as a load would.
pub(super) fn check_source(source: &PolicySource) -> Result<policy::Manifest> {
    policy::check(source)
        .map_err(|error| exit::coded(exit::POLICY, format!("policy '{}': {error}", source.name)))
}

fn check(
    file: PathBuf,
    settings: &[String],
    power: &str,
    json: bool,
    out: &mut dyn Write,
) -> Result<u8> {
    let settings: toml::Table = settings
        .join("\n")
        .parse()
        .context("--set takes TOML: name = value")
        .map_err(|error| exit::coded(exit::USAGE, format!("{error:#}")))?;
    let max_power = serde_json::from_value::<Power>(power.into())?;
    let name = file
        .file_stem()
        .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let source = PolicySource {
        name,
        path: file,
        settings,
        max_power,
        limits: Limits::default(),
    };
    let manifest = check_source(&source)?;
    if json {
        writeln!(out, "{}", serde_json::to_value(&manifest)?)?;
        return Ok(exit::OK);
    }
    let style = Style::of_stdout();
    writeln!(
        out,
        "{} {} {}",
        style.paint(Colour::Green, "good:"),
        manifest.name,
        manifest.version
    )?;
    writeln!(out, "  {}", escape(&manifest.description))?;
    writeln!(out, "  sees   {}", manifest.kinds.join(", "))?;
    writeln!(
        out,
        "  powers {}",
        manifest
            .powers
            .iter()
            .map(|power| format!("{power:?}").to_lowercase())
            .collect::<Vec<_>>()
            .join(", ")
    )?;
    let mut table = Table::new(&["setting", "default", "unit", "help"]);
    for (name, setting) in &manifest.settings {
        let default = setting.default.to_string();
        let unit = setting.unit.as_deref().unwrap_or_default();
        table.row([
            (name.as_str(), Some(Colour::Cyan)),
            (default.as_str(), None),
            (unit, None),
            (setting.help.as_str(), None),
        ]);
    }
    write!(out, "{}", table.render(style))?;
    Ok(exit::OK)
}

fn text(value: &serde_json::Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}
