//! What policies are answered in a replay: what the recorded run answered, else what the tables know.
//!
//! Invariant: a policy that asks the same questions in the same order gets the same answers, whenever they are read.

use super::recorded::Recorded;
use crate::policy::{Lookup, ProcessFacts, WorkloadFacts};
use crate::recording::{Entry, Identity, Question};
use palisade_core::{ProcessId, WorkloadId};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// The answers to all policies.
#[derive(Clone, Default)]
pub(super) struct Answers {
    tables: Recorded,
    policies: Arc<Mutex<HashMap<String, Arc<Mutex<Own>>>>>,
}

/// The answers to one policy.
#[derive(Default)]
struct Own {
    /// Questions that it asked so far.
    asked: u64,
    /// Questions up to the last answer that is known.
    known: u64,
    /// From which question on each is answered like this, ascending.
    answers: HashMap<Question, VecDeque<(u64, Option<Identity>)>>,
}

impl Answers {
    pub(super) fn new(tables: Recorded) -> Self {
        Self {
            tables,
            policies: Arc::default(),
        }
    }

    /// Takes in what a policy was answered in the recorded run, if `entry` is that.
    pub(super) fn learn(&self, entry: &Entry) {
        let Entry::Answer {
            policy,
            number,
            question,
            answer,
        } = entry
        else {
            return;
        };
        let own = self.own(policy);
        let mut own = own.lock().unwrap_or_else(PoisonError::into_inner);
        // What was read ahead is not news.
        if *number < own.known {
            return;
        }
        own.known = number.saturating_add(1);
        let answers = own.answers.entry(*question).or_default();
        answers.push_back((*number, answer.clone()));
    }

    fn own(&self, policy: &str) -> Arc<Mutex<Own>> {
        let policies = self.policies.lock();
        let mut policies = policies.unwrap_or_else(PoisonError::into_inner);
        Arc::clone(policies.entry(policy.to_owned()).or_default())
    }
}

impl Lookup for Answers {
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
        Some(Arc::new(OfPolicy {
            tables: self.tables.clone(),
            own: self.own(name),
        }))
    }
}

/// What the recording says about an answer.
enum Said {
    /// It was this.
    Known(Option<Identity>),
    /// Nothing.
    Nothing,
}

struct OfPolicy {
    tables: Recorded,
    own: Arc<Mutex<Own>>,
}

impl OfPolicy {
    /// The recorded answer to the question that is asked now.
    fn ask(&self, question: Question) -> Said {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let number = own.asked;
        own.asked += 1;
        let Some(answers) = own.answers.get_mut(&question) else {
            return Said::Nothing;
        };
        while answers.get(1).is_some_and(|(from, _)| *from <= number) {
            answers.pop_front();
        }
        match answers.front() {
            Some((from, answer)) if *from <= number => Said::Known(answer.clone()),
            _ => Said::Nothing,
        }
    }
}

impl Lookup for OfPolicy {
    fn process_of(&self, process: ProcessId) -> Option<ProcessFacts> {
        match self.ask(Question::Process(process)) {
            Said::Nothing => self.tables.process_of(process),
            Said::Known(Some(Identity::Process {
                parent,
                comm,
                exe,
                workload,
                ..
            })) => Some(ProcessFacts {
                parent,
                comm,
                exe,
                workload: workload.map_or(0, |workload| workload.0),
            }),
            Said::Known(_) => None,
        }
    }

    fn workload_of(&self, workload: WorkloadId) -> Option<WorkloadFacts> {
        match self.ask(Question::Workload(workload)) {
            Said::Nothing => self.tables.workload_of(workload),
            Said::Known(Some(Identity::Workload {
                cgroup, container, ..
            })) => Some(WorkloadFacts { cgroup, container }),
            Said::Known(_) => None,
        }
    }

    fn file_path(&self, device: u32, inode: u64) -> Option<String> {
        match self.ask(Question::File { device, inode }) {
            Said::Nothing => self.tables.file_path(device, inode),
            Said::Known(Some(Identity::File { path, .. })) => Some(path),
            Said::Known(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_policy_is_answered_as_it_was_however_early_the_answers_are_read() {
        let answers = Answers::new(Recorded::default());
        let file = |path: &str| Identity::File {
            device: 1,
            inode: 2,
            path: path.to_owned(),
        };
        let question = Question::File {
            device: 1,
            inode: 2,
        };
        for (number, answer) in [(1, None), (3, Some(file("/later")))] {
            answers.learn(&Entry::Answer {
                policy: "p".to_owned(),
                number,
                question,
                answer,
            });
        }
        answers.tables.learn(file("/table"));
        let own = answers.of_policy("p").unwrap();
        let asked: Vec<_> = (0..5).map(|_| own.file_path(1, 2)).collect();
        let (table, later) = (Some("/table".to_owned()), Some("/later".to_owned()));
        assert_eq!(asked, [table.clone(), None, None, later.clone(), later]);
        assert_eq!(answers.of_policy("q").unwrap().file_path(1, 2), table);
    }
}
