//! Records, stories and verdicts in words.
//!
//! Invariants: every text that came from outside is escaped; a record of an unknown kind is
//! shown with its fields, not hidden; nothing here reads files or clocks.

mod story;

use crate::audit::{Entry, Record, Report, Status, VerifyOptions};
use crate::cli::style::{Colour, Style, Table, escape};
use palisade_core::{ActOutcome, Evidence, Knob, Lease, Reason, Target, Verdict};
use std::fmt::Write as _;
pub(super) use story::story;

/// Records as a table, one line each.
pub(super) fn table(records: &[Record], style: Style, headings: bool) -> String {
    let mut table = Table::new(&["SEQ", "TIME", "KIND", "WHAT"]);
    for record in records {
        // On a terminal the day is rarely in doubt; elsewhere times are for programs.
        let time = if style.terminal {
            record
                .time
                .get(5..23)
                .map_or(record.time.clone(), |t| t.replace('T', " "))
        } else {
            record.time.clone()
        };
        let seq = record.seq.to_string();
        let text = summary(record);
        table.row([
            (seq.as_str(), Some(Colour::Dim)),
            (time.as_str(), Some(Colour::Dim)),
            (record.kind.as_str(), Some(Colour::Cyan)),
            (text.as_str(), colour(record)),
        ]);
    }
    let text = table.render(style);
    if headings && style.terminal {
        return text;
    }
    text.split_once('\n')
        .map_or(String::new(), |(_, rows)| rows.to_owned())
}

fn colour(record: &Record) -> Option<Colour> {
    match record.outcome()? {
        "granted" | "done" | "loaded" | "reloaded" => Some(Colour::Green),
        "failed" | "ejected" | "rejected" | "strike" => Some(Colour::Red),
        "refused" | "observed" | "gone" | "in_driver_call" | "foreign_change" => {
            Some(Colour::Yellow)
        }
        _ => None,
    }
}

/// One record in one line, unescaped.
pub(super) fn summary(record: &Record) -> String {
    let Some(entry) = record.entry() else {
        if record.kind == "checkpoint" {
            return "everything up to here is sealed".into();
        }
        return serde_json::to_string(&record.fields).unwrap_or_default();
    };
    match entry {
        Entry::Segment { before, .. } => format!("a new file; {before} records before it"),
        Entry::Start {
            agent,
            kernel,
            policies,
            ..
        } => {
            let names: Vec<&str> = policies.iter().map(|p| p.name.as_str()).collect();
            format!(
                "palisade {agent} on Linux {kernel}, policies: {}",
                listed(&names)
            )
        }
        Entry::Stop { why } => why,
        Entry::Policy {
            what,
            policy,
            detail,
        } => {
            let what = serde_json::to_value(what).ok();
            let what = what
                .as_ref()
                .and_then(|w| w.as_str())
                .unwrap_or("changed")
                .replace('_', " ");
            let version = if policy.version.is_empty() { "" } else { " " };
            let detail = if detail.is_empty() {
                detail
            } else {
                format!(": {detail}")
            };
            format!("{what} {}{version}{}{detail}", policy.name, policy.version)
        }
        Entry::Decision { decision, .. } => {
            let asked = &decision.request;
            format!(
                "{}: {} for {} by {}: {}",
                verdict(&decision.verdict),
                asked.action,
                target(record, asked.target),
                decision.policy.name,
                asked.reason
            )
        }
        Entry::Intent {
            effect,
            action,
            target: on,
            policy,
            ..
        } => {
            format!(
                "{action} on {} for {policy} (effect {})",
                target(record, on),
                effect.0
            )
        }
        Entry::Outcome {
            effect,
            outcome: how,
        } => {
            format!("effect {}: {}", effect.0, outcome(&how))
        }
        Entry::Renew { lease, .. } => format!("lease {} lasts longer", lease.0),
        Entry::UndoIntent { effect, lease, why } => {
            format!(
                "undo {} of {}: {why} (effect {})",
                held(&lease),
                lease.cgroup,
                effect.0
            )
        }
        Entry::UndoOutcome {
            effect,
            outcome: how,
            ..
        } => {
            format!("undo, effect {}: {}", effect.0, outcome(&how))
        }
        Entry::Loss {
            source,
            count,
            policy,
            ..
        } => {
            let who = policy.map_or(String::new(), |p| format!(", missed by {p}"));
            format!("{count} events lost: {source}{who}")
        }
        Entry::Note { text } => text,
    }
}

/// One record, a field a line.
pub(super) fn fields(record: &Record, style: Style) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(
            out,
            "{} {value}",
            style.paint(Colour::Cyan, &format!("{name:<12}"))
        );
    };
    line("seq", &record.seq.to_string());
    line("time", &escape(&record.time));
    line("boot_ns", &record.boot_ns.to_string());
    line("kind", &escape(&record.kind));
    for (name, value) in &record.fields {
        let text = match value {
            serde_json::Value::String(text) => escape(text),
            other => {
                let pretty = serde_json::to_string_pretty(other).unwrap_or_default();
                // JSON escapes control characters itself, but not those above U+007F.
                pretty
                    .lines()
                    .map(escape)
                    .collect::<Vec<_>>()
                    .join("\n             ")
            }
        };
        line(&escape(name), &text);
    }
    line("prev", &escape(&record.prev));
    out
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Granted { clamped: None, .. } => "granted".into(),
        Verdict::Granted {
            clamped: Some(how), ..
        } => format!("granted, milder ({how})"),
        Verdict::Renewed { .. } => "renewed".into(),
        Verdict::Observed => "observed only".into(),
        Verdict::Refused { reason } => format!("refused ({})", refusal(reason)),
    }
}

