//! One running copy of a policy: a store of its own, called synchronously.
//!
//! Invariants:
//! - The same compiled policy, settings and batches give the same requests.
//! - After a fatal strike the instance must not be called again; its owner discards it.
//! - A record is given to the policy at most once, in order.

use super::bindings::Policy;
use super::compiled::Compiled;
use super::convert;
use super::engine::EngineShared;
use super::host::{HostState, LogLine};
use super::limits::{Limits, OUTPUT_BYTES, RECORDS_PER_CALL};
use super::quota::Quota;
use super::settings::Setting;
use super::strikes::{Strike, StrikeKind, tidy};
use crate::batch::Batch;
use palisade_abi::{Header, LOSS_SOURCES, Lost, PATH_SLOTS, Record, kind, words};
use palisade_core::{Power, Request};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wasmtime::{Store, Trap};

/// Records given to a policy in one call; larger batches are split.
pub const MAX_RECORDS_PER_CALL: usize = RECORDS_PER_CALL;
/// Index of "policy-queue" in [`LOSS_SOURCES`].
const QUEUE_LOSS: u32 = 2;
const _: () = assert!(matches!(
    LOSS_SOURCES[QUEUE_LOSS as usize].as_bytes(),
    b"policy-queue"
));

/// Why an instance did not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// A function's type is not the world's.
    #[error("it does not fit the world of policies: {0}")]
    World(String),
    /// Memory, tables or start functions.
    #[error("it cannot be instantiated: {0}")]
    Instantiate(Strike),
    /// `init` said no, in its own words.
    #[error("{0}")]
    Refused(String),
    /// `init` misbehaved.
    #[error("init: {0}")]
    Init(Strike),
}

/// What a call gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallOutput {
    /// Checked and bounded.
    pub requests: Vec<Request>,
    /// What was wrong with the rest; never fatal.
    pub strike: Option<Strike>,
}

/// What delivering a batch gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delivery {
    /// Checked and bounded, in order.
    pub requests: Vec<Request>,
    /// What went wrong; only the last one can be fatal.
    pub strikes: Vec<Strike>,
    /// Records that calls returned for.
    pub records: u64,
    /// After a fatal strike: where in the batch the records lie that the call was given which did
    /// not return. What is behind them was given to no call.
    pub undelivered: Option<Range<usize>>,
}

/// Numbers about an instance's calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallStats {
    /// Calls of `on-batch` and `on-tick`.
    pub calls: u64,
    /// Time spent in them, nanoseconds.
    pub total_ns: u64,
    /// The longest, nanoseconds.
    pub max_ns: u64,
}

/// A running policy.
pub struct Instance {
    shared: Arc<EngineShared>,
    store: Store<HostState>,
    guest: Policy,
    mask: u64,
    powers: Vec<Power>,
    call_deadline: Duration,
    init_deadline: Duration,
    checkpoint_bytes: usize,
    quota: Quota,
    stats: CallStats,
    scratch: Vec<Record>,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { mask, stats, .. } = self;
        f.debug_struct("Instance")
            .field("mask", mask)
            .field("stats", stats)
            .finish_non_exhaustive()
    }
}

impl Instance {
    /// Instantiates `compiled` as the policy `name` and calls its `init`.
    ///
    /// # Errors
    /// It does not fit, said no, or misbehaved.
    pub fn new(
        shared: &Arc<EngineShared>,
        name: &str,
        compiled: &Compiled,
        settings: &[(String, Setting)],
        limits: &Limits,
    ) -> Result<Self, StartError> {
        let mut store = shared.store(name, limits);
        store.set_hostcall_fuel(OUTPUT_BYTES);
        store.data_mut().begin(0, limits.init_deadline);
        store.set_epoch_deadline(1);
        let instance = {
            let _ticking = shared
                .ticker
                .run()
                .map_err(|error| StartError::Instantiate(unwatched(&error)))?;
            compiled.pre.instance_pre().instantiate(&mut store)
        };
        let instance = instance.map_err(|error| StartError::Instantiate(strike(&store, &error)))?;
        let guest = Policy::new(&mut store, &instance)
            .map_err(|error| StartError::World(tidy(&format!("{error:#}"), 1024)))?;
        let mut this = Self {
            shared: Arc::clone(shared),
            store,
            guest,
            mask: compiled.manifest.mask(),
            powers: compiled.manifest.powers.clone(),
            call_deadline: limits.call_deadline,
            init_deadline: limits.init_deadline,
            checkpoint_bytes: limits.checkpoint_bytes,
            quota: Quota::new(limits),
            stats: CallStats::default(),
            scratch: Vec::with_capacity(RECORDS_PER_CALL),
        };
        let settings: Vec<_> = settings
            .iter()
            .map(|(name, value)| (name.clone(), value.to_wit()))
            .collect();
        let deadline = this.init_deadline;
        let answer = this.call(0, deadline, |guest, store| {
            guest.call_init(store, &settings)
        });
        match answer {
            Ok(Ok(())) => Ok(this),
            Ok(Err(no)) => Err(StartError::Refused(tidy(&no, 1024))),
            Err(strike) => Err(StartError::Init(strike)),
        }
    }

