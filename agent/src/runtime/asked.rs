//! What policies ask while a recording is made: it keeps each answer that differs from the one before, so that a
//! replay answers the same, whenever the tables learned it.
//!
//! Invariants: a policy is answered as without a recording; nothing here waits for the disk.

use crate::policy::{Lookup, ProcessFacts, WorkloadFacts};
use crate::recording::{Entry, Identity, Question, Recorder};
use palisade_core::{ProcessId, WorkloadId};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Answers remembered for each policy; beyond it they are written again.
const REMEMBERED: usize = 16_384;

/// Hears what all policies ask.
pub(super) struct Witness {
    tables: Arc<dyn Lookup>,
    recorder: Recorder,
    policies: Mutex<BTreeMap<String, Arc<Heard>>>,
}

/// What one policy was answered, over all of its instances.
#[derive(Debug, Default)]
struct Heard(Mutex<Answers>);

#[derive(Debug, Default)]
struct Answers {
    /// Questions so far.
    number: u64,
    last: HashMap<Question, Option<Identity>>,
}

impl Witness {
    pub(super) fn new(tables: Arc<dyn Lookup>, recorder: Recorder) -> Self {
        Self {
            tables,
            recorder,
            policies: Mutex::default(),
        }
    }
}

impl Lookup for Witness {
    fn process_of(&self, process: ProcessId) -> Option<ProcessFacts> {
        self.tables.process_of(process)
    }

    fn workload_of(&self, workload: WorkloadId) -> Option<WorkloadFacts> {
        self.tables.workload_of(workload)
    }

    fn file_path(&self, device: u32, inode: u64) -> Option<String> {
        self.tables.file_path(device, inode)
    }

    fn of_policy(&self, name: &str) -> Option<Arc<dyn Lookup>> {
        let policies = self.policies.lock();
        let mut policies = policies.unwrap_or_else(PoisonError::into_inner);
        let heard = policies.entry(name.to_owned()).or_default();
        Some(Arc::new(OfPolicy {
            name: name.to_owned(),
            tables: Arc::clone(&self.tables),
            recorder: self.recorder.clone(),
            heard: Arc::clone(heard),
        }))
    }
}

/// Answers one policy, and hears it.
struct OfPolicy {
    name: String,
    tables: Arc<dyn Lookup>,
    recorder: Recorder,
    heard: Arc<Heard>,
}

impl OfPolicy {
    fn note(&self, question: Question, answer: Option<Identity>) {
        let mut answers = self.heard.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = answers.number;
        answers.number += 1;
        if answers.last.get(&question) == Some(&answer) {
            return;
        }
        if answers.last.len() >= REMEMBERED {
            answers.last.clear();
        }
        let entry = Entry::Answer {
            policy: self.name.clone(),
            number,
            question,
            answer: answer.clone(),
        };
        if self.recorder.notes(vec![entry]) {
            answers.last.insert(question, answer);
        }
    }
}

impl Lookup for OfPolicy {
    fn process_of(&self, process: ProcessId) -> Option<ProcessFacts> {
        let facts = self.tables.process_of(process);
        let identity = facts.clone().map(|facts| Identity::Process {
            process,
            parent: facts.parent,
            comm: facts.comm,
            exe: facts.exe,
            workload: (facts.workload != 0).then_some(WorkloadId(facts.workload)),
        });
        self.note(Question::Process(process), identity);
        facts
    }

    fn workload_of(&self, workload: WorkloadId) -> Option<WorkloadFacts> {
        let facts = self.tables.workload_of(workload);
        let identity = facts.clone().map(|facts| Identity::Workload {
            workload,
            cgroup: facts.cgroup,
            container: facts.container,
        });
        self.note(Question::Workload(workload), identity);
        facts
    }

    fn file_path(&self, device: u32, inode: u64) -> Option<String> {
        let path = self.tables.file_path(device, inode);
        let identity = path.clone().map(|path| Identity::File {
            device,
            inode,
            path,
        });
        self.note(Question::File { device, inode }, identity);
        path
    }
}
