//! What policies ask while a recording is made: it keeps each answer that differs from the one before, so that a
//! replay answers the same, whenever the tables learned it.
//!
//! Invariants: a policy is answered as without a recording; nothing here waits for the disk.

use crate::policy::{Facts, Lookup};
use crate::questions::{AnsweredBy, look_up};
use crate::recording::{Entry, Identity, Question, Recorder};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Answers remembered for each policy; beyond it they are written again.
const REMEMBERED: usize = 16_384;

/// Hears what all policies ask.
pub(super) struct Witness {
    tables: Arc<dyn Lookup>,
    recorder: Recorder,
    policies: Mutex<BTreeMap<String, Arc<Mutex<Heard>>>>,
}

/// What one policy was answered, over all of its instances.
#[derive(Debug, Default)]
struct Heard {
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
    fn of_policy(&self, name: &str) -> Arc<dyn Facts> {
        let policies = self.policies.lock();
        let mut policies = policies.unwrap_or_else(PoisonError::into_inner);
        let heard = policies.entry(name.to_owned()).or_default();
        let own = OfPolicy {
            name: name.to_owned(),
            tables: self.tables.of_policy(name),
            recorder: self.recorder.clone(),
            heard: Arc::clone(heard),
        };
        Arc::new(AnsweredBy(move |question| own.answer(question)))
    }
}

/// Answers one policy, and hears it.
struct OfPolicy {
    name: String,
    tables: Arc<dyn Facts>,
    recorder: Recorder,
    heard: Arc<Mutex<Heard>>,
}

impl OfPolicy {
    /// What the tables answer. It is kept if it is news.
    fn answer(&self, question: Question) -> Option<Identity> {
        let answer = look_up(&*self.tables, question);
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let number = heard.number;
        heard.number += 1;
        if self.recorder.is_full() || heard.last.get(&question) == Some(&answer) {
            return answer;
        }
        if heard.last.len() >= REMEMBERED {
            heard.last.clear();
        }
        let entry = Entry::Answer {
            policy: self.name.clone(),
            number,
            question,
            answer: answer.clone(),
        };
        if self.recorder.notes(vec![entry]) {
            heard.last.insert(question, answer.clone());
        }
        answer
    }
}
