//! Where the sensors deliver: identity first, then the recording, then the policies, then who looks at the metrics.
//!
//! Invariant: nothing here waits.

use super::looking::Feed;
use super::tape::Tape;
use super::{Message, Shared};
use crate::batch::Batch;
use crate::identity::Tables;
use crate::policy::Publisher;
use crate::sensors::Sink;
use palisade_abi::{FileKey, LOSS_SOURCES, Lost, Record};
use std::sync::mpsc::Sender;

pub(super) struct AgentSink {
    publisher: Publisher,
    tables: Tables,
    messages: Sender<Message>,
    tape: Option<Tape>,
    shared: Shared,
    feed: Feed,
}

impl AgentSink {
    pub(super) fn new(
        publisher: Publisher,
        shared: Shared,
        messages: Sender<Message>,
        tape: Option<Tape>,
    ) -> Self {
        Self {
            publisher,
            tables: shared.tables.clone(),
            messages,
            tape,
            shared,
            feed: Feed::default(),
        }
    }
}

impl Sink for AgentSink {
    fn batch(&mut self, batch: Batch) {
        self.tables.observe(&batch.records);
        if let Some(tape) = &mut self.tape {
            tape.batch(&batch, &self.tables);
        }
        for record in batch.records.iter() {
            if let Some(lost) = record.get::<Lost>() {
                let source = LOSS_SOURCES
                    .get(lost.source as usize)
                    .copied()
                    .unwrap_or("unknown");
                let _ = self.messages.send(Message::Lost {
                    workload: record.header.workload,
                    count: lost.count,
                    source,
                    kinds: lost.kinds,
                });
            }
        }
        self.publisher.publish(&batch, |policy, records| {
            if let Some(tape) = &self.tape {
                tape.dropped(policy, batch.seq, records);
            }
        });
        if self.feed.batch(&self.shared.looking, &batch) {
            self.shared.subscribe();
        }
    }

    fn file_name(&mut self, key: FileKey, name: &str, pid: u32, fd: u32, bytes: u64) {
        self.tables.file_named(key, name, pid, fd, bytes);
    }

    fn executed(&mut self, record: &Record, path: &str) {
        self.tables.executed(record, path);
    }
}
