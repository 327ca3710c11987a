//! Replay: policies and the core over a recording, with nothing of this host.
//!
//! Invariants: the same recording with the same policies and configuration gives the same lines, byte for byte,
//! at any speed; where they are those of the recorded run, the same decisions as that run's. Nothing is acted on.
//! Identity comes from the recording alone. Where the decisions may differ from the run's, the outcome says why.

mod anew;
mod answers;
mod beginning;
mod desk;
mod follow;
mod pace;
mod recorded;
mod seat;
mod summary;

pub use pace::Speed;
pub use summary::{Summary, kind_name, summary};

use crate::batch::Batch;
use crate::config::{Config, units};
use crate::exit::{self, coded};
use crate::policy::{EngineShared, Stepper};
use crate::recording::{Entry, Reader};
use crate::runtime::options::{self, Own};
use anew::Anew;
use answers::Answers;
use anyhow::{Context, Result};
use beginning::Beginning;
use desk::Desk;
use follow::Follow;
use pace::Pace;
use palisade_core::{Core, Effect};
use recorded::Recorded;
use seat::Seat;
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
    /// The recording ends before what it is of: its file was full, or it was cut off. A note says which.
    pub partial: bool,
    /// Why the decisions may not be those of the recorded run. Empty: they are, as far as the recording goes.
    pub differs: Vec<String>,
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
    let origin = reader.origin();
    let beginning = Beginning::read(&mut reader, &origin);
    let tables = Recorded::default();
    let answers = Answers::new(tables.clone());
    beginning.answers(&answers);
    let (seats, grants) = seats(config, &answers)?;
    let why_anew = beginning.why_anew(&origin, config, &seats);
    let start = beginning.start.clone().unwrap_or_default();
    // Not this process and its ancestors, but the recorded agent and its own.
    let own = Own {
        pids: start.own_pids,
        exe: start.own_exe,
    };
    let protect = options::protect_list(config, &own)?;
    let mut core = config.core.clone();
    let mut player = if why_anew.is_empty() {
        core.disarmed = start.disarmed;
        let core = Core::new(core, protect, start.run_seed);
        let mut follow = Follow::new(Desk::new(core, each), seats, &tables);
        follow.recorded_by(&origin.agent);
        Player::Follow(follow)
    } else {
        let mut desk = Desk::new(Core::new(core, protect, start.run_seed), each);
        desk.differs(why_anew);
        Player::Anew(Anew::new(
            desk,
            seats,
            grants,
            origin.policies,
            config,
            &tables,
        ))
    };
    let mut pace = Pace::new(speed);
    let mut cut = None;
    for entry in beginning.entries.into_iter().chain(reader.by_ref()) {
        match entry {
            Ok(Entry::Batch(batch)) => {
                pace.wait_for(batch.now_ns);
                tables.observe(&batch);
                player.batch(&batch);
            }
            Ok(Entry::Identity(identity)) => tables.learn(identity),
            Ok(Entry::Full { max_bytes }) => {
                let size = units::show_size(max_bytes);
                cut = Some(format!(
                    "the recording ended before the run did, because its file had reached its largest size ({size}): what \
                     came after is not in it"
                ));
            }
            Ok(entry) => player.entry(entry, &answers),
            Err(error) if error.is_torn() => cut = Some(error.to_string()),
            Err(error) => return Err(error).with_context(context),
        }
        player.desk().failed()?;
    }
    if !reader.ended() {
        let unknown = "the recording was not closed in order: its end may be missing";
        cut.get_or_insert_with(|| unknown.to_owned());
    }
    let partial = cut.is_some();
    player.desk().notes(cut);
    let outcome = player.end(partial)?;
    Ok(Outcome { partial, ..outcome })
}

/// The two ways of a replay.
enum Player<'a> {
    Follow(Follow<'a>),
    Anew(Anew<'a>),
}

impl<'a> Player<'a> {
    fn batch(&mut self, batch: &Batch) {
        match self {
            Player::Follow(follow) => follow.batch(batch),
            Player::Anew(anew) => anew.batch(batch),
        }
    }

    fn entry(&mut self, entry: Entry, answers: &Answers) {
        match self {
            Player::Follow(follow) => {
                answers.learn(&entry);
                follow.entry(entry);
            }
            Player::Anew(anew) => anew.entry(entry),
        }
    }

    fn desk(&mut self) -> &mut Desk<'a> {
        match self {
            Player::Follow(follow) => follow.desk(),
            Player::Anew(anew) => anew.desk(),
        }
    }

    fn end(self, partial: bool) -> Result<Outcome> {
        match self {
            Player::Follow(follow) => follow.end(partial),
            Player::Anew(anew) => anew.end(),
        }
    }
}

type Grants = Vec<(palisade_core::PolicyRef, palisade_core::Grant)>;

/// The policies, in order of their names, and what each is granted.
fn seats(config: &Config, answers: &Answers) -> Result<(Vec<Seat>, Grants)> {
    let shared = EngineShared::new(Arc::new(answers.clone()))
        .map_err(|error| anyhow::anyhow!("cannot start the policy host: {error}"))?;
    let (mut seats, mut grants) = (Vec::new(), Vec::new());
    let mut policies: Vec<_> = config.policies.iter().collect();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    for policy in policies {
        let mut source = options::policy_source(policy);
        // A deadline is about this machine's speed, not about the recording.
        source.limits.call_deadline = REPLAY_DEADLINE;
        let stepper = Stepper::new(&shared, &source, 1)
            .map_err(|error| coded(exit::POLICY, format!("policy '{}': {error}", policy.name)))?;
        grants.push((stepper.reference().clone(), policy.grant.clone()));
        seats.push(Seat::new(stepper, source.limits.queue_batches));
    }
    Ok((seats, grants))
}
