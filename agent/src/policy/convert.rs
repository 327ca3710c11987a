//! From what a guest returned to requests that the core can rely on.
//!
//! Invariant: whatever leaves here is in range, bounded and within the powers that the manifest
//! asks for; whatever was changed or dropped on the way is a strike.

use super::bindings::palisade::policy::types as wit;
use super::error::power_name;
use super::limits::{
    EVIDENCE_PER_REQUEST, LEASE_MS, QUOTA_PERMILLE, REQUESTS_PER_CALL, STRING_BYTES,
};
use super::strikes::{Strike, StrikeKind, tidy};
use palisade_core::{Action, Evidence, Power, ProcessId, Request, Severity, Target, WorkloadId};

/// The good requests, and at most one strike for the rest. Nonsense outranks excess. `powers` are
/// those of the manifest: what the operator read there is all that the policy may do.
pub fn requests(raw: Vec<wit::Request>, powers: &[Power]) -> (Vec<Request>, Option<Strike>) {
    let mut nonsense = None;
    let mut excess = None;
    if raw.len() > REQUESTS_PER_CALL {
        excess = Some(format!(
            "{} requests, {REQUESTS_PER_CALL} are allowed",
            raw.len()
        ));
    }
    let mut good = Vec::with_capacity(raw.len().min(REQUESTS_PER_CALL));
    for (index, raw) in raw.into_iter().take(REQUESTS_PER_CALL).enumerate() {
        let mut over = None;
        match request(raw, powers, &mut over) {
            Ok(request) => good.push(request),
            Err(why) => {
                nonsense.get_or_insert_with(|| format!("request {index}: {why}"));
            }
        }
        if let Some(over) = over {
            excess.get_or_insert_with(|| format!("request {index}: {over}"));
        }
    }
    let strike = match (nonsense, excess) {
        (Some(why), _) => Some(Strike::minor(StrikeKind::Nonsense, why)),
        (None, Some(why)) => Some(Strike::minor(
            StrikeKind::OverLimit,
            format!("output over limit: {why}"),
        )),
        (None, None) => None,
    };
    (good, strike)
}

fn request(
    raw: wit::Request,
    powers: &[Power],
    over: &mut Option<String>,
) -> Result<Request, String> {
    let action = action(raw.action)?;
    if !powers.contains(&action.power()) {
        return Err(format!(
            "{}, but the manifest does not ask for the power `{}`",
            action.name(),
            power_name(action.power())
        ));
    }
    let target = target(raw.target)?;
    let contains = matches!(
        action,
        Action::CpuWeight(_) | Action::CpuQuota(_) | Action::Freeze
    );
    if contains && raw.lease_ms == 0 {
        return Err(format!("{} with a lease of 0 ms", action.name()));
    }
    if contains && raw.lease_ms > LEASE_MS {
        *over = Some(format!(
            "a lease of {} ms, {LEASE_MS} are allowed",
            raw.lease_ms
        ));
    }
    if raw.evidence.len() > EVIDENCE_PER_REQUEST {
        *over = Some(format!(
            "{} pieces of evidence, {EVIDENCE_PER_REQUEST} are allowed",
            raw.evidence.len()
        ));
    }
    let mut text = |text: &str| {
        if text.len() > STRING_BYTES {
            *over = Some(format!(
                "a text of {} bytes, {STRING_BYTES} are allowed",
                text.len()
            ));
        }
        tidy(text, STRING_BYTES)
    };
    let mut evidence = Vec::with_capacity(raw.evidence.len().min(EVIDENCE_PER_REQUEST));
    for piece in raw.evidence.into_iter().take(EVIDENCE_PER_REQUEST) {
        if !piece.value.is_finite() {
            return Err(format!(
                "evidence {:?} is {}",
                text(&piece.name),
                piece.value
            ));
        }
        evidence.push(Evidence {
            name: text(&piece.name),
            value: piece.value,
            unit: text(&piece.unit),
        });
    }
    Ok(Request {
        target,
        action,
        lease_ms: raw.lease_ms.min(LEASE_MS),
        severity: match raw.severity {
            wit::Severity::Info => Severity::Info,
            wit::Severity::Warning => Severity::Warning,
            wit::Severity::Critical => Severity::Critical,
        },
        reason: text(&raw.reason),
        evidence,
    })
}

