//! Which policies there are: loading, unloading, and what is known about them.
//!
//! Invariants:
//! - Loading happens on the caller's thread, one caller at a time, never on a policy's. Policies that are
//!   loaded together are compiled at the same time.
//! - Each policy has one thread from load to unload, and each thread an entry here.

use super::compiled::{PolicyFile, Prepared};
use super::compiler::{self, Compiler};
use super::engine::{EngineShared, Lookup};
use super::error::LoadError;
use super::event::{Events, Handover, PolicyEvent};
use super::limits::Limits;
use super::queue::{Publisher, Queue, Queues};
use super::running::Running;
use super::status::{Board, PolicyState, PolicyStatus};
use super::together::at_the_same_time;
use super::watch::Watcher;
use super::worker::Worker;
use palisade_abi::Kind;
use palisade_core::{PolicyRef, Power};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Stack of a policy's thread, bytes: wasmtime lets a guest use 512 KiB of it.
pub(super) const STACK_BYTES: usize = 2 << 20;

/// Where a policy comes from and what the operator gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicySource {
    /// Name from the configuration, unique.
    pub name: String,
    /// The component.
    pub path: PathBuf,
    /// The operator's settings.
    pub settings: toml::Table,
    /// The strongest power that it may ask for.
    pub max_power: Power,
    /// What it may use. A change of the queue's limits takes effect at the next load.
    pub limits: Limits,
}

/// How the engine behaves as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// A policy's file must be left alone for so long before a change is looked at.
    pub debounce: Duration,
    /// How long a reload waits for the policy to come to the swap before it answers
    /// [`LoadError::Busy`]. The swap takes place all the same.
    pub swap_wait: Duration,
    /// A program that ends up in [`super::compiler::main`]; `None`: policies are compiled in this process.
    pub compiler: Option<PathBuf>,
    /// How long that program may take for a policy.
    pub compiler_wait: Duration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            debounce: Duration::from_millis(100),
            swap_wait: Duration::from_secs(10),
            compiler: None,
            compiler_wait: compiler::WAIT,
        }
    }
}

/// The policy host. Cheap to clone; the last clone to go ends the policies.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub shared: Arc<EngineShared>,
    pub options: EngineOptions,
    pub events: Events,
    queues: Queues,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Held while a policy is loaded, reloaded or unloaded.
    loading: Mutex<()>,
    watcher: Mutex<Option<Watcher>>,
}

