//! Where the sensors deliver: identity first, then the recording, then the policies.
//!
//! Invariant: nothing here waits. A recording that cannot be written is given up, loudly; guarding goes on.

use super::Message;
use crate::batch::Batch;
use crate::config::Config;
use crate::identity::Tables;
use crate::policy::Publisher;
use crate::recording::{Identity, Writer};
use crate::sensors::Sink;
use anyhow::{Context, Result};
use palisade_abi::{FileKey, LOSS_SOURCES, Lost, ModelFile, kind};
use palisade_core::{ProcessId, WorkloadId};
use std::collections::HashSet;
use std::path::Path;
use std::sync::mpsc::Sender;

/// Identities remembered as written; beyond it they are written again.
const REMEMBERED: usize = 65_536;

pub(super) struct AgentSink {
    publisher: Publisher,
    tables: Tables,
    messages: Sender<Message>,
    recorder: Option<Recorder>,
}

impl AgentSink {
    pub(super) fn new(
        publisher: Publisher,
        tables: Tables,
        messages: Sender<Message>,
        recorder: Option<Recorder>,
    ) -> Self {
        Self {
            publisher,
            tables,
            messages,
            recorder,
        }
    }

    /// Ends the recording in order.
    pub(super) fn finish(mut self) {
        if let Some(recorder) = self.recorder.take()
            && let Err(error) = recorder.writer.finish()
        {
            tracing::error!("the recording could not be ended: {error}");
        }
    }
}

impl Sink for AgentSink {
    fn batch(&mut self, batch: Batch) {
        self.tables.observe(&batch.records);
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.batch(&batch, &self.tables)
        {
            tracing::error!("the recording ends here, it cannot be written: {error:#}");
            self.recorder = None;
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
                });
            }
        }
        self.publisher.publish(&batch);
    }

    fn file_name(&mut self, key: FileKey, name: &str, pid: u32, fd: u32, bytes: u64) {
        self.tables.file_named(key, name, pid, fd, bytes);
    }
}

/// Writes batches, and before each what the policies could look up about it.
pub(super) struct Recorder {
    writer: Writer,
    written: HashSet<Key>,
}

#[derive(PartialEq, Eq, Hash)]
enum Key {
    /// With its workload: it is written again when it has moved.
    Process(ProcessId, WorkloadId),
    Workload(WorkloadId),
    File(u32, u64),
}

impl Recorder {
    pub(super) fn create(path: &Path, config: &Config) -> Result<Self> {
        let header = serde_json::json!({
            "agent": env!("CARGO_PKG_VERSION"),
            "abi": palisade_abi::ABI_VERSION,
            "kernel": super::kernel_release(),
            "boot_id": std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim(),
            "config_sha256": config.digest,
            "window_ns": u64::try_from(config.watch.window.as_nanos()).unwrap_or(u64::MAX),
        });
        let writer = Writer::create(path, &header)
            .with_context(|| format!("cannot record to {}", path.display()))?;
        Ok(Self {
            writer,
            written: HashSet::new(),
        })
    }

    fn batch(&mut self, batch: &Batch, tables: &Tables) -> Result<()> {
        if self.written.len() > REMEMBERED {
            self.written.clear();
        }
        for record in batch.records.iter() {
            let header = &record.header;
            let process = ProcessId {
                pid: header.pid,
                start_ns: header.start_ns,
            };
            let workload = WorkloadId(header.workload);
            if header.kind == kind::EXEC {
                self.written.remove(&Key::Process(process, workload));
            }
            let key = Key::Process(process, workload);
            if let Some(info) = self.news(key, || tables.process(process)) {
                self.writer.identity(&Identity::Process {
                    process,
                    parent: info.parent.map_or(0, |parent| parent.pid),
                    comm: info.comm,
                    exe: info.exe.unwrap_or_default(),
                    workload: info.workload,
                })?;
            }
            if let Some(info) = self.news(Key::Workload(workload), || tables.workload(workload)) {
                self.writer.identity(&Identity::Workload {
                    workload,
                    cgroup: info.cgroup,
                    container: info.container,
                })?;
            }
            if let Some(file) = record.get::<ModelFile>()
                && let Some(path) = self.news(Key::File(file.device, file.inode), || {
                    tables.file_path(file.device, file.inode)
                })
            {
                self.writer.identity(&Identity::File {
                    device: file.device,
                    inode: file.inode,
                    path,
                })?;
            }
        }
        Ok(self.writer.batch(batch)?)
    }

    /// What is known under a key that was not written yet.
    fn news<T>(&mut self, key: Key, look: impl FnOnce() -> Option<T>) -> Option<T> {
        if self.written.contains(&key) {
            return None;
        }
        let found = look()?;
        self.written.insert(key);
        Some(found)
    }
}