    /// Gives it records in one call, whatever their kind. Meant for at most
    /// [`MAX_RECORDS_PER_CALL`]: [`Self::deliver`] filters and splits.
    ///
    /// # Errors
    /// A fatal strike.
    pub fn on_batch(&mut self, now_ns: u64, records: &[Record]) -> Result<CallOutput, Strike> {
        let deadline = self.call_deadline;
        let begun = Instant::now();
        let answer = self.call(now_ns, deadline, |guest, store| {
            guest.call_on_batch(store, now_ns, words(records))
        });
        self.count(begun);
        answer.map(|raw| CallOutput::new(raw, &self.powers))
    }

    /// Tells it that time passed.
    ///
    /// # Errors
    /// A fatal strike.
    pub fn on_tick(&mut self, now_ns: u64) -> Result<CallOutput, Strike> {
        let deadline = self.call_deadline;
        let begun = Instant::now();
        let answer = self.call(now_ns, deadline, |guest, store| {
            guest.call_on_tick(store, now_ns)
        });
        self.count(begun);
        answer.map(|raw| CallOutput::new(raw, &self.powers))
    }

    /// Gives it what it subscribed to of `batch`, from the record at `from` on, in as many calls
    /// as it takes; or a tick, if that is nothing and the window ends. `lost` records were dropped
    /// before this batch: it is told first.
    pub fn deliver(&mut self, batch: &Batch, lost: u64, from: usize) -> Delivery {
        let mut delivery = Delivery::default();
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        if lost > 0 {
            scratch.push(lost_record(batch.now_ns, lost));
        }
        // What is behind `start` is not delivered yet, what is behind `at` not looked at.
        let (mut start, mut at) = (from, from);
        let records = &batch.records[..];
        while let Some(record) = records.get(at) {
            if record.header.kind == kind::FILE_NAME {
                at = records.len().min(at + PATH_SLOTS);
                continue;
            }
            if wanted(self.mask, record.header.kind) {
                scratch.push(*record);
            }
            at += 1;
            if scratch.len() == RECORDS_PER_CALL {
                if !self.step(batch.now_ns, &scratch, start..at, &mut delivery) {
                    break;
                }
                scratch.clear();
                start = at;
            }
        }
        if delivery.undelivered.is_none() {
            let idle = scratch.is_empty() && delivery.records == 0;
            if !scratch.is_empty() || (idle && batch.window_end) {
                self.step(batch.now_ns, &scratch, start..at, &mut delivery);
            }
        }
        self.scratch = scratch;
        delivery
    }

    /// One call, a tick if there are no records. False after a fatal strike. `place` is where in
    /// the batch the records are.
    fn step(
        &mut self,
        now_ns: u64,
        records: &[Record],
        place: Range<usize>,
        into: &mut Delivery,
    ) -> bool {
        let output = if records.is_empty() {
            self.on_tick(now_ns)
        } else {
            self.on_batch(now_ns, records)
        };
        match output {
            Ok(mut output) => {
                let too_many = self.quota.take(now_ns, &mut output.requests);
                into.records += records.len() as u64;
                into.requests.append(&mut output.requests);
                into.strikes
                    .extend(output.strike.into_iter().chain(too_many));
                true
            }
            Err(strike) => {
                into.strikes.push(strike);
                into.undelivered = Some(place);
                false
            }
        }
    }

