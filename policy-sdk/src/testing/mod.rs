//! Drives a policy natively: scripted events in, requests out, time by hand.
//!
//! The harness is as strict as the agent: a policy sees only the kinds that its manifest
//! subscribes to, gets every setting of the manifest, and a request that the agent would
//! refuse at the door (power not asked for, evidence that is not finite, no reason) panics.

mod endure;
pub mod fake;
mod manifest;
mod records;

pub use endure::endure;
pub use manifest::Manifest;
pub use records::{Proc, absent};

use crate::{Action, Described, MS, Policy, Record, Request, Requests, SECOND, Setting, Settings};

/// The value of a request's piece of evidence.
///
/// # Panics
/// If the request has none of that name.
pub fn evidence(request: &Request, name: &str) -> f64 {
    let found = request.evidence.iter().find(|item| item.name == name);
    found
        .unwrap_or_else(|| panic!("no `{name}` in {request:?}"))
        .value
}

/// A policy under test.
#[derive(Debug)]
pub struct Harness<P> {
    policy: P,
    manifest: Manifest,
    settings: Settings,
    now_ns: u64,
    pending: Vec<Record>,
}

impl<P: Policy + Described> Harness<P> {
    /// The policy with the defaults of its manifest. Forgets the script of [`fake`].
    ///
    /// # Errors
    /// What [`Policy::init`] answered.
    pub fn new() -> Result<Self, String> {
        Self::with(&[])
    }

    /// The policy with some settings changed. Forgets the script of [`fake`].
    ///
    /// # Errors
    /// What [`Policy::init`] answered.
    ///
    /// # Panics
    /// If the manifest is not valid, or does not know a setting or its type.
    pub fn with(changed: &[(&str, Setting)]) -> Result<Self, String> {
        fake::reset();
        let manifest = Manifest::parse(P::MANIFEST).expect("the manifest is valid");
        let settings = manifest
            .settings(changed)
            .expect("the settings fit the manifest");
        let policy = P::init(&settings)?;
        Ok(Self {
            policy,
            manifest,
            settings,
            now_ns: 1000 * SECOND,
            pending: Vec::new(),
        })
    }

    /// Event time, nanoseconds.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// The policy, to look into it.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Lets time pass.
    pub fn advance_ms(&mut self, ms: u64) {
        self.now_ns = self.now_ns.saturating_add(ms.saturating_mul(MS));
    }

    /// Puts a record into the next batch, with the time of now.
    pub fn push(&mut self, mut record: Record) {
        record.header.time_ns = self.now_ns;
        self.pending.push(record);
    }

    /// Delivers what was pushed as one batch, as far as it is subscribed to.
    pub fn deliver(&mut self) -> Vec<Request> {
        let mut batch = std::mem::take(&mut self.pending);
        batch.retain(|record| self.manifest.subscribes(record));
        let mut out = Requests::default();
        self.policy.on_batch(self.now_ns, &batch, &mut out);
        self.checked(out)
    }

    /// Delivers records as they are: any kind, any time, any body.
    pub fn deliver_raw(&mut self, now_ns: u64, records: &[Record]) -> Vec<Request> {
        let mut out = Requests::default();
        self.policy.on_batch(now_ns, records, &mut out);
        self.checked(out)
    }

    /// A tick.
    pub fn tick(&mut self) -> Vec<Request> {
        let mut out = Requests::default();
        self.policy.on_tick(self.now_ns, &mut out);
        self.checked(out)
    }

    /// A hot reload: a new instance takes over the state of this one.
    ///
    /// # Errors
    /// What [`Policy::init`] or [`Policy::restore`] answered.
    pub fn reload(&mut self) -> Result<(), String> {
        let state = self.policy.checkpoint();
        self.policy = P::init(&self.settings)?;
        self.policy.restore(self.manifest.state_version, &state)
    }

    /// Offers any state to a new instance.
    ///
    /// # Errors
    /// What [`Policy::init`] or [`Policy::restore`] answered.
    pub fn restore(&mut self, state_version: u32, state: &[u8]) -> Result<(), String> {
        self.policy = P::init(&self.settings)?;
        self.policy.restore(state_version, state)
    }

    fn checked(&self, out: Requests) -> Vec<Request> {
        assert_eq!(
            out.dropped(),
            0,
            "more than {} requests in one call",
            Requests::LIMIT
        );
        for request in out.as_slice() {
            let power = request.action.power();
            assert!(
                self.manifest.powers.iter().any(|asked| asked == power),
                "the manifest does not ask for the power `{power}`"
            );
            assert!(
                !request.reason.is_empty(),
                "a request needs a reason: {request:?}"
            );
            assert!(
                request.reason.chars().count() <= 512,
                "too long a reason: {request:?}"
            );
            assert!(
                !request.evidence.is_empty(),
                "a request needs evidence: {request:?}"
            );
            assert!(
                request.evidence.len() <= 16,
                "too much evidence: {request:?}"
            );
            for item in &request.evidence {
                assert!(item.value.is_finite(), "evidence must be finite: {item:?}");
                assert!(!item.unit.is_empty(), "evidence needs a unit: {item:?}");
            }
            match request.action {
                Action::CpuQuota(quota) => assert!(quota > 0, "a quota of 0 stops the workload"),
                Action::CpuWeight(weight) => assert!((1..=10_000).contains(&weight)),
                _ => {}
            }
            assert!(
                request.lease_ms > 0,
                "a lease of 0 does nothing: {request:?}"
            );
        }
        out.into_vec()
    }
}
