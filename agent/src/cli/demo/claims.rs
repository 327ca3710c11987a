//! What the demo claims, checked against what was seen.
//!
//! Invariant: a claim without a measurement does not hold. Nothing here is taken from what the
//! demo meant to do.

use super::case::{Case, Culprit, Window};
use super::screen::millis;
use std::time::Duration;

/// Windows of the service's latency that each side of a comparison needs.
const MIN_WINDOWS: usize = 2;
/// The latency rose if it is this many times the healthy one …
const RISE_FACTOR: f64 = 3.0;
/// … and higher by this much, milliseconds.
const RISE_MS: f64 = 10.0;
/// The latency recovered if at most this part of the rise is left.
const LEFT_OF_RISE: f64 = 0.25;
/// The ceiling holds from this long after it was set.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// What the kernel may give beyond the ceiling: its accounting is in slices of 5 ms.
const OVER_CEILING: f64 = 1.3;
/// The CPU share fell if it was this many times the share it has now.
const FALL_FACTOR: f64 = 2.0;

/// One claim.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Claim {
    /// What is claimed.
    pub(super) what: String,
    /// With which numbers it held, or what happened instead.
    pub(super) result: Result<String, String>,
}

impl Claim {
    pub(super) fn new(what: impl Into<String>, result: Result<String, String>) -> Self {
        Self {
            what: what.into(),
            result,
        }
    }
}

/// All claims about what was seen, culprit by culprit.
pub(super) fn check(case: &Case) -> Vec<Claim> {
    let mut claims = Vec::new();
    let healthy = healthy(case);
    for (index, culprit) in case.culprits.iter().enumerate() {
        let name = culprit.name;
        // The device's lock is the harm that is promised to show; the loader's is mostly CPU
        // and page cache, which a fast machine may hide.
        if index == 0 {
            let risen = healthy.clone().and_then(|base| rise(case, culprit, base));
            claims.push(Claim::new(
                format!("{name} raised the service's latency"),
                risen
                    .clone()
                    .map(|(base, up)| format!("p99 {} → {}", millis(base), millis(up))),
            ));
            claims.push(Claim::new(
                format!("throttling {name} brought the latency back"),
                risen.and_then(|(base, up)| recovery(case, culprit, base, up)),
            ));
        }
        claims.push(Claim::new(
            format!("{} found {name}", culprit.policy),
            found(culprit),
        ));
        claims.push(Claim::new(
            format!("the kernel held {name} to a CPU ceiling"),
            held(culprit),
        ));
        claims.push(Claim::new(
            format!("the throttle of {name} was undone"),
            undone(culprit),
        ));
    }
    claims.push(Claim::new(
        "the service itself was never acted on",
        match &case.service_hit {
            None => Ok("no lease named its cgroup".to_owned()),
            Some(action) => Err(format!("it was given: {action}")),
        },
    ));
    claims
}

/// Typical p99 before the first culprit, milliseconds.
pub(super) fn healthy(case: &Case) -> Result<f64, String> {
    let end = case
        .culprits
        .iter()
        .filter_map(|culprit| culprit.started)
        .min();
    median_p99(case, Duration::ZERO, end.unwrap_or(Duration::MAX))
        .ok_or_else(|| "the service was not measured while healthy".to_owned())
}

fn rise(case: &Case, culprit: &Culprit, base: f64) -> Result<(f64, f64), String> {
    let name = culprit.name;
    let (from, to) = culprit
        .free()
        .ok_or_else(|| format!("{name} was never throttled"))?;
    let up = median_p99(case, from, to).ok_or_else(|| {
        format!("too few measurements between the start of {name} and its throttle")
    })?;
    if up >= base * RISE_FACTOR && up >= base + RISE_MS {
        Ok((base, up))
    } else {
        Err(format!(
            "p99 went from {} to {} only",
            millis(base),
            millis(up)
        ))
    }
}

fn recovery(case: &Case, culprit: &Culprit, base: f64, up: f64) -> Result<String, String> {
    let name = culprit.name;
    let (from, to) = culprit
        .held()
        .ok_or_else(|| format!("{name} was never throttled and stopped"))?;
    let now = median_p99(case, from + SETTLED_AFTER, to)
        .ok_or_else(|| format!("too few measurements while {name} was throttled"))?;
    let text = format!("p99 {} → {}", millis(up), millis(now));
    if now <= base + (up - base) * LEFT_OF_RISE {
        Ok(text)
    } else {
        Err(text)
    }
}

fn found(culprit: &Culprit) -> Result<String, String> {
    let finding = culprit
        .finding
        .as_ref()
        .ok_or_else(|| match &culprit.refused {
            Some(refused) => format!("its requests were refused: {refused}"),
            None => "it asked for nothing".to_owned(),
        })?;
    if finding.policy != culprit.policy {
        return Err(format!("it was {} that asked", finding.policy));
    }
    let after = finding
        .at
        .saturating_sub(culprit.started.unwrap_or(finding.at))
        .as_secs_f64();
    let text = format!("after {after:.1} s, audit record {}", finding.seq);
    match &culprit.must_name {
        Some(name) if finding.reason.contains(name.as_str()) => {
            Ok(format!("{text}, which names {name}"))
        }
        Some(name) => Err(format!("{text} does not name {name}: {}", finding.reason)),
        None => Ok(text),
    }
}

fn held(culprit: &Culprit) -> Result<String, String> {
    let throttle = culprit
        .throttle
        .as_ref()
        .ok_or("no throttle in the audit log")?;
    let ceiling = f64::from(throttle.permille) / 1000.0;
    let file = format!(
        "cgroup file {} → {}",
        culprit.original.text, throttle.found.text
    );
    if throttle.found.permille != Some(throttle.permille) {
        return Err(format!(
            "{file}, but the audit log says {:.1} % of one CPU",
            ceiling * 100.0
        ));
    }
    let used = |range: Option<(Duration, Duration)>, skip| {
        range
            .and_then(|(from, to)| culprit.cpu_share(from + skip, to))
            .ok_or("its CPU time was not measured")
    };
    let before = used(culprit.free(), Duration::ZERO)?;
    let after = used(culprit.held(), SETTLED_AFTER)?;
    let text = format!(
        "{file}, used {:.0} % → {:.1} % of one CPU",
        before * 100.0,
        after * 100.0
    );
    if after <= ceiling * OVER_CEILING && before >= after * FALL_FACTOR {
        Ok(text)
    } else {
        Err(text)
    }
}

fn undone(culprit: &Culprit) -> Result<String, String> {
    let undo = culprit.undo.as_ref().ok_or("no undo in the audit log")?;
    let text = format!(
        "lease {}, the cgroup file says {} again",
        undo.why, undo.found.text
    );
    if undo.found == culprit.original {
        Ok(text)
    } else {
        Err(format!(
            "the file says {}, it was {}",
            undo.found.text, culprit.original.text
        ))
    }
}

/// Median of the p99 of the windows that lie wholly in that time.
fn median_p99(case: &Case, from: Duration, to: Duration) -> Option<f64> {
    let inside = |window: &&Window| window.from >= from && window.to <= to && window.requests > 0;
    median(
        case.windows
            .iter()
            .filter(inside)
            .map(|window| window.p99_ms)
            .collect(),
    )
}

pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    if values.len() < MIN_WINDOWS {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    Some(f64::midpoint(
        values[(values.len() - 1) / 2],
        values[middle],
    ))
}