fn refusal(reason: &Reason) -> String {
    let name = |power| {
        let value = serde_json::to_value(power).ok();
        value
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default()
    };
    match reason {
        Reason::Identity { detail } => {
            format!("the target is not the one that was meant: {detail}")
        }
        Reason::Protected { rule } => format!("the target is protected by {rule}"),
        Reason::OutOfScope => "the target is outside the watched scope".into(),
        Reason::Power { needs, granted } => {
            format!(
                "it needs the power \"{}\", granted is \"{}\"",
                name(*needs),
                name(*granted)
            )
        }
        Reason::Invalid { detail } => format!("the request makes no sense: {detail}"),
        Reason::Cooldown { .. } => "the policy acted on this target a moment ago".into(),
        Reason::Budget { scope, per_minute } => {
            format!("the {scope}'s {per_minute} actions a minute are spent")
        }
        Reason::LeaseLimit { limit } => format!("{limit} leases are in force, the most allowed"),
        Reason::Lossy { lost, skipped: 0 } => {
            format!("{lost} events about others were lost, and it could not be undone")
        }
        Reason::Lossy { lost, skipped } => {
            format!(
                "{lost} events that may be about others were lost, {skipped} of them in runs of kernel programs that the kernel \
                 skipped, and it could not be undone; what can be undone is not held back: throttle or freeze the target, and \
                 it may follow once nothing is lost for a while"
            )
        }
        Reason::Disarmed => "the kill switch is on".into(),
        Reason::Unrecordable => {
            "the audit log could not be written, and it could not be undone".into()
        }
    }
}

fn outcome(outcome: &ActOutcome) -> String {
    match outcome {
        ActOutcome::Done {
            observed,
            original: None,
        } => format!("done, seen: {observed}"),
        ActOutcome::Done {
            observed,
            original: Some(before),
        } => {
            format!("done, seen: {observed} (before: {before})")
        }
        ActOutcome::Gone => "the target was gone".into(),
        ActOutcome::InDriverCall => {
            "not done: the target was inside a driver call all the while".into()
        }
        ActOutcome::ForeignChange { found } => {
            format!("left alone: somebody else had changed it to {found}")
        }
        ActOutcome::Failed { error } => format!("failed: {error}"),
    }
}

fn evidence(evidence: &Evidence) -> String {
    format!("{} {} {}", evidence.name, evidence.value, evidence.unit)
        .trim_end()
        .to_owned()
}

fn held(lease: &Lease) -> &'static str {
    match lease.knob {
        Knob::CpuWeight => "the CPU weight",
        Knob::CpuQuota => "the CPU quota",
        Knob::Freeze => "the freeze",
    }
}

fn target(record: &Record, target: Target) -> String {
    let place = record
        .cgroup()
        .map_or(String::new(), |cgroup| format!(" in {cgroup}"));
    match target {
        Target::Process(id) => {
            let name = record
                .text(&["who", "comm"])
                .map_or(String::new(), |n| format!(" ({n})"));
            format!("process {}{name}{place}", id.pid)
        }
        Target::Workload(id) => record
            .cgroup()
            .map_or_else(|| format!("workload {}", id.0), |c| format!("workload {c}")),
    }
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() {
        "none".into()
    } else {
        names.join(", ")
    }
}

/// The verdict of a verification, in words.
pub(super) fn report(report: &Report, options: &VerifyOptions, style: Style) -> String {
    let mut out = String::new();
    let last = report.head.seq;
    let (colour, verdict) = match report.status {
        Status::Intact => (
            Colour::Green,
            format!("INTACT: all records up to {last} are as they were when the head was kept."),
        ),
        Status::Unanchored { after_seq } if after_seq >= last => (
            Colour::Yellow,
            format!(
                "UNANCHORED after record {after_seq}: no fault found and every record is sealed, but \
                 no head kept elsewhere shows that nothing was cut off behind it."
            ),
        ),
        Status::Unanchored { after_seq } => (
            Colour::Yellow,
            format!(
                "UNANCHORED after record {after_seq}: no fault found, but nothing vouches for \
                 the {} records behind it yet.",
                last - after_seq
            ),
        ),
        Status::Broken => (
            Colour::Red,
            format!("NOT INTACT: {} found.", faults(report.fault_count)),
        ),
    };
    let _ = writeln!(out, "{}", style.paint(colour, &verdict));
    for fault in &report.faults {
        let _ = writeln!(out, "  {}", escape(&fault.to_string()));
    }
    let untold = report
        .fault_count
        .saturating_sub(report.faults.len() as u64);
    if untold > 0 {
        let _ = writeln!(out, "  and {untold} more");
    }
    let _ = writeln!(
        out,
        "{} records ({} to {last}) in {} files, {} good checkpoints, the last at record {}.",
        report.records, report.first_seq, report.segments, report.checkpoints, report.sealed_seq
    );
    if report.unfinished_bytes > 0 {
        let _ = writeln!(
            out,
            "The last line is unfinished ({} bytes): a writer is at work, or was cut off; this is no tampering.",
            report.unfinished_bytes
        );
    }
    match report.status {
        Status::Broken => {
            let _ = writeln!(
                out,
                "Next: copy the directory away as evidence before anything else."
            );
        }
        Status::Unanchored { .. } if options.head.is_none() => {
            let _ = writeln!(
                out,
                "Next: keep this head off this host, and give it with --head later: {}",
                report.head
            );
        }
        _ => {}
    }
    out
}

fn faults(count: u64) -> String {
    if count == 1 {
        "1 fault".into()
    } else {
        format!("{count} faults")
    }
}
