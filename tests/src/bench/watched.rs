//! Sensors, tables and policies in this process, as the agent joins them, with a sink that counts.
//!
//! Invariant: a record is counted where it is delivered, after the tables took it in and before a policy's
//! queue can lose it.

use anyhow::{Context, Result, bail};
use palisade::batch::Batch;
use palisade::config::Config;
use palisade::identity::{self, Tables, layout::Layout};
use palisade::policy::{Engine, EngineOptions, Events, NoLookup, PolicyEvent, Publisher};
use palisade::runtime::options;
use palisade::sensors::{SensorHandle, Sensors, Sink};
use palisade_abi::{FileKey, Lost, Record, kind};
use palisade_core::{ProcessId, Request};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What was delivered.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// Records by workload and kind.
    pub records: BTreeMap<(u64, u16), u64>,
    /// Losses by workload and source.
    pub lost: BTreeMap<(u64, u32), u64>,
    /// Windows that ended.
    pub windows: u64,
    /// Executed programs by what the tables knew of the process when its record was delivered.
    pub execs: Execs,
}

/// How well processes were known when their first program was delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Execs {
    /// All.
    pub all: u64,
    /// In the table, with name, parent and workload.
    pub resolved: u64,
    /// In the table, with the path of the executable too.
    pub with_path: u64,
    /// Not in the table.
    pub unknown: u64,
}

impl Counted {
    /// Records of that workload and kind.
    pub fn of(&self, workload: u64, kind: u16) -> u64 {
        self.records.get(&(workload, kind)).copied().unwrap_or(0)
    }

    /// Losses of that workload by source.
    pub fn lost_by(&self, workload: u64, source: u32) -> u64 {
        self.lost.get(&(workload, source)).copied().unwrap_or(0)
    }

    fn take(&mut self, record: &Record, tables: &Tables) {
        let header = &record.header;
        if let Some(lost) = record.get::<Lost>() {
            *self.lost.entry((header.workload, lost.source)).or_default() += lost.count;
            return;
        }
        *self
            .records
            .entry((header.workload, header.kind))
            .or_default() += 1;
        if header.kind == kind::EXEC {
            let known = tables.process(ProcessId {
                pid: header.pid,
                start_ns: header.start_ns,
            });
            self.execs.all += 1;
            match known {
                None => self.execs.unknown += 1,
                Some(info) => {
                    self.execs.resolved += u64::from(
                        !info.comm.is_empty() && info.parent.is_some() && info.workload.is_some(),
                    );
                    self.execs.with_path +=
                        u64::from(info.exe.is_some_and(|path| path.starts_with('/')));
                }
            }
        }
    }
}

struct CountingSink {
    counted: Arc<Mutex<Counted>>,
    tables: Tables,
    publisher: Publisher,
}

impl Sink for CountingSink {
    fn batch(&mut self, batch: Batch) {
        self.tables.observe(&batch.records);
        let mut counted = lock(&self.counted);
        for record in batch.records.iter() {
            counted.take(record, &self.tables);
        }
        counted.windows += u64::from(batch.window_end);
        drop(counted);
        self.publisher.publish(&batch, |_, _| {});
    }

    fn file_name(&mut self, key: FileKey, name: &str, pid: u32, fd: u32, bytes: u64) {
        self.tables.file_named(key, name, pid, fd, bytes);
    }

    fn executed(&mut self, record: &Record, path: &str) {
        self.tables.executed(record, path);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counters are left whole by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Running sensors and policies.
#[derive(Debug)]
pub struct Watched {
    counted: Arc<Mutex<Counted>>,
    /// Of the sensors.
    pub handle: SensorHandle,
    /// Of the process, workload and file tables.
    pub tables: Tables,
    engine: Engine,
    requests: Arc<Mutex<(u64, Option<Request>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Watched {
    /// Loads the policies of a configuration and senses `kinds` besides what they want.
    pub fn start(config_text: &str, kinds: u64) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("palisade.toml");
        std::fs::write(&path, config_text)?;
        Self::with(&path, kinds)
    }

    fn with(path: &Path, kinds: u64) -> Result<Self> {
        let config = Config::load(path)?;
        let layout = Layout::detect()?;
        let tables = Tables::new(layout.clone(), identity::Limits::default());
        let requests = Arc::<Mutex<(u64, Option<Request>)>>::default();
        let heard = requests.clone();
        let engine = Engine::new(
            EngineOptions::default(),
            Arc::new(NoLookup),
            Events::new(move |event| {
                if let PolicyEvent::Output { requests, .. } = event
                    && let Some(last) = requests.into_iter().next_back()
                {
                    let mut heard = lock(&heard);
                    *heard = (heard.0 + 1, Some(last));
                }
            }),
        )
        .map_err(|error| anyhow::anyhow!("cannot start the policy host: {error}"))?;
        for policy in &config.policies {
            engine.load(options::policy_source(policy))?;
        }
        let object = palisade::ebpf_object::embedded().context("built without the eBPF object")?;
        let kinds = kinds | engine.subscriptions();
        let mut sensors = Sensors::load(object, options::sensor_options(&config, &layout, kinds)?)?;
        sensors.require_all()?;
        tables.seed_from_proc()?;
        let counted = Arc::<Mutex<Counted>>::default();
        let mut sink = CountingSink {
            counted: counted.clone(),
            tables: tables.clone(),
            publisher: engine.publisher(),
        };
        let handle = sensors.handle();
        let thread = std::thread::Builder::new()
            .name("sensors".into())
            .spawn(move || {
                if let Err(error) = sensors.run(&mut sink) {
                    eprintln!("the sensors stopped: {error}");
                }
            })?;
        Ok(Self {
            counted,
            handle,
            tables,
            engine,
            requests,
            thread: Some(thread),
        })
    }

    /// What was delivered so far.
    pub fn counted(&self) -> Counted {
        lock(&self.counted).clone()
    }

    /// How often a policy asked for something.
    pub fn reports(&self) -> u64 {
        lock(&self.requests).0
    }

    /// Evidence of the last request, by name.
    pub fn last_report<const N: usize>(&self, names: [&str; N]) -> Option<[u64; N]> {
        let requests = lock(&self.requests);
        let evidence = &requests.1.as_ref()?.evidence;
        let mut found = [0; N];
        for (value, name) in found.iter_mut().zip(names) {
            *value = evidence.iter().find(|one| one.name == name)?.value as u64;
        }
        Some(found)
    }

    /// Waits until two more windows have ended and the policies' queues are empty: whatever happened before
    /// has been delivered, or counted as lost.
    pub fn settle(&self, patience: Duration) -> Result<()> {
        let start = lock(&self.counted).windows;
        let until = Instant::now() + patience;
        loop {
            let waiting: usize = self
                .engine
                .status()
                .iter()
                .map(|policy| policy.queue_batches)
                .sum();
            if lock(&self.counted).windows >= start + 2 && waiting == 0 {
                return Ok(());
            }
            if Instant::now() > until {
                bail!(
                    "what was made is not delivered after {patience:?}: {waiting} batches wait for policies"
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.engine.shutdown();
    }
}
