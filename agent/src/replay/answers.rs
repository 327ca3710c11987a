//! What policies are answered in a replay: what the recorded run answered, else what the tables know.
//!
//! Invariant: a policy that asks the same questions in the same order gets the same answers, whenever they are read.

use super::recorded::Recorded;
use crate::policy::{Facts, Lookup};
use crate::questions::{AnsweredBy, look_up};
use crate::recording::{Entry, Identity, Question};
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
    fn of_policy(&self, name: &str) -> Arc<dyn Facts> {
        let (tables, own) = (self.tables.clone(), self.own(name));
        Arc::new(AnsweredBy(move |question| {
            let mut own = own.lock().unwrap_or_else(PoisonError::into_inner);
            own.answer(question, &tables)
        }))
    }
}

impl Own {
    /// The recorded answer to the question that is asked now; what the tables know where nothing is recorded.
    fn answer(&mut self, question: Question, tables: &Recorded) -> Option<Identity> {
        let number = self.asked;
        self.asked += 1;
        if let Some(answers) = self.answers.get_mut(&question) {
            while answers.get(1).is_some_and(|(from, _)| *from <= number) {
                answers.pop_front();
            }
            if let Some((from, answer)) = answers.front()
                && *from <= number
            {
                return answer.clone();
            }
        }
        look_up(tables, question)
    }
}

#[cfg(test)]
mod tests {
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
        let own = answers.of_policy("p");
        let asked: Vec<_> = (0..5).map(|_| own.file_path(1, 2)).collect();
        let (table, later) = (Some("/table".to_owned()), Some("/later".to_owned()));
        assert_eq!(asked, [table.clone(), None, None, later.clone(), later]);
        assert_eq!(answers.of_policy("q").file_path(1, 2), table);
    }
}
