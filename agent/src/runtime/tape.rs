//! What a recording is told: each batch, before it what could be looked up about it, and what the core hears, with
//! the facts about targets that it is given.
//!
//! Invariant: nothing here waits for the disk, and nothing is looked up outside of the identity tables.

use crate::batch::Batch;
use crate::boot_clock;
use crate::config::Config;
use crate::identity::Tables;
use crate::recording::{CoreStart, Destination, Entry, Identity, Origin, Recorder, digest};
use crate::sensors::kernel_release;
use anyhow::{Context, Result};
use palisade_abi::{ModelFile, kind};
use palisade_core::{Input, PolicyOutput, ProcessId, Target, TargetFacts, WorkloadId};
use std::collections::{HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

/// Identities remembered as written; beyond it they are written again.
const REMEMBERED: usize = 65_536;
/// Targets whose facts are remembered as written; beyond it they are written again.
const REMEMBERED_FACTS: usize = 256;

/// Hands batches to a recorder, and before each what the policies could look up about it.
#[derive(Debug)]
pub(super) struct Tape {
    recorder: Recorder,
    written: HashSet<Key>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// With its workload: it is written again when it has moved.
    Process(ProcessId, WorkloadId),
    Workload(WorkloadId),
    File(u32, u64),
}

impl Tape {
    /// Begins a recording there, of no policies.
    pub(super) fn create(to: &Destination, config: &Config) -> Result<Self> {
        let recorder = to
            .create(&origin(config, Vec::new()))
            .map_err(anyhow::Error::from)
            .and_then(|writer| Ok(Recorder::start(writer)?))
            .with_context(|| format!("cannot record to {}", to.path.display()))?;
        Ok(Self::of(recorder))
    }

    /// The recording of a run, whose file is made when the recorder is told to begin: a start that fails leaves an
    /// earlier run's recording where it is.
    pub(super) fn of_run(to: &Destination, config: &Config) -> Result<Self> {
        let policies = config.policies.iter().map(|policy| policy.name.clone());
        let origin = origin(config, policies.collect());
        let to = to.clone();
        let recorder = Recorder::waiting(move || to.create(&origin));
        Ok(Self::of(recorder.context("cannot start a recording")?))
    }

    fn of(recorder: Recorder) -> Self {
        Self {
            recorder,
            written: HashSet::new(),
        }
    }

    /// For those who note what the core hears, and for the end.
    pub(super) fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// The batch before did not fit into a policy's queue.
    pub(super) fn dropped(&self, policy: &str, seq: u64, records: u64) {
        let policy = policy.to_owned();
        self.recorder.notes(vec![Entry::Dropped {
            policy,
            seq,
            records,
        }]);
    }

    /// Records a batch.
    pub(super) fn batch(&mut self, batch: &Batch, tables: &Tables) {
        if self.recorder.is_full() {
            // Nothing is looked up for a file that takes no more.
            self.written = HashSet::new();
            return;
        }
        if self.written.len() > REMEMBERED {
            self.written.clear();
        }
        let mut news = Vec::new();
        for record in batch.records.iter() {
            let header = &record.header;
            let workload = WorkloadId(header.workload);
            let process = ProcessId {
                pid: header.pid,
                start_ns: header.start_ns,
            };
            let key = Key::Process(process, workload);
            if header.kind == kind::EXEC {
                // It has another name now.
                self.written.remove(&key);
            }
            self.learn(&mut news, key, tables);
            self.learn(&mut news, Key::Workload(workload), tables);
            if let Some(file) = record.get::<ModelFile>() {
                self.learn(&mut news, Key::File(file.device, file.inode), tables);
            }
        }
        let (keys, identities): (Vec<Key>, Vec<Identity>) = news.into_iter().unzip();
        if !self.recorder.batch(identities, batch) {
            // It was not taken: what is news comes with a later batch.
            for key in keys {
                self.written.remove(&key);
            }
        }
    }

    /// Adds what is known under a key that was not written yet.
    fn learn(&mut self, news: &mut Vec<(Key, Identity)>, key: Key, tables: &Tables) {
        if self.written.contains(&key) {
            return;
        }
        if let Some(identity) = identity(key, tables) {
            self.written.insert(key);
            news.push((key, identity));
        }
    }
}

/// Where a recording that begins now comes from. `policies`: whose requests it will note.
fn origin(config: &Config, policies: Vec<String>) -> Origin {
    let nanos =
        |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    Origin {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        abi: palisade_abi::ABI_VERSION,
        boot_id: boot_id.unwrap_or_default().trim().to_owned(),
        kernel: kernel_release(),
        config_sha256: config.digest.clone(),
        window_ns: nanos(config.watch.window),
        started_ns: boot_clock::now_ns(),
        started_unix_ns: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, nanos),
        policies,
    }
}

fn identity(key: Key, tables: &Tables) -> Option<Identity> {
    Some(match key {
        Key::Process(process, _) => {
            let info = tables.process(process)?;
            Identity::Process {
                process,
                parent: info.parent.map_or(0, |parent| parent.pid),
                comm: info.comm,
                exe: info.exe.unwrap_or_default(),
                workload: info.workload,
            }
        }
        Key::Workload(workload) => {
            let info = tables.workload(workload)?;
            Identity::Workload {
                workload,
                cgroup: info.cgroup,
                container: info.container,
            }
        }
        Key::File(device, inode) => Identity::File {
            device,
            inode,
            path: tables.file_path(device, inode)?,
        },
    })
}

/// Tells a recording what the core hears, beside the batches.
#[derive(Debug)]
pub(super) struct Notes {
    recorder: Recorder,
    /// The facts about each target that the recording has.
    told: HashMap<Target, TargetFacts>,
}

impl Notes {
    /// For a core that begins like this.
    pub(super) fn new(recorder: Recorder, start: CoreStart) -> Self {
        recorder.notes(vec![Entry::Core(start)]);
        Self {
            recorder,
            told: HashMap::new(),
        }
    }

    /// The core hears `input` now.
    pub(super) fn heard(&mut self, time_ns: u64, input: &Input) {
        if self.recorder.is_full() {
            self.told = HashMap::new();
            return;
        }
        let entries = match input {
            Input::Requests(output) => self.order(time_ns, output),
            Input::Tick => vec![Entry::Tick { time_ns }],
            other => vec![Entry::Input {
                time_ns,
                input: other.clone(),
            }],
        };
        if !self.recorder.notes(entries) {
            // What was to be in the file is not: it comes again with the next request.
            self.told.clear();
        }
    }

    /// Something happened to a policy's instance that a replay does not repeat.
    pub(super) fn changed(&self, policy: &str, what: String) {
        let policy = policy.to_owned();
        self.recorder.notes(vec![Entry::Changed { policy, what }]);
    }

    /// That requests arrived and, before it, the facts that are not those told before. Of what is asked for only the
    /// digest is written: a replay has the policies say it again.
    fn order(&mut self, time_ns: u64, output: &PolicyOutput) -> Vec<Entry> {
        if self.told.len() > REMEMBERED_FACTS {
            self.told.clear();
        }
        let mut entries = Vec::new();
        for (request, facts) in &output.requests {
            if self.told.get(&request.target) != Some(facts) {
                self.told.insert(request.target, facts.clone());
                entries.push(Entry::Facts {
                    target: request.target,
                    facts: facts.clone(),
                });
            }
        }
        entries.push(Entry::Order {
            time_ns,
            policy: output.policy.name.clone(),
            seq: output.batch,
            requests: output.requests.len() as u64,
            sha256: Some(digest(output.requests.iter().map(|(request, _)| request))),
        });
        entries
    }
}