/// One policy.
pub(super) struct Entry {
    pub source: PolicySource,
    pub queue: Arc<Queue>,
    pub board: Arc<Board>,
    /// Counts up with each attempt to load.
    pub generation: u64,
    /// What was tried last: the file's SHA-256, or why it could not be read.
    pub tried: String,
    pub loading: bool,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine without policies.
    ///
    /// # Errors
    /// The machine's CPU is not supported, or the system has no thread left.
    pub fn new(
        options: EngineOptions,
        lookup: Arc<dyn Lookup>,
        events: impl Into<Events>,
    ) -> wasmtime::Result<Self> {
        let program = options.compiler.clone();
        let compiler = program.map(|program| Compiler::new(program, options.compiler_wait));
        let inner = Inner {
            shared: EngineShared::with_compiler(lookup, compiler.transpose()?)?,
            options,
            events: events.into(),
            queues: Queues::default(),
            entries: Mutex::default(),
            loading: Mutex::default(),
            watcher: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Checks, compiles and starts a policy. Takes milliseconds to seconds.
    ///
    /// # Errors
    /// The policy is refused; nothing has changed.
    pub fn load(&self, source: PolicySource) -> Result<PolicyRef, LoadError> {
        let inner = &self.inner;
        let _loading = inner.begin_loading();
        inner.check_new(&source.name)?;
        let running = inner.prepare(&source)?;
        inner.start(source, running)
    }

    /// The same for several policies, of which up to [`super::together::AT_ONCE`] are compiled at the same time. They start in their
    /// order.
    ///
    /// # Errors
    /// By name: one that is there already, else the first in their order that is refused. Nothing has started, unless
    /// the system has no thread left: then those before it run.
    pub fn load_all(
        &self,
        sources: Vec<PolicySource>,
    ) -> Result<Vec<PolicyRef>, (String, LoadError)> {
        let inner = &self.inner;
        let _loading = inner.begin_loading();
        for (at, source) in sources.iter().enumerate() {
            let name = source.name.clone();
            let checked = if sources[..at].iter().any(|other| other.name == name) {
                Err(LoadError::AlreadyLoaded { name: name.clone() })
            } else {
                inner.check_new(&name)
            };
            checked.map_err(|error| (name, error))?;
        }
        let prepared = at_the_same_time(&sources, |source| inner.prepare(source));
        let mut ready = Vec::with_capacity(sources.len());
        for (source, running) in sources.into_iter().zip(prepared) {
            let running = running.map_err(|error| (source.name.clone(), error))?;
            ready.push((source, running));
        }
        let start = |(source, running): (PolicySource, Running)| {
            let name = source.name.clone();
            inner.start(source, running).map_err(|error| (name, error))
        };
        ready.into_iter().map(start).collect()
    }

    /// Ends a policy. What waits for it is dropped.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn unload(&self, name: &str) -> Result<(), LoadError> {
        let _loading = self.inner.begin_loading();
        let entry = self.inner.entries().remove(name);
        let entry = entry.ok_or_else(|| LoadError::Unknown {
            name: name.to_owned(),
        })?;
        self.inner.end(entry);
        Ok(())
    }

    /// The kinds that at least one policy wants: bits of [`Kind::bit`]. Ejected policies count,
    /// since a reload may revive them.
    pub fn subscriptions(&self) -> u64 {
        self.inner
            .entries()
            .values()
            .fold(0, |mask, entry| mask | entry.queue.mask())
    }

    /// The policies that want at least one of the kinds.
    pub fn subscribers(&self, kinds: u64) -> Vec<String> {
        let entries = self.inner.entries();
        let wants = entries
            .iter()
            .filter(|(_, entry)| entry.queue.mask() & kinds != 0);
        wants.map(|(name, _)| name.clone()).collect()
    }

    /// Gives batches to the policies, also to those that are loaded later.
    pub fn publisher(&self) -> Publisher {
        Publisher {
            queues: Arc::clone(&self.inner.queues),
        }
    }

    /// What is known about each policy, by name.
    pub fn status(&self) -> Vec<PolicyStatus> {
        self.inner.entries().values().map(Entry::status).collect()
    }

    /// Looks after the policies' files from now on: a changed file is reloaded. What is wrong with
    /// it is a [`PolicyEvent::Rejected`]; what ran before runs on.
    ///
    /// # Errors
    /// The system has no inotify instance or thread left.
    pub fn watch_files(&self) -> std::io::Result<()> {
        let mut watcher = self.inner.watcher();
        if watcher.is_none() {
            *watcher = Some(Watcher::start(&self.inner)?);
        }
        Ok(())
    }

    /// A policy that is being compiled by a program is refused at once, and so is each that is loaded from now on.
    pub fn stop_compiling(&self) {
        self.inner.shared.stop_compiling();
    }

    /// Ends the file watch and all policies, and waits for their threads.
    pub fn shutdown(&self) {
        self.inner.shutdown();
    }
}

impl Inner {
    pub fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // No code that can panic runs under this lock or the next ones.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begin_loading(&self) -> MutexGuard<'_, ()> {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_new(&self, name: &str) -> Result<(), LoadError> {
        if self.entries().contains_key(name) {
            return Err(LoadError::AlreadyLoaded {
                name: name.to_owned(),
            });
        }
        Ok(())
    }

    /// Checks and compiles a policy's first generation.
    fn prepare(&self, source: &PolicySource) -> Result<Running, LoadError> {
        let file = PolicyFile::read(&source.path, source.limits.file_bytes)?;
        Ok(Prepared::new(&self.shared, source, &file)?.running(source, 1))
    }

    fn watcher(&self) -> MutexGuard<'_, Option<Watcher>> {
        self.watcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the file watch that there may be other folders now.
    pub fn rewatch(&self) {
        if let Some(watcher) = &*self.watcher() {
            watcher.nudge();
        }
    }

