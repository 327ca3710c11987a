//! What a recording holds: one entry after another, in the order in which the agent heard of them.

use crate::batch::Batch;
use palisade_abi::Record;
use palisade_core::{Input, Member, ProcessId, Request, Target, TargetFacts, WorkloadId};
use serde::{Deserialize, Serialize};

/// What the identity tables learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// About a process.
    Process {
        /// Which.
        process: ProcessId,
        /// Pid of its parent; 0 if unknown.
        parent: u32,
        /// The name that it gives itself.
        comm: String,
        /// Executable's path; empty if unknown.
        exe: String,
        /// Its cgroup.
        workload: Option<WorkloadId>,
    },
    /// About a cgroup.
    Workload {
        /// Which.
        workload: WorkloadId,
        /// Its path below the hierarchy's mount point.
        cgroup: String,
        /// Container id.
        container: Option<String>,
    },
    /// About a file.
    File {
        /// Device, as records carry it.
        device: u32,
        /// Inode on it.
        inode: u64,
        /// Its path.
        path: String,
    },
}

impl Identity {
    /// About how much memory it holds.
    pub(super) fn bytes(&self) -> usize {
        let texts = match self {
            Identity::Process { comm, exe, .. } => comm.len() + exe.len(),
            Identity::Workload {
                cgroup, container, ..
            } => cgroup.len() + container.as_ref().map_or(0, String::len),
            Identity::File { path, .. } => path.len(),
        };
        size_of::<Self>() + texts
    }
}

/// What a policy can ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Who is that?
    Process(ProcessId),
    /// Which cgroup is that?
    Workload(WorkloadId),
    /// Which file is that?
    File {
        /// Device, as records carry it.
        device: u32,
        /// Inode on it.
        inode: u64,
    },
}

/// How the decision core of a run began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreStart {
    /// What its numbers of leases begin with.
    pub run_seed: u64,
    /// The kill switch was on.
    pub disarmed: bool,
    /// The agent and its ancestors, which are protected.
    pub own_pids: Vec<u32>,
    /// The agent's executable, which is protected.
    pub own_exe: Option<String>,
}

/// One entry of a recording. Times are `CLOCK_BOOTTIME` nanoseconds.
#[derive(Clone, Debug)]
pub enum Entry {
    /// Records, as they were delivered.
    Batch(Batch),
    /// What the identity tables know from here on.
    Identity(Identity),
    /// The core was told that time has passed.
    Tick {
        /// When.
        time_ns: u64,
    },
    /// Records are missing in this recording, because its disk was too slow.
    Lost {
        /// When the next batch was.
        time_ns: u64,
        /// In format version 1: the policy that they did not reach; they are here.
        policy: Option<String>,
        /// The batch before which they were.
        seq: u64,
        /// How many.
        records: u64,
    },
    /// The batch before this did not fit into a policy's queue.
    Dropped {
        /// Whose.
        policy: String,
        /// The batch.
        seq: u64,
        /// Records that the policy would have seen of it.
        records: u64,
    },
    /// Entries other than batches are missing, because the disk was too slow or they are too large.
    Gap {
        /// How many.
        notes: u64,
    },
    /// The file has reached its largest size: the recording ends here, before the run does. The writer says it, last of all.
    Full {
        /// That size.
        max_bytes: u64,
    },
    /// How the core began; before all that it heard.
    Core(CoreStart),
    /// The core heard something that is neither requests nor a tick.
    Input {
        /// When.
        time_ns: u64,
        /// What.
        input: Input,
    },
    /// A policy's instance was not what it is in a replay from here on: it was struck, or made anew.
    Changed {
        /// Which policy.
        policy: String,
        /// What happened to it.
        what: String,
    },
    /// What the core was told about a target with the requests from here on.
    Facts {
        /// Whom.
        target: Target,
        /// What was seen of it.
        facts: TargetFacts,
    },
    /// What a policy was answered from here on.
    Answer {
        /// Which policy.
        policy: String,
        /// How many questions it had asked before.
        number: u64,
        /// Its question.
        question: Question,
        /// What was known.
        answer: Option<Identity>,
    },
    /// Requests of a policy reached the core: these entries are in the order of their arrival.
    Order {
        /// When.
        time_ns: u64,
        /// Whose.
        policy: String,
        /// The batch that led to them.
        seq: u64,
        /// How many.
        requests: u64,
        /// [`digest`] of them; `None` in format version 1.
        sha256: Option<String>,
    },
}

impl Entry {
    /// About how much memory it holds.
    pub(super) fn bytes(&self) -> usize {
        let beside = match self {
            Entry::Batch(batch) => batch.records.len() * size_of::<Record>(),
            Entry::Identity(identity) => identity.bytes(),
            Entry::Answer { answer, .. } => answer.as_ref().map_or(0, Identity::bytes),
            Entry::Facts { facts, .. } => {
                let member = |member: &Member| size_of::<Member>() + member.exe.len();
                let members: usize = facts.members.iter().map(member).sum();
                members + facts.cgroup.as_ref().map_or(0, String::len) + facts.detail.len()
            }
            Entry::Changed { policy, what } => policy.len() + what.len(),
            // They are few.
            Entry::Input { input, .. } => serde_json::to_vec(input).map_or(0, |json| json.len()),
            _ => 0,
        };
        size_of::<Self>() + beside
    }
}

/// What a recording keeps of requests: SHA-256 of each as JSON with a line feed behind it, lower-case hex.
pub fn digest<'a>(requests: impl IntoIterator<Item = &'a Request>) -> String {
    let mut text = Vec::new();
    for request in requests {
        // It always is JSON: no number in it is infinite, no key other than text.
        text.extend(serde_json::to_vec(request).unwrap_or_default());
        text.push(b'\n');
    }
    crate::config::hex_digest(&text)
}

/// Where a recording comes from. Kept in the schema's metadata, every key with `palisade.` before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// Version of the agent.
    pub agent: String,
    /// Version of the record layout.
    pub abi: u32,
    /// Boot of the host: times of different boots cannot be compared.
    pub boot_id: String,
    /// Release of the host's kernel.
    pub kernel: String,
    /// SHA-256 of the configuration.
    pub config_sha256: String,
    /// Sampling window, nanoseconds.
    pub window_ns: u64,
    /// `CLOCK_BOOTTIME` at the start, nanoseconds.
    pub started_ns: u64,
    /// The same moment in nanoseconds since 1970, UTC.
    pub started_unix_ns: u64,
    /// Names of the policies that ran, whose [`Entry::Order`] is kept.
    pub policies: Vec<String>,
}
