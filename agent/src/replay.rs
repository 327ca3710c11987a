//! Replay: policies and the core over a recording, with nothing of this host.
//!
//! Invariants: the same recording with the same policies and configuration gives the same lines, byte for byte.
//! Nothing is acted on: every effect is answered as done. Identity comes from the recording alone.

use crate::config::Config;
use crate::exit::{self, coded};
use crate::identity::ScopeRoots;
use crate::policy::{EngineShared, Lookup, PolicyEvent, ProcessFacts, Stepper, WorkloadFacts};
use crate::recording::{Frame, Identity, Reader};
use crate::runtime::options;
use anyhow::{Context, Result};
use palisade_abi::{Lost, kind};
use palisade_core::{
    ActOutcome, Core, Effect, Grant, Input, Member, PolicyOutput, PolicyRef, ProcessId,
    ProtectList, Target, TargetFacts, WorkloadId,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// CPU time of one call in a replay: only a call that never ends is cut off.
const REPLAY_DEADLINE: Duration = Duration::from_secs(30);

/// What a replay gave.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Decisions and undos, in order.
    pub decisions: Vec<Line>,
    /// Batches read.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Time of the first batch, `CLOCK_BOOTTIME` nanoseconds of the recording's host.
    pub first_ns: u64,
    /// What people should know: strikes of policies, a recording that was cut off.
    pub notes: Vec<String>,
}

/// A decision or an undo.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// When, `CLOCK_BOOTTIME` nanoseconds of the recording's host.
    pub time_ns: u64,
    /// What.
    #[serde(flatten)]
    pub effect: Effect,
}

impl Line {
    /// For people.
    pub fn in_words(&self) -> String {
        match &self.effect {
            Effect::Record { decision } => {
                let verdict = serde_json::to_value(&decision.verdict).ok();
                let verdict = verdict
                    .as_ref()
                    .and_then(|verdict| verdict["verdict"].as_str())
                    .unwrap_or("?");
                format!(
                    "{} asks for {}: {verdict}. {}",
                    decision.policy.name, decision.request.action, decision.request.reason
                )
            }
            Effect::Undo { lease, why, .. } => format!("lease on {} undone: {why}", lease.cgroup),
            other => format!("{other:?}"),
        }
    }
}

/// Replays the recording in `path` through the configuration's policies, in order of their names.
pub fn replay(path: &Path, config: &Config) -> Result<Outcome> {
    let tables = Recorded::default();
    let shared = EngineShared::new(Arc::new(tables.clone()))
        .map_err(|error| anyhow::anyhow!("cannot start the policy host: {error}"))?;
    // Not this process and its ancestors: they are no part of the recording.
    let protect = options::with_operators_rules(ProtectList::new(&[], None), config)?;
    let mut core = Core::new(config.core.clone(), protect, 0);
    let mut seats = Vec::new();
    let mut grants = Vec::new();
    let mut policies: Vec<_> = config.policies.iter().collect();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    for policy in policies {
        let mut source = options::policy_source(policy);
        // A deadline is about this machine's speed, not about the recording.
        source.limits.call_deadline = REPLAY_DEADLINE;
        let seat = Stepper::new(&shared, &source, 1)
            .map_err(|error| coded(exit::POLICY, format!("policy '{}': {error}", policy.name)))?;
        grants.push((seat.reference().clone(), policy.grant.clone()));
        seats.push(seat);
    }
    let mut player = Player {
        core: &mut core,
        grants,
        outcome: Outcome::default(),
    };
    player.step(0, Input::Policies(player.grants.clone()));
    for frame in Reader::open(path).with_context(|| format!("cannot replay {}", path.display()))? {
        match frame {
            Ok(Frame::Batch(batch)) => {
                player.until(batch.now_ns);
                player.outcome.batches += 1;
                player.outcome.records += batch.records.len() as u64;
                if player.outcome.first_ns == 0 {
                    player.outcome.first_ns = batch.now_ns;
                }
                tables.observe(&batch.records);
                for record in batch.records.iter() {
                    if let Some(lost) = record.get::<Lost>() {
                        let workload = (record.header.workload != 0)
                            .then_some(WorkloadId(record.header.workload));
                        player.step(
                            batch.now_ns,
                            Input::Lost {
                                workload,
                                count: lost.count,
                            },
                        );
                    }
                }
                for seat in &mut seats {
                    for event in seat.step(&batch, 0) {
                        player.hear(batch.now_ns, event, &tables, config);
                    }
                }
            }
            Ok(Frame::Identity(identity)) => tables.learn(identity),
            Ok(_) => {}
            Err(error) if error.is_torn() => player.outcome.notes.push(error.to_string()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot replay {}", path.display()));
            }
        }
    }
    // What is still held ends by itself.
    player.until(u64::MAX);
    Ok(player.outcome)
}

struct Player<'a> {
    core: &'a mut Core,
    grants: Vec<(PolicyRef, Grant)>,
    outcome: Outcome,
}

