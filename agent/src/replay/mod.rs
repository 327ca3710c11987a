//! Replay: policies and the core over a recording, with nothing of this host.
//!
//! Invariants: the same recording with the same policies and configuration gives the same lines, byte for byte,
//! at any speed. Nothing is acted on: every effect is answered as done. Identity comes from the recording alone.

mod pace;
mod player;
mod recorded;
mod summary;

pub use pace::Speed;
pub use summary::{Summary, kind_name, summary};

use crate::config::Config;
use crate::exit::{self, coded};
use crate::policy::{EngineShared, Stepper};
use crate::recording::{Entry, Reader};
use crate::runtime::options;
use anyhow::{Context, Result};
use pace::Pace;
use palisade_core::{Core, Effect, ProtectList};
use player::Player;
use recorded::Recorded;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// CPU time of one call in a replay: only a call that never ends is cut off.
const REPLAY_DEADLINE: Duration = Duration::from_secs(30);

/// What a replay gave.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Decisions and undos.
    pub decisions: u64,
    /// Batches read.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// What people should know: strikes of policies, a recording that was cut off.
    pub notes: Vec<String>,
}

/// A decision or an undo.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// When, `CLOCK_BOOTTIME` nanoseconds of the recording's host.
    pub time_ns: u64,
    /// Time since the first batch, nanoseconds.
    #[serde(skip)]
    pub since_ns: u64,
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

/// Replays the recording in `path` through the configuration's policies. `each` is given every decision and
/// undo as it is made; its failure ends the replay.
pub fn replay(
    path: &Path,
    config: &Config,
    speed: Speed,
    each: &mut dyn FnMut(&Line) -> Result<()>,
) -> Result<Outcome> {
    let context = || format!("cannot replay {}", path.display());
    let mut reader = Reader::open(path).with_context(context)?;
    let tables = Recorded::default();
    let (mut seats, grants) = seats(config, &tables)?;
    // Not this process and its ancestors: they are no part of the recording.
    let protect = options::with_operators_rules(ProtectList::new(&[], None), config)?;
    let core = Core::new(config.core.clone(), protect, 0);
    let mut player = Player::new(
        core,
        grants,
        reader.origin().policies,
        config,
        &tables,
        each,
    );
    player.begin();
    let mut pace = Pace::new(speed);
    let mut torn = false;
    for entry in reader.by_ref() {
        match entry {
            Ok(Entry::Batch(batch)) => {
                pace.wait_for(batch.now_ns);
                tables.observe(&batch.records);
                player.batch(&batch);
                for seat in &mut seats {
                    for event in seat.step(&batch, 0) {
                        player.hear(batch.now_ns, event);
                    }
                }
            }
            Ok(Entry::Identity(identity)) => tables.learn(identity),
            Ok(entry) => player.entry(entry),
            Err(error) if error.is_torn() => {
                torn = true;
                player.note(error.to_string());
            }
            Err(error) => return Err(error).with_context(context),
        }
        player.failed()?;
    }
    if !reader.ended() && !torn {
        player.note("the recording was not closed in order: its end may be missing".to_owned());
    }
    player.end()
}

type Grants = Vec<(palisade_core::PolicyRef, palisade_core::Grant)>;

/// The policies, in order of their names, and what each is granted.
fn seats(config: &Config, tables: &Recorded) -> Result<(Vec<Stepper>, Grants)> {
    let shared = EngineShared::new(Arc::new(tables.clone()))
        .map_err(|error| anyhow::anyhow!("cannot start the policy host: {error}"))?;
    let (mut seats, mut grants) = (Vec::new(), Vec::new());
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
    Ok((seats, grants))
}
