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
        if self.recorder.is_full() {
            // Nothing is news any more.
            heard.last = HashMap::new();
            return answer;
        }
        if heard.last.get(&question) == Some(&answer) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::NoLookup;
    use crate::recording::{Destination, LEAST_MAX_BYTES, Origin};

    #[test]
    fn nothing_is_remembered_for_a_recording_that_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let to = Destination {
            path: dir.path().join("run.arrows"),
            max_bytes: LEAST_MAX_BYTES,
        };
        let recorder = Recorder::start(to.create(&Origin::default()).unwrap()).unwrap();
        let witness = Witness::new(Arc::new(NoLookup), recorder.clone());
        let policy = witness.of_policy("one");
        let remembered = || {
            let policies = witness.policies.lock().unwrap();
            policies["one"].lock().unwrap().last.capacity()
        };
        assert_eq!(policy.file_path(1, 2), None);
        assert!(remembered() > 0);
        // A chunk that no compression makes small.
        let tick = |i: u64| Entry::Tick {
            time_ns: i.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        };
        assert!(recorder.notes((0..20_000).map(tick).collect()));
        recorder.finish().unwrap();
        assert!(recorder.is_full());
        assert_eq!(policy.file_path(1, 2), None);
        assert_eq!(remembered(), 0);
    }
}