impl Player<'_> {
    fn step(&mut self, now_ns: u64, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for effect in self.core.step(now_ns, input) {
                if let Effect::Act { id, .. } | Effect::Alert { id, .. } | Effect::Undo { id, .. } =
                    &effect
                {
                    let outcome = ActOutcome::Done {
                        observed: "replayed".to_owned(),
                        original: None,
                    };
                    inputs.push_back(Input::Outcome {
                        effect: *id,
                        outcome,
                    });
                }
                if matches!(effect, Effect::Record { .. } | Effect::Undo { .. }) {
                    self.outcome.decisions.push(Line {
                        time_ns: now_ns,
                        effect,
                    });
                }
            }
        }
    }

    fn hear(&mut self, now_ns: u64, event: PolicyEvent, tables: &Recorded, config: &Config) {
        match event {
            PolicyEvent::Output {
                policy,
                batch,
                requests,
                ..
            } => {
                let requests = requests.into_iter().map(|request| {
                    let facts = tables.facts(&request.target, &config.watch.scope);
                    (request, facts)
                });
                self.step(
                    now_ns,
                    Input::Requests(PolicyOutput {
                        policy,
                        batch,
                        requests: requests.collect(),
                    }),
                );
            }
            PolicyEvent::Strike {
                policy,
                detail,
                batch,
                ..
            } => {
                self.outcome.notes.push(format!(
                    "policy '{}' was struck at batch {batch}: {detail}",
                    policy.name
                ));
            }
            PolicyEvent::Ejected {
                policy,
                reason,
                batch,
            } => {
                self.outcome.notes.push(format!(
                    "policy '{}' was ejected at batch {batch}: {reason}",
                    policy.name
                ));
                self.grants.retain(|(other, _)| other.name != policy.name);
                self.step(now_ns, Input::Policies(self.grants.clone()));
            }
            PolicyEvent::Lost {
                policy, records, ..
            } => {
                let missed = Input::Missed {
                    policy: policy.name,
                    count: records,
                };
                self.step(now_ns, missed);
            }
            // One instance plays all through: it is not loaded, reloaded or rolled back here.
            PolicyEvent::Loaded { .. }
            | PolicyEvent::Rejected { .. }
            | PolicyEvent::Unloaded { .. }
            | PolicyEvent::Restarted { .. }
            | PolicyEvent::RolledBack { .. }
            | PolicyEvent::Log { .. } => {}
        }
    }

    /// Lets the deadlines pass that lie before `now_ns`.
    fn until(&mut self, now_ns: u64) {
        while let Some(at) = self.core.next_deadline().filter(|at| *at < now_ns) {
            self.step(at, Input::Tick);
        }
    }
}

/// The identities of a recording.
#[derive(Clone, Default)]
struct Recorded(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    processes: BTreeMap<ProcessId, ProcessFacts>,
    ended: BTreeSet<ProcessId>,
    workloads: BTreeMap<WorkloadId, WorkloadFacts>,
    files: BTreeMap<(u32, u64), String>,
}

impl Recorded {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, identity: Identity) {
        let mut known = self.lock();
        match identity {
            Identity::Process {
                process,
                parent,
                comm,
                exe,
                workload,
            } => {
                let workload = workload.map_or(0, |workload| workload.0);
                known.processes.insert(
                    process,
                    ProcessFacts {
                        parent,
                        comm,
                        exe,
                        workload,
                    },
                );
            }
            Identity::Workload {
                workload,
                cgroup,
                container,
            } => {
                known
                    .workloads
                    .insert(workload, WorkloadFacts { cgroup, container });
            }
            Identity::File {
                device,
                inode,
                path,
            } => {
                known.files.insert((device, inode), path);
            }
        }
    }

    fn observe(&self, records: &[palisade_abi::Record]) {
        let mut known = self.lock();
        for record in records
            .iter()
            .filter(|record| record.header.kind == kind::EXIT)
        {
            known.ended.insert(ProcessId {
                pid: record.header.pid,
                start_ns: record.header.start_ns,
            });
        }
    }

    fn facts(&self, target: &Target, scope: &ScopeRoots) -> TargetFacts {
        let known = self.lock();
        let (alive, workload) = match target {
            Target::Process(process) => {
                let info = known
                    .processes
                    .get(process)
                    .filter(|_| !known.ended.contains(process));
                (info.is_some(), info.map(|info| WorkloadId(info.workload)))
            }
            Target::Workload(workload) => (known.workloads.contains_key(workload), Some(*workload)),
        };
        let cgroup = workload
            .and_then(|workload| known.workloads.get(&workload))
            .map(|info| info.cgroup.clone());
        let members = known
            .processes
            .iter()
            .filter(|(process, info)| {
                Some(WorkloadId(info.workload)) == workload && !known.ended.contains(process)
            })
            .map(|(process, info)| Member {
                process: *process,
                exe: info.exe.clone(),
                kernel_thread: false,
            })
            .collect();
        let watched = cgroup.as_ref().is_some_and(|cgroup| scope.covers(cgroup));
        let detail = if alive {
            String::new()
        } else {
            "not in the recording, or ended before".to_owned()
        };
        TargetFacts {
            alive,
            detail,
            workload,
            cgroup,
            watched,
            members,
        }
    }
}

impl Lookup for Recorded {
    fn process_of(&self, process: ProcessId) -> Option<ProcessFacts> {
        self.lock().processes.get(&process).cloned()
    }

    fn workload_of(&self, workload: WorkloadId) -> Option<WorkloadFacts> {
        self.lock().workloads.get(&workload).cloned()
    }

    fn file_path(&self, device: u32, inode: u64) -> Option<String> {
        self.lock().files.get(&(device, inode)).cloned()
    }
}