fn action(raw: wit::Action) -> Result<Action, String> {
    match raw {
        wit::Action::Alert => Ok(Action::Alert),
        wit::Action::CpuWeight(weight @ 1..=10_000) => Ok(Action::CpuWeight(weight)),
        wit::Action::CpuWeight(weight) => {
            Err(format!("a CPU weight of {weight}, it goes from 1 to 10000"))
        }
        wit::Action::CpuQuota(permille @ 1..=QUOTA_PERMILLE) => Ok(Action::CpuQuota(permille)),
        wit::Action::CpuQuota(permille) => Err(format!(
            "a CPU quota of {permille} thousandths, it goes from 1 to {QUOTA_PERMILLE}"
        )),
        wit::Action::Freeze => Ok(Action::Freeze),
        wit::Action::Terminate => Ok(Action::Terminate),
        wit::Action::Kill => Ok(Action::Kill),
    }
}

fn target(raw: wit::Target) -> Result<Target, String> {
    match raw {
        wit::Target::Process(process) if process.pid == 0 || process.start_ns == 0 => {
            Err("a process without a pid or a start time".to_owned())
        }
        wit::Target::Process(process) => Ok(Target::Process(ProcessId {
            pid: process.pid,
            start_ns: process.start_ns,
        })),
        wit::Target::Workload(0) => Err("workload 0, which stands for none".to_owned()),
        wit::Target::Workload(id) => Ok(Target::Workload(WorkloadId(id))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::error::POWERS;
    use super::*;

    fn raw() -> wit::Request {
        wit::Request {
            target: wit::Target::Workload(7),
            action: wit::Action::CpuWeight(50),
            lease_ms: 1000,
            severity: wit::Severity::Warning,
            reason: "because".to_owned(),
            evidence: vec![wit::Evidence {
                name: "latency".to_owned(),
                value: 1.5,
                unit: "ms".to_owned(),
            }],
        }
    }

    fn only_strike(change: impl FnOnce(&mut wit::Request)) -> (usize, StrikeKind, String) {
        let mut bad = raw();
        change(&mut bad);
        let (good, strike) = requests(vec![raw(), bad], &POWERS);
        let strike = strike.unwrap();
        assert!(!strike.fatal);
        (good.len(), strike.kind, strike.detail)
    }

    #[test]
    fn good_requests_pass_unchanged() {
        let (good, strike) = requests(vec![raw()], &POWERS);
        assert_eq!(strike, None);
        assert_eq!(good[0].target, Target::Workload(WorkloadId(7)));
        assert_eq!(good[0].action, Action::CpuWeight(50));
        assert_eq!(good[0].evidence[0].value, 1.5);
    }

    #[test]
    fn nonsense_drops_the_request_and_spares_the_others() {
        let cases: [fn(&mut wit::Request); 8] = [
            |r| r.action = wit::Action::CpuWeight(0),
            |r| r.action = wit::Action::CpuWeight(10_001),
            |r| r.action = wit::Action::CpuQuota(0),
            |r| r.action = wit::Action::CpuQuota(u32::MAX),
            |r| r.lease_ms = 0,
            |r| r.evidence[0].value = f64::NAN,
            |r| r.target = wit::Target::Workload(0),
            |r| {
                r.target = wit::Target::Process(wit::Process {
                    pid: 1,
                    start_ns: 0,
                });
            },
        ];
        for change in cases {
            let (good, kind, _) = only_strike(change);
            assert_eq!((good, kind), (1, StrikeKind::Nonsense));
        }
    }

    #[test]
    fn only_powers_of_the_manifest_are_asked_for() {
        let mut kill = raw();
        kill.action = wit::Action::Kill;
        let (good, strike) = requests(vec![kill.clone(), raw()], &[Power::Throttle]);
        assert_eq!(good[0].action, Action::CpuWeight(50));
        let strike = strike.unwrap();
        assert_eq!((good.len(), strike.kind), (1, StrikeKind::Nonsense));
        assert!(strike.detail.contains("power `kill`"), "{strike}");
        // A power is not implied by a stronger one: the SDK holds its authors to that too.
        let (good, strike) = requests(vec![kill, raw()], &[Power::Kill]);
        assert_eq!((good.len(), strike.is_some()), (1, true));
    }

    #[test]
    fn excess_is_cut_and_struck() {
        let cases: [fn(&mut wit::Request); 3] = [
            |r| r.reason = "x".repeat(STRING_BYTES + 1),
            |r| r.evidence = vec![r.evidence[0].clone(); EVIDENCE_PER_REQUEST + 1],
            |r| r.lease_ms = u32::MAX,
        ];
        for change in cases {
            let (good, kind, _) = only_strike(change);
            assert_eq!((good, kind), (2, StrikeKind::OverLimit));
        }
        let (good, strike) = requests(vec![raw(); REQUESTS_PER_CALL + 1], &POWERS);
        assert_eq!(good.len(), REQUESTS_PER_CALL);
        assert_eq!(strike.unwrap().kind, StrikeKind::OverLimit);
    }
}
