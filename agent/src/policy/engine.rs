//! What all policies share: the wasmtime engine, the ticker and the look-ups.
//!
//! Invariant: the engine is set up for repeatable results (canonical NaNs, no relaxed SIMD, no
//! threads) and for nothing that policies do not need (no WASI, no async).

use super::bindings;
use super::compiler::{Compiler, Fault};
use super::host::HostState;
use super::limits::Limits;
use super::ticker::Ticker;
use palisade_core::{ProcessId, WorkloadId};
use std::sync::Arc;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, OptLevel};

/// Who answers policies' questions.
pub trait Lookup: Send + Sync {
    /// What answers the policy of that name.
    fn of_policy(&self, name: &str) -> Arc<dyn Facts>;
}

/// Answers all policies alike.
impl<F: Facts + Clone + 'static> Lookup for F {
    fn of_policy(&self, _name: &str) -> Arc<dyn Facts> {
        Arc::new(self.clone())
    }
}

/// Answers to a policy's questions. Implementations answer from memory: a policy that waits here
/// cannot be interrupted.
pub trait Facts: Send + Sync {
    /// What is known about a process.
    fn process_of(&self, process: ProcessId) -> Option<ProcessFacts>;
    /// What is known about a workload, by kernfs id.
    fn workload_of(&self, workload: WorkloadId) -> Option<WorkloadFacts>;
    /// The path of a file, by kernel `dev_t` and inode number.
    fn file_path(&self, device: u32, inode: u64) -> Option<String>;
}

/// What a policy learns about a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Parent's process id.
    pub parent: u32,
    /// The name it gives itself.
    pub comm: String,
    /// Path of its executable.
    pub exe: String,
    /// Its workload's kernfs id.
    pub workload: u64,
}

/// What a policy learns about a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadFacts {
    /// Path below the hierarchy's mount point.
    pub cgroup: String,
    /// Container id.
    pub container: Option<String>,
}

/// Knows nothing: for checks, benchmarks and tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLookup;

impl Facts for NoLookup {
    fn process_of(&self, _process: ProcessId) -> Option<ProcessFacts> {
        None
    }

    fn workload_of(&self, _workload: WorkloadId) -> Option<WorkloadFacts> {
        None
    }

    fn file_path(&self, _device: u32, _inode: u64) -> Option<String> {
        None
    }
}

/// The part of the policy host that all instances share.
pub struct EngineShared {
    pub(super) engine: wasmtime::Engine,
    pub(super) linker: Linker<HostState>,
    pub(super) ticker: Ticker,
    pub(super) lookup: Arc<dyn Lookup>,
    /// `None`: the engine compiles by itself.
    compiler: Option<Compiler>,
}

impl std::fmt::Debug for EngineShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineShared")
            .field("ticker", &self.ticker)
            .finish_non_exhaustive()
    }
}

/// What compiled code depends on, whoever compiles it and whoever runs it.
fn config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .concurrency_support(false)
        // Only profilers look at it.
        .native_unwind_info(false);
    config
}

/// What only the compiler is told.
fn compiles(config: &mut Config) {
    config
        .cranelift_nan_canonicalization(true)
        .cranelift_opt_level(OptLevel::Speed);
}

/// A component's machine code, for [`EngineShared::component`] in another process.
pub(super) fn compile(wasm: &[u8]) -> wasmtime::Result<Vec<u8>> {
    let mut config = config();
    compiles(&mut config);
    wasmtime::Engine::new(&config)?.precompile_component(wasm)
}

impl EngineShared {
    /// Sets the engine up and starts its ticker thread. It compiles by itself.
    ///
    /// # Errors
    /// The machine's CPU is not supported, or the system has no thread left.
    pub fn new(lookup: Arc<dyn Lookup>) -> wasmtime::Result<Arc<Self>> {
        Self::with_compiler(lookup, None)
    }

    /// The same with a process that compiles.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn with_compiler(
        lookup: Arc<dyn Lookup>,
        compiler: Option<Compiler>,
    ) -> wasmtime::Result<Arc<Self>> {
        let mut config = config();
        if compiler.is_none() {
            compiles(&mut config);
        } else {
            config.enable_compiler(false);
        }
        let engine = wasmtime::Engine::new(&config)?;
        let mut linker = Linker::new(&engine);
        bindings::Policy::add_to_linker::<_, HasSelf<HostState>>(&mut linker, |state| state)?;
        let ticker = Ticker::start(engine.clone())?;
        Ok(Arc::new(Self {
            engine,
            linker,
            ticker,
            lookup,
            compiler,
        }))
    }

    /// Ends a compiler that runs; from then on there is none.
    pub(super) fn stop_compiling(&self) {
        if let Some(compiler) = &self.compiler {
            compiler.stop();
        }
    }

    /// Compiles a component.
    pub(super) fn component(&self, wasm: &[u8]) -> Result<Component, Fault> {
        let Some(compiler) = &self.compiler else {
            return Component::new(&self.engine, wasm)
                .map_err(|error| Fault::Policy(format!("{error:#}")));
        };
        let code = compiler.compile(wasm)?;
        // SAFETY: needed because machine code is taken over. Sound because the compiler is this very binary and
        // answered over a pipe of its own: these are bytes that `Engine::precompile_component` made.
        unsafe { Component::deserialize(&self.engine, code) }.map_err(|error| {
            Fault::Compiler(format!("the compiler's answer is not code: {error:#}"))
        })
    }

    pub(super) fn store(&self, name: &str, limits: &Limits) -> wasmtime::Store<HostState> {
        let state = HostState::new(self.lookup.of_policy(name), limits);
        let mut store = wasmtime::Store::new(&self.engine, state);
        store.limiter(|state| &mut state.limiter);
        store.epoch_deadline_callback(|mut context| Ok(context.data_mut().at_epoch()));
        store
    }
}
