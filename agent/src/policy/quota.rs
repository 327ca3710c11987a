//! How much a policy may ask for in a while.
//!
//! Invariants:
//! - What the rest of the agent has to hold for an instance grows no faster than its limits say,
//!   however often it is called: the bounds on one call are no bound on many.
//! - Event time only: the same requests at the same times fare the same.

use super::limits::Limits;
use super::strikes::{Strike, StrikeKind};
use palisade_core::{Evidence, Request};

const SECOND_NS: u64 = 1_000_000_000;

/// What is left of an instance's requests and their bytes. It can save up a second's worth.
#[derive(Debug)]
pub(super) struct Quota {
    requests: Bucket,
    bytes: Bucket,
    now_ns: u64,
    /// When it last was over.
    struck_ns: Option<u64>,
}

/// Counts in time: what was taken lately, in the nanoseconds that it takes to earn it.
#[derive(Debug)]
struct Bucket {
    per_second: u64,
    taken_ns: u64,
}

impl Quota {
    /// A full one.
    pub fn new(limits: &Limits) -> Self {
        let bucket = |per_second| Bucket {
            per_second,
            taken_ns: 0,
        };
        Self {
            requests: bucket(limits.requests_per_second.into()),
            bytes: bucket(limits.request_bytes_per_second as u64),
            now_ns: 0,
            struck_ns: None,
        }
    }

    /// Drops what is too much of `requests`. That is a strike, at most one a second: how many calls
    /// there are in one is not the policy's doing.
    pub fn take(&mut self, now_ns: u64, requests: &mut Vec<Request>) -> Option<Strike> {
        let earned = now_ns.saturating_sub(self.now_ns);
        self.now_ns = self.now_ns.max(now_ns);
        for bucket in [&mut self.requests, &mut self.bytes] {
            bucket.taken_ns = bucket.taken_ns.saturating_sub(earned);
        }
        let asked = requests.len();
        requests.retain(|request| self.fits(bytes(request)));
        let dropped = asked - requests.len();
        let since = self.struck_ns.map(|struck| now_ns.saturating_sub(struck));
        if dropped == 0 || since.is_some_and(|since| since < SECOND_NS) {
            return None;
        }
        self.struck_ns = Some(now_ns);
        Some(Strike::minor(
            StrikeKind::OverLimit,
            format!(
                "too many requests: {dropped} of {asked} were dropped, {} and {} bytes a second are allowed",
                self.requests.per_second, self.bytes.per_second
            ),
        ))
    }

    fn fits(&mut self, bytes: u64) -> bool {
        let (Some(requests), Some(bytes)) = (self.requests.with(1), self.bytes.with(bytes)) else {
            return false;
        };
        self.requests.taken_ns = requests;
        self.bytes.taken_ns = bytes;
        true
    }
}

impl Bucket {
    /// What is taken then, if there is enough.
    fn with(&self, units: u64) -> Option<u64> {
        let cost = units
            .saturating_mul(SECOND_NS)
            .checked_div(self.per_second)?;
        let taken = self.taken_ns.saturating_add(cost);
        (taken <= SECOND_NS).then_some(taken)
    }
}

/// Memory that a request takes.
fn bytes(request: &Request) -> u64 {
    let evidence = request.evidence.iter();
    let evidence = evidence
        .map(|piece| size_of::<Evidence>() + piece.name.len() + piece.unit.len())
        .sum::<usize>();
    (size_of::<Request>() + request.reason.len() + evidence) as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use palisade_core::{Action, Severity, Target, WorkloadId};

    fn quota(requests_per_second: u32, request_bytes_per_second: usize) -> Quota {
        Quota::new(&Limits {
            requests_per_second,
            request_bytes_per_second,
            ..Limits::default()
        })
    }

    fn request(reason: usize) -> Request {
        Request {
            target: Target::Workload(WorkloadId(1)),
            action: Action::Alert,
            lease_ms: 0,
            severity: Severity::Info,
            reason: "x".repeat(reason),
            evidence: Vec::new(),
        }
    }

    fn taken(quota: &mut Quota, now_ns: u64, requests: usize) -> (usize, bool) {
        let mut requests = vec![request(0); requests];
        let strike = quota.take(now_ns, &mut requests);
        (requests.len(), strike.is_some())
    }

    #[test]
    fn a_second_s_worth_can_be_saved_up_and_no_more() {
        let mut quota = quota(10, 1 << 20);
        let now = 100 * SECOND_NS;
        assert_eq!(taken(&mut quota, now, 10), (10, false));
        assert_eq!(taken(&mut quota, now, 1), (0, true));
        assert_eq!(taken(&mut quota, now + SECOND_NS / 2, 9), (5, false));
        assert_eq!(taken(&mut quota, now + SECOND_NS, 9), (5, true));
        assert_eq!(taken(&mut quota, now + 60 * SECOND_NS, 11), (10, true));
        assert_eq!(taken(&mut quota, now, 1), (0, false), "time went back");
    }

    #[test]
    fn large_requests_use_up_bytes() {
        let mut quota = quota(1000, 10_000);
        let mut requests = vec![request(6000), request(6000), request(0)];
        let strike = quota.take(SECOND_NS, &mut requests).unwrap();
        assert_eq!(requests, [request(6000), request(0)]);
        assert!(strike.detail.contains("too many requests"), "{strike}");
    }

    #[test]
    fn a_limit_of_none_lets_nothing_pass() {
        assert_eq!(taken(&mut quota(0, 1 << 20), SECOND_NS, 1), (0, true));
        assert_eq!(taken(&mut quota(10, 0), SECOND_NS, 1), (0, true));
    }
}
