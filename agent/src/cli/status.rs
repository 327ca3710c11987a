//! `palisade status`, `disarm` and `arm`.

use super::style::{Colour, Style, Table, escape};
use super::{Paths, exit, policy};
use crate::config::units;
use crate::control::Request;
use anyhow::Result;
use clap::Args;
use serde_json::Value;

/// Options of `status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  palisade status\n  palisade status --json | jq .core.leases")]
pub struct StatusArgs {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatusArgs, paths: &Paths) -> Result<u8> {
    let status = paths.call(&Request::Status)?;
    if args.json {
        println!("{status}");
        return Ok(exit::OK);
    }
    let core = &status["core"];
    let style = Style::of_stdout();
    let armed = if core["disarmed"] == Value::Bool(true) {
        style.paint(Colour::Red, "DISARMED")
    } else {
        style.paint(Colour::Green, "armed")
    };
    let mib = status["memory_bytes"].as_u64().unwrap_or(0) / (1 << 20);
    println!(
        "palisade {} · pid {} · {armed} · {mib} MiB",
        status["version"].as_str().unwrap_or("?"),
        status["pid"]
    );
    let stats = &status["sensors"]["stats"];
    println!(
        "events   {} records in {} batches, lost {}",
        stats["records"],
        stats["batches"],
        losses(&stats["lost"], style)
    );
    let unread = stats["unread"].as_u64().unwrap_or(0);
    if unread > 0 {
        let late = format!(
            "{unread} reads of the kernel's counters broke off: counts come late or not at all; see the log"
        );
        println!("         {}", style.paint(Colour::Red, &late));
    }
    let health = if status["audit"]["health"]["ok"] == Value::Bool(true) {
        style.paint(Colour::Green, "written")
    } else {
        style.paint(Colour::Red, "NOT WRITTEN")
    };
    println!(
        "audit    {health}, head {}",
        status["audit"]["head"].as_str().unwrap_or("?")
    );
    if let Some(line) = recording(&status["recording"], style) {
        println!("record   {line}");
    }
    println!();
    print!("{}", policy::table(&status["policies"]));
    println!();
    print_leases(&core["leases"], status["now_ns"].as_u64().unwrap_or(0));
    let absent: Vec<&str> = status["sensors"]["absent"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !absent.is_empty() {
        println!(
            "{}   {}: subscribed to, and cannot be had here; run: palisade doctor",
            style.paint(Colour::Yellow, "absent"),
            absent.join(", ")
        );
    }
    Ok(exit::OK)
}

/// How the recording fares, if there is one.
fn recording(recording: &Value, style: Style) -> Option<String> {
    let path = escape(recording["path"].as_str()?);
    let progress = &recording["progress"];
    let lost = progress["lost"].as_u64().unwrap_or(0);
    let notes_lost = progress["notes_lost"].as_u64().unwrap_or(0);
    let mut line = if let Some(error) = recording["error"].as_str() {
        let failed = style.paint(Colour::Red, "FAILED");
        format!(
            "{failed}: {}; the agent goes on without {path}",
            escape(error)
        )
    } else if recording["full"] == Value::Bool(true) {
        let size = units::show_size(recording["max_bytes"].as_u64().unwrap_or(0));
        let full = style.paint(Colour::Yellow, &format!("FULL at {size}"));
        format!("{full}: {path} is whole until then, and ended; the agent goes on without it")
    } else {
        format!("{path}, {} bytes", progress["bytes"])
    };
    if lost + notes_lost > 0 {
        let missing = format!("; it lacks {lost} records, {notes_lost} notes");
        line.push_str(&style.paint(Colour::Yellow, &missing));
    }
    Some(line)
}

fn losses(lost: &Value, style: Style) -> String {
    let total: u64 = lost
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, count)| count.as_u64())
        .sum();
    if total == 0 {
        "0".to_owned()
    } else {
        style.paint(Colour::Yellow, &format!("{total} {lost}"))
    }
}

/// The leases as a table, with the seconds that are left.
pub(super) fn print_leases(leases: &Value, now_ns: u64) {
    let leases = leases.as_array().map_or(&[][..], Vec::as_slice);
    if leases.is_empty() {
        println!("no leases: nothing is held");
        return;
    }
    let mut table = Table::new(&["lease", "cgroup", "knob", "value", "owners", "ends in"]);
    for lease in leases {
        let left = lease["until_ns"]
            .as_u64()
            .unwrap_or(0)
            .saturating_sub(now_ns) as f64
            / 1e9;
        let owners: Vec<&str> = lease["owners"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let cells = [
            (lease["id"].to_string(), None),
            (
                lease["cgroup"].as_str().unwrap_or_default().to_owned(),
                Some(Colour::Cyan),
            ),
            (lease["knob"].as_str().unwrap_or_default().to_owned(), None),
            (lease["value"].to_string(), Some(Colour::Yellow)),
            (owners.join(", "), None),
            (format!("{left:.1} s"), None),
        ];
        table.row(cells.iter().map(|(text, colour)| (text.as_str(), *colour)));
    }
    print!("{}", table.render(Style::of_stdout()));
}

pub(super) fn disarm(paths: &Paths, on: bool) -> Result<u8> {
    let said = paths.call(&Request::Disarm { on })?;
    println!("{}", said.as_str().unwrap_or_default());
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_recording_is_not_shown_as_one_that_failed() {
        let mut status = serde_json::json!({
            "path": "day.arrows", "max_bytes": 4_u64 << 30, "ok": true, "error": null, "full": true,
            "progress": { "bytes": 9, "lost": 0, "notes_lost": 0 },
        });
        let line = recording(&status, Style::of_stdout()).unwrap();
        assert!(line.contains("FULL at 4GiB"), "{line}");
        assert!(!line.contains("FAILED"), "{line}");
        status["error"] = "No space left".into();
        let line = recording(&status, Style::of_stdout()).unwrap();
        assert!(line.contains("FAILED") && !line.contains("FULL"), "{line}");
    }
}