    /// Asks for its state.
    ///
    /// # Errors
    /// A fatal strike; also if the state is larger than allowed.
    pub fn checkpoint(&mut self, now_ns: u64) -> Result<Vec<u8>, Strike> {
        self.store.set_hostcall_fuel(self.checkpoint_bytes);
        let deadline = self.call_deadline;
        let state = self.call(now_ns, deadline, |guest, store| {
            guest.call_checkpoint(store)
        });
        self.store.set_hostcall_fuel(OUTPUT_BYTES);
        state
    }

    /// Gives it an earlier instance's state. The outer error is a fatal strike, the inner one the
    /// policy's own refusal; after either the instance is not to be used.
    ///
    /// # Errors
    /// A fatal strike.
    pub fn restore(
        &mut self,
        now_ns: u64,
        state_version: u32,
        state: &[u8],
    ) -> Result<Result<(), String>, Strike> {
        let deadline = self.init_deadline;
        let answer = self.call(now_ns, deadline, |guest, store| {
            guest.call_restore(store, state_version, state)
        })?;
        Ok(answer.map_err(|no| tidy(&no, 1024)))
    }

    /// Takes the lines that it logged.
    pub fn take_log(&mut self) -> Vec<LogLine> {
        self.store.data_mut().take_log()
    }

    /// Linear memory in use, bytes.
    pub fn memory_bytes(&self) -> usize {
        self.store.data().limiter.memory_bytes()
    }

    /// Numbers about its calls.
    pub fn stats(&self) -> CallStats {
        self.stats
    }

    fn call<R>(
        &mut self,
        now_ns: u64,
        deadline: Duration,
        call: impl FnOnce(&Policy, &mut Store<HostState>) -> wasmtime::Result<R>,
    ) -> Result<R, Strike> {
        self.store.data_mut().begin(now_ns, deadline);
        // Within a tick: see `host::Budget` for what happens then.
        self.store.set_epoch_deadline(1);
        let answer = {
            let _ticking = self
                .shared
                .ticker
                .run()
                .map_err(|error| unwatched(&error))?;
            call(&self.guest, &mut self.store)
        };
        answer.map_err(|error| strike(&self.store, &error))
    }

    fn count(&mut self, begun: Instant) {
        let ns = begun.elapsed().as_nanos() as u64;
        self.stats.calls += 1;
        self.stats.total_ns += ns;
        self.stats.max_ns = self.stats.max_ns.max(ns);
    }
}

impl CallOutput {
    fn new(raw: Vec<super::bindings::palisade::policy::types::Request>, powers: &[Power]) -> Self {
        let (requests, strike) = convert::requests(raw, powers);
        Self { requests, strike }
    }
}

/// Whether a record of kind `kind` passes `mask`. Kinds that are not known yet do not.
pub(super) fn wanted(mask: u64, kind: u16) -> bool {
    kind < 64 && mask >> kind & 1 == 1
}

fn lost_record(now_ns: u64, count: u64) -> Record {
    let header = Header {
        time_ns: now_ns,
        ..Header::default()
    };
    Record::new(
        header,
        Lost {
            count,
            source: QUEUE_LOSS,
            ..Lost::default()
        },
    )
}

/// A call is not made if it could not be cut off.
fn unwatched(error: &std::io::Error) -> Strike {
    Strike::fatal(
        StrikeKind::Deadline,
        format!("its CPU time cannot be watched: {error}"),
    )
}

/// Why a call did not return.
fn strike(store: &Store<HostState>, error: &wasmtime::Error) -> Strike {
    let state = store.data();
    let detail = format!("{error:#}");
    if state.missed_deadline() {
        return Strike::fatal(
            StrikeKind::Deadline,
            format!("it used up its CPU time: {detail}"),
        );
    }
    if let Some(refused) = state.limiter.refused() {
        return Strike::fatal(StrikeKind::Memory, format!("it asked for {refused}"));
    }
    // wasmtime 48 keeps the error's type to itself.
    if detail.contains("too much data is being copied between the host and the guest") {
        return Strike::fatal(
            StrikeKind::OverLimit,
            "output over limit: it gave far too much",
        );
    }
    if error.downcast_ref::<Trap>().is_some() {
        return Strike::fatal(StrikeKind::Trap, detail);
    }
    Strike::fatal(StrikeKind::Nonsense, detail)
}
