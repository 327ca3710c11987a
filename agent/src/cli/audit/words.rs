//! Records, stories and verdicts in words.
//!
//! Invariants: every text that came from outside is escaped; a record of an unknown kind is
//! shown with its fields, not hidden; nothing here reads files or clocks.

use super::age;
use crate::audit::{Entry, Record, Report, Status, Story, VerifyOptions};
use crate::cli::style::{Colour, Style, Table, escape, span};
use palisade_core::{ActOutcome, Decision, Evidence, Knob, Lease, Reason, Target, Verdict};
use std::fmt::Write as _;

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

/// An incident in words.
pub(super) fn story(story: &Story, style: Style, now_ns: u64) -> String {
    let mut out = String::new();
    let begin = story.records.first().map_or(0, |r| r.boot_ns);
    if let Some(first) = story.records.first() {
        let title = format!("{} ({})", first.time, age(first, now_ns));
        let _ = writeln!(out, "{}", style.paint(Colour::Bold, &escape(&title)));
    }
    for record in &story.records {
        let after = record.boot_ns.saturating_sub(begin);
        let stamp = if after == 0 {
            "at first".to_owned()
        } else {
            format!("after {}", span(after))
        };
        let marker = if record.seq == story.about { "*" } else { " " };
        let head = format!("{marker}{stamp:>13}  #{:<6}", record.seq);
        let mut sentences = tell(record).into_iter();
        let first = sentences.next().unwrap_or_default();
        let text = escape(&first);
        let text = colour(record).map_or_else(|| text.clone(), |c| style.paint(c, &text));
        let _ = writeln!(out, "{} {text}", style.paint(Colour::Dim, &head));
        for more in sentences {
            let _ = writeln!(out, "{:25}{}", "", escape(&more));
        }
    }
    if let Some(end) = ending(story) {
        let _ = writeln!(out, "\n{}", style.paint(Colour::Bold, end));
    }
    out
}

fn ending(story: &Story) -> Option<&'static str> {
    let entries: Vec<Entry> = story.records.iter().filter_map(Record::entry).collect();
    let some = |is: &dyn Fn(&Entry) -> bool| entries.iter().any(is);
    let leased = some(&|e| matches!(e, Entry::Intent { lease: Some(_), .. }));
    let undone = some(&|e| {
        matches!(
            e,
            Entry::UndoOutcome {
                outcome: ActOutcome::Done { .. } | ActOutcome::Gone,
                ..
            }
        )
    });
    let left = some(&|e| {
        matches!(
            e,
            Entry::UndoOutcome {
                outcome: ActOutcome::ForeignChange { .. },
                ..
            }
        )
    });
    let acted = some(&|e| matches!(e, Entry::Intent { .. }));
    let decided = some(&|e| matches!(e, Entry::Decision { .. }));
    match (leased, undone, left, acted, decided) {
        (true, true, ..) => Some("It was undone; nothing of it is in force."),
        (true, false, true, ..) => Some("Somebody else had changed it; it was left as found."),
        (true, ..) => Some("As far as this log goes, it is still in force, or was never begun."),
        (false, _, _, true, _) => Some("There is nothing to undo."),
        (false, _, _, false, true) => Some("Nothing was done."),
        _ => None,
    }
}

/// What a record says, in sentences, unescaped.
fn tell(record: &Record) -> Vec<String> {
    match record.entry() {
        Some(Entry::Decision { decision, who }) => decided(record, &decision, &who),
        Some(Entry::Intent {
            action,
            target: on,
            lease,
            ..
        }) => {
            let mut told = vec![format!("About to do: {action} on {}.", target(record, on))];
            told.extend(lease.map(|l| format!("Held by lease {} on {}.", l.id.0, l.cgroup)));
            told
        }
        Some(Entry::Outcome { outcome: how, .. }) => vec![format!("Result: {}.", outcome(&how))],
        Some(Entry::Renew { lease, .. }) => {
            vec![format!(
                "The policy still asked for it: lease {} was prolonged.",
                lease.0
            )]
        }
        Some(Entry::UndoIntent { lease, why, .. }) => {
            vec![format!(
                "About to undo {} of {}: {why}.",
                held(&lease),
                lease.cgroup
            )]
        }
        Some(Entry::UndoOutcome { outcome: how, .. }) => {
            vec![format!("Result of the undo: {}.", outcome(&how))]
        }
        _ => vec![format!("{}: {}", record.kind, summary(record))],
    }
}

fn decided(record: &Record, decision: &Decision, who: &crate::audit::Identity) -> Vec<String> {
    let asked = &decision.request;
    let policy = &decision.policy;
    let mut told = vec![
        format!(
            "Policy {} {} (file {}…, load {}) asked for {} on {}.",
            policy.name,
            policy.version,
            policy.sha256.get(..12).unwrap_or(&policy.sha256),
            policy.generation,
            asked.action,
            target(record, asked.target)
        ),
        format!("Because: {}", asked.reason),
    ];
    if !asked.evidence.is_empty() {
        let numbers: Vec<String> = asked.evidence.iter().map(evidence).collect();
        told.push(format!("Evidence: {}", numbers.join(", ")));
    }
    let mut known: Vec<String> = Vec::new();
    known.extend(who.exe.as_ref().map(|exe| format!("runs {exe}")));
    known.extend(
        who.container
            .as_ref()
            .map(|id| format!("in container {id}")),
    );
    if !known.is_empty() {
        told.push(format!("The target {}.", known.join(" ")));
    }
    told.push(match &decision.verdict {
        Verdict::Granted {
            clamped: Some(clamped),
            ..
        } => format!("Granted, made milder: {clamped}."),
        Verdict::Granted { .. } => "Granted.".into(),
        Verdict::Renewed { .. } => "It was in force already and was prolonged.".into(),
        Verdict::Observed => "It would have been granted, but this policy only observes.".into(),
        Verdict::Refused { reason } => format!("Refused: {}.", refusal(reason)),
    });
    told
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
        Reason::Lossy { lost } => {
            format!("{lost} events about others were lost, and it could not be undone")
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