    fn start(&self, source: PolicySource, running: Running) -> Result<PolicyRef, LoadError> {
        let reference = running.reference.clone();
        let queue = Arc::new(Queue::new(&source.name, &source.limits, running.mask()));
        let board = Arc::new(Board::new(reference.clone()));
        let worker = Worker::new(
            Arc::clone(&self.shared),
            Arc::clone(&queue),
            Arc::clone(&board),
            self.events.clone(),
            running,
        );
        let loaded = PolicyEvent::Loaded {
            policy: reference.clone(),
            previous: None,
            state: Handover::Fresh,
            after_batch: 0,
        };
        // The receiver goes before the engine only when the agent ends.
        self.events.send(loaded);
        let thread = std::thread::Builder::new()
            .name(thread_name(&source.name))
            .stack_size(STACK_BYTES)
            .spawn(move || worker.run())
            .map_err(|error| {
                let policy = reference.clone();
                self.events.send(PolicyEvent::Unloaded { policy });
                let detail = format!("no thread: {error}");
                LoadError::Engine {
                    name: source.name.clone(),
                    detail,
                }
            })?;
        let entry = Entry {
            generation: reference.generation,
            tried: reference.sha256.clone(),
            queue: Arc::clone(&queue),
            board,
            loading: false,
            thread: Some(thread),
            source,
        };
        self.entries().insert(reference.name.clone(), entry);
        self.queues
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(queue);
        self.rewatch();
        Ok(reference)
    }

    fn end(&self, mut entry: Entry) {
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|queue| !Arc::ptr_eq(queue, &entry.queue));
        drop(queues);
        entry.queue.stop();
        if let Some(thread) = entry.thread.take() {
            // A panic was printed where it happened.
            let _ = thread.join();
        }
        let policy = entry.board.look().running;
        self.events.send(PolicyEvent::Unloaded { policy });
    }

    fn shutdown(&self) {
        self.shared.stop_compiling();
        let watcher = self.watcher().take();
        drop(watcher);
        let _loading = self.begin_loading();
        let entries = std::mem::take(&mut *self.entries());
        for entry in entries.into_values() {
            self.end(entry);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Prepared {
    /// Makes it the policy's `generation`.
    pub(super) fn running(self, source: &PolicySource, generation: u64) -> Running {
        let reference = PolicyRef {
            name: source.name.clone(),
            version: self.compiled.manifest.version.clone(),
            sha256: self.compiled.sha256.clone(),
            generation,
        };
        Running {
            instance: self.instance,
            compiled: self.compiled,
            settings: self.settings,
            limits: source.limits.clone(),
            reference,
        }
    }
}

impl Entry {
    fn status(&self) -> PolicyStatus {
        let shown = self.board.look();
        let depth = self.queue.depth();
        let counters = shown.counters;
        let mask = self.queue.mask();
        let kinds = Kind::ALL.iter().filter(|kind| mask & kind.bit() != 0);
        let gone = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        PolicyStatus {
            name: self.source.name.clone(),
            path: self.source.path.clone(),
            version: shown.running.version,
            sha256: shown.running.sha256,
            generation: self.generation,
            running_generation: shown.running.generation,
            state: if gone {
                PolicyState::Ejected
            } else {
                shown.state
            },
            loading: self.loading,
            kinds: kinds.map(|kind| kind.name().to_owned()).collect(),
            last_batch: counters.last_batch,
            batches: counters.batches,
            records: counters.records,
            requests: counters.requests,
            calls: counters.calls,
            call_ns_total: counters.call_ns_total,
            call_ns_max: counters.call_ns_max,
            queue_batches: depth.batches,
            queue_bytes: depth.bytes,
            lost: depth.lost.saturating_add(counters.lost),
            strikes: counters.strikes,
            restarts: counters.restarts,
            memory_bytes: counters.memory_bytes,
            last_error: counters.last_error,
        }
    }
}

/// The kernel keeps 15 bytes of a thread's name.
fn thread_name(policy: &str) -> String {
    let name = policy.replace('\0', "");
    format!("p:{}", &name[..name.floor_char_boundary(13)])
}
