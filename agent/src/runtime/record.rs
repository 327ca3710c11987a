//! `palisade record`: sensors and a recording, nothing else.
//!
//! Invariants: no policy is loaded, nothing is acted on, no lock is taken and no folder of the agent's is
//! touched, so that it runs beside an agent; its eBPF programs and maps are its own. It ends in order at a
//! signal, after the time, or when the file is full or cannot be written.

use super::roots::Follower;
use super::tape::Tape;
use super::{LIFE, named, of_the_kernel, options, programs_and_layout};
use crate::batch::Batch;
use crate::config::Config;
use crate::exit::{self, coded};
use crate::identity::{self, Tables};
use crate::recording::{Destination, Progress};
use crate::sensors::{AttachReport, Sensors, Sink};
use anyhow::{Context, Result};
use palisade_abi::{FileKey, Lost, Record, kind};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How often progress is shown.
const TURN: Duration = Duration::from_millis(500);

/// What to record.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// Where to.
    pub output: Destination,
    /// Bits of [`palisade_abi::Kind::bit`]; the life of processes comes with them.
    pub kinds: u64,
    /// For how long; `None`: until a signal.
    pub limit: Option<Duration>,
}

/// How it stands, or stood in the end.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Time since the start.
    pub elapsed: Duration,
    /// What is in the file.
    pub progress: Progress,
    /// Records that the kernel could not deliver.
    pub lost: u64,
    /// Records in the file by kind; only in the end.
    pub kinds: BTreeMap<u16, u64>,
    /// What was attached.
    pub report: AttachReport,
}

/// Records until the end that the options name, or SIGINT, SIGTERM or SIGHUP. `show` is called twice a second.
pub fn record(
    config: &Config,
    options: &RecordOptions,
    show: &mut dyn FnMut(&Recorded),
) -> Result<Recorded> {
    crate::memory::keep_little();
    let (object, layout) = programs_and_layout()?;
    let sensor_options = options::sensor_options(config, &layout, options.kinds | LIFE)
        .map_err(|error| coded(exit::CONFIG, error))?;
    let scope = sensor_options.scope.clone();
    let sensors = Sensors::load(object, sensor_options).map_err(of_the_kernel)?;
    let tables = Tables::new(layout.clone(), identity::Limits::default());
    tables.seed_from_proc().context("cannot read /proc")?;
    let tape = Tape::create(&options.output, config)?;
    let recorder = tape.recorder();
    let handle = sensors.handle();
    let lost = Arc::new(AtomicU64::new(0));
    let mut sink = RecordSink {
        tape,
        tables,
        lost: Arc::clone(&lost),
    };
    let began = Instant::now();
    let thread = named("sensors", move || sensors.run(&mut sink))?;
    let state = |elapsed| Recorded {
        elapsed,
        progress: recorder.progress(),
        lost: lost.load(Relaxed),
        kinds: recorder.kinds(),
        report: handle.report(),
    };
    let sensors = handle.clone();
    let roots = Follower::start(config, &layout, scope, move |change| {
        sensors.set_scope(change.scope);
        sensors.set_pressure(change.pressure);
    })?;
    let waited = wait(options.limit, || {
        let state = state(began.elapsed());
        show(&state);
        !state.progress.failed
            && !state.progress.full
            && !thread.is_finished()
            && !roots.has_ended()
    });
    drop(roots);
    let elapsed = began.elapsed();
    handle.stop();
    let result = thread
        .join()
        .map_err(|_| anyhow::anyhow!("the sensor thread panicked"))?;
    recorder
        .finish()
        .with_context(|| format!("cannot record to {}", options.output.path.display()))?;
    waited?;
    result.map_err(|error| coded(exit::KERNEL, error))?;
    Ok(state(elapsed))
}

/// Returns at a signal, after the time, or when `turn` says that it is over.
fn wait(limit: Option<Duration>, mut turn: impl FnMut() -> bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start tokio")?;
    runtime.block_on(async {
        let mut int = signal(SignalKind::interrupt())?;
        let mut term = signal(SignalKind::terminate())?;
        let mut hup = signal(SignalKind::hangup())?;
        let mut turns = tokio::time::interval(TURN);
        let end = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        loop {
            tokio::select! {
                _ = int.recv() => return Ok(()),
                _ = term.recv() => return Ok(()),
                _ = hup.recv() => return Ok(()),
                () = &mut end => return Ok(()),
                _ = turns.tick() => if !turn() { return Ok(()); },
            }
        }
    })
}

struct RecordSink {
    tape: Tape,
    tables: Tables,
    lost: Arc<AtomicU64>,
}

impl Sink for RecordSink {
    fn batch(&mut self, batch: Batch) {
        self.tables.observe(&batch.records);
        self.tape.batch(&batch, &self.tables);
        for record in batch.records.iter() {
            if record.header.kind == kind::LOST
                && let Some(lost) = record.get::<Lost>()
            {
                self.lost.fetch_add(lost.count, Relaxed);
            }
        }
    }

    fn file_name(&mut self, key: FileKey, name: &str, pid: u32, fd: u32, bytes: u64) {
        self.tables.file_named(key, name, pid, fd, bytes);
    }

    fn executed(&mut self, record: &Record, path: &str) {
        self.tables.executed(record, path);
    }
}
