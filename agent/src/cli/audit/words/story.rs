//! An incident, told in sentences from its first record to its end.
//!
//! Invariants: every text that came from outside is escaped; an end is told only as far as the
//! records show it.

use super::{colour, evidence, held, outcome, refusal, summary, target};
use crate::audit::{Entry, Identity, Record, Story};
use crate::cli::audit::age;
use crate::cli::style::{Colour, Style, escape, span};
use palisade_core::{ActOutcome, Decision, Verdict};
use std::fmt::Write as _;

/// An incident in words.
pub(in crate::cli::audit) fn story(story: &Story, style: Style, now_ns: u64) -> String {
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

fn decided(record: &Record, decision: &Decision, who: &Identity) -> Vec<String> {
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
