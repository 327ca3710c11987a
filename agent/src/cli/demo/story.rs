//! The audit story of the first culprit, and whether the log that tells it is intact.
//!
//! Must not add to the story: each line is one record of the log.

use super::case::Case;
use super::screen::{Screen, Tone};
use crate::audit::{self, Entry, Head, Record, Status, VerifyOptions};
use std::path::Path;

/// Prints the records that belong to the first culprit's throttle, renewals as one line.
pub(super) fn tell(screen: Screen, dir: &Path, case: &Case) {
    let Some(finding) = case
        .culprits
        .first()
        .and_then(|culprit| culprit.finding.as_ref())
    else {
        return;
    };
    match audit::story(dir, finding.seq) {
        Ok(story) => {
            screen.note(
                Tone::Loud,
                &format!("The audit story of record {}", finding.seq),
            );
            for line in lines(&story.records) {
                screen.note(Tone::Plain, &format!("  {line}"));
            }
        }
        Err(error) => screen.note(Tone::Bad, &format!("no audit story: {error}")),
    }
}

/// Checks the log against its end as the demo saw it: nothing changed, removed or cut.
pub(super) fn verify(dir: &Path, head: Option<Head>) -> Result<String, String> {
    let report = audit::verify(
        dir,
        &VerifyOptions {
            head,
            ..VerifyOptions::default()
        },
    )
    .map_err(|error| error.to_string())?;
    if report.status == Status::Intact {
        return Ok(format!(
            "{} records, {} signed checkpoints, ends where the demo saw it end",
            report.records, report.checkpoints
        ));
    }
    let fault = report
        .faults
        .first()
        .map(ToString::to_string)
        .unwrap_or_default();
    Err(format!("{:?} {fault}", report.status))
}

/// One line a record; the renewals and the decisions behind them are counted.
pub(super) fn lines(records: &[Record]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut renewals = 0;
    for record in records {
        match record.entry() {
            Some(Entry::Renew { .. }) => renewals += 1,
            Some(entry) => lines.extend(line(record, &entry)),
            None => {}
        }
    }
    if renewals > 0 {
        let at = lines
            .iter()
            .position(|line| line.contains("undo"))
            .unwrap_or(lines.len());
        lines.insert(
            at,
            format!("…  renewed {renewals} times while the policy kept asking"),
        );
    }
    lines
}

fn line(record: &Record, entry: &Entry) -> Option<String> {
    let text = match entry {
        Entry::Decision { decision, who } => {
            let policy = &decision.policy;
            format!(
                "decision  {} {} on {}: {}",
                policy.name,
                policy.version,
                who.cgroup.as_deref().unwrap_or("?"),
                decision.request.action,
            )
        }
        Entry::Intent { action, cgroup, .. } => {
            format!("intent    {action} on {}", cgroup.as_deref().unwrap_or("?"))
        }
        Entry::Outcome { outcome, .. } => format!("outcome   {}", words(outcome)),
        Entry::UndoIntent { lease, why, .. } => {
            format!("undo      lease {} on {}: {why}", lease.id.0, lease.cgroup)
        }
        Entry::UndoOutcome { outcome, .. } => format!("undone    {}", words(outcome)),
        _ => return None,
    };
    // The time of day, without the date.
    let time = record.time.get(11..23).unwrap_or(&record.time);
    Some(format!("#{:<3} {time}  {text}", record.seq))
}

fn words(outcome: &palisade_core::ActOutcome) -> String {
    match outcome {
        palisade_core::ActOutcome::Done { observed, .. } => format!("done: {observed}"),
        other => format!("{other:?}"),
    }
}
