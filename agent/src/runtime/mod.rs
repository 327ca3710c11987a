//! Joins the rooms, starts the threads between them, and takes them apart in order.
//!
//! Order of the start: lock, keeper (a process, before any thread), audit log, journal and its orphans, executor,
//! core thread, policies and beside them the verification of the kernel programs, sensors, control socket. The stop is the reverse, except that sensors end first:
//! nothing new is judged while leases are undone. A failure on the way undoes what was begun.

mod act_thread;
mod answer;
mod asked;
mod events;
mod guard;
mod judge;
mod looking;
mod lookup;
pub(crate) mod losses;
pub mod options;
pub mod record;
mod reel;
mod roots;
mod sink;
mod tape;
mod watch;

use crate::act::{self, Executor, ExecutorOptions, Journal, Keeper};
use crate::audit::{self, Audit, AuditError, Entry};
use crate::boot_clock;
use crate::config::Config;
use crate::control::{self, LockError};
use crate::exit::{self, coded};
use crate::identity::{self, ScopeRoots, Tables, layout::Layout};
use crate::policy::Engine;
use crate::recording::{CoreStart, Destination};
use crate::sensors::{InFlightView, SensorHandle};
use anyhow::{Context, Result};
use judge::{Judge, Message};
use looking::Looking;
use losses::LIFE;
use palisade_core::Core;
use reel::Reel;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use tape::{Notes, Tape};
use watch::{Alarm, Intake, Marker};

/// What `palisade run` adds to the configuration.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Keep the run's batches there.
    pub record: Option<Destination>,
}

/// What the threads share. The late parts are set once, when they exist.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) audit: Audit,
    pub(crate) tables: Tables,
    pub(crate) scope: ScopeRoots,
    pub(crate) protected: Arc<OnceLock<Vec<String>>>,
    pub(crate) engine: Arc<OnceLock<Engine>>,
    pub(crate) sensors: Arc<OnceLock<SensorHandle>>,
    pub(crate) marker: Marker,
    pub(crate) intake: Intake,
    pub(crate) looking: Looking,
    /// Who subscribes next must know what the one before did.
    subscribing: Arc<Mutex<()>>,
    in_flight: Arc<OnceLock<InFlightView>>,
    /// The recording, if one was asked for.
    pub(crate) reel: Option<Reel>,
}

impl Shared {
    /// Tells the sensors what the running policies subscribe to, and a look at the metrics.
    fn subscribe(&self) {
        let _turn = self
            .subscribing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let (Some(engine), Some(sensors)) = (self.engine.get(), self.sensors.get()) {
            sensors.set_kinds(kinds(engine) | self.looking.kinds());
        }
    }
}

/// What the sensors are to deliver: what the policies subscribed to, and the life of processes, to which the
/// identity tables subscribe.
fn kinds(engine: &Engine) -> u64 {
    engine.subscriptions() | LIFE
}

/// What every use of the sensors begins with: the kernel programs, and where the cgroups are.
fn programs_and_layout() -> Result<(&'static [u8], Layout)> {
    let object = crate::ebpf_object::embedded().ok_or_else(|| {
        coded(
            exit::NO_OBJECT,
            "this binary was built without its eBPF programs: build it with ./x build",
        )
    })?;
    let layout = Layout::detect().map_err(of_the_kernel)?;
    Ok((object, layout))
}

/// What the kernel lacks or refuses, with where to look.
fn of_the_kernel(error: impl std::fmt::Display) -> anyhow::Error {
    coded(exit::KERNEL, format!("{error}; run: palisade doctor"))
}

/// This very binary, also after its file was replaced.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Guards this host until SIGTERM or SIGINT.
pub fn run(config: &Config, options: &RunOptions) -> Result<u8> {
    crate::memory::keep_little();
    let (object, layout) = programs_and_layout()?;
    let _lock = control::lock(&config.paths.run_dir).map_err(|error| match error {
        LockError::Held { .. } => coded(exit::AGENT, error),
        LockError::Io { .. } => coded(exit::KERNEL, error),
    })?;
    let leases_dir = config.paths.leases_dir();
    let (journal, recovered) = Journal::open(&leases_dir)?;
    // A process of its own, started while this one still has a single thread.
    let keeper = Keeper::spawn(&journal).context("cannot start the keeper")?;
    let (audit, _) =
        audit::open(&config.paths.audit_dir(), audit::Options::default()).map_err(|error| {
            match error {
                AuditError::Locked { .. } => coded(exit::AGENT, error),
                other => other.into(),
            }
        })?;
    tell_of_the_past(&audit, &leases_dir, &recovered);

    let tables = Tables::new(
        layout.clone(),
        identity::Limits {
            // The whole host is in the table, not only who is counted.
            processes: (config.limits.processes as usize)
                .max(identity::Limits::default().processes),
            ..identity::Limits::default()
        },
    );
    let tape = options
        .record
        .as_ref()
        .map(|to| Tape::of_run(to, config))
        .transpose()?;
    let recording = options.record.as_ref().zip(tape.as_ref());
    let reel = recording.map(|(to, tape)| Reel::new(to, tape.recorder()));
    let shared = Shared {
        audit: audit.clone(),
        tables,
        scope: config.watch.scope.clone(),
        engine: Arc::default(),
        sensors: Arc::default(),
        in_flight: Arc::default(),
        reel,
        protected: Arc::default(),
        marker: Marker::in_folder(&config.paths.state_dir),
        intake: Intake::default(),
        looking: Looking::default(),
        subscribing: Arc::default(),
    };
    let alarm = Alarm::default();
    let own = options::Own::here();
    let protect =
        options::protect_list(config, &own).map_err(|error| coded(exit::CONFIG, error))?;
    let _ = shared.protected.set(protect.rules());
    let (messages, inbox) = mpsc::channel();
    let (effects, act_inbox) = mpsc::channel();
    let executor = Executor::new(layout.clone(), journal, executor_options(config, &shared));
    let act = {
        let messages = messages.clone();
        let guard = alarm.guard("act");
        named("act", move || {
            let _guard = guard;
            act_thread::run(executor, keeper, &act_inbox, &messages);
        })?
    };
    let grants = config
        .policies
        .iter()
        .map(|policy| (policy.name.clone(), policy.grant.clone()))
        .collect();
    let mut core_config = config.core.clone();
    if shared.marker.is_set() {
        core_config.disarmed = true;
        tracing::warn!("still disarmed since an earlier run; to act again: palisade arm");
        audit.append(Entry::Note {
            text: "started disarmed: the kill switch was left on".to_owned(),
        });
    }
    let start = CoreStart {
        run_seed: boot_clock::now_ns(),
        disarmed: core_config.disarmed,
        own_pids: own.pids,
        own_exe: own.exe,
    };
    let core = Core::new(core_config, protect, start.run_seed);
    let recorder = shared.reel.as_ref().map(Reel::recorder);
    let notes = recorder.map(|recorder| Notes::new(recorder.clone(), start));
    let judge = Judge::new(core, shared.clone(), grants, effects, notes);
    let core = {
        let orphans = recovered
            .orphans
            .into_iter()
            .rev()
            .map(|entry| entry.lease)
            .collect();
        let guard = alarm.guard("core");
        named("core", move || {
            let _guard = guard;
            judge.run(orphans, &inbox)
        })?
    };

    let result = guard::guard(config, object, &layout, &shared, &messages, &alarm, tape);
    let why = match &result {
        Ok(why) => why.clone(),
        Err(error) => format!("fault: {error:#}"),
    };
    let _ = messages.send(Message::Stop(why.clone()));
    let mut told = core.join().unwrap_or_default();
    // The core thread held the only sender of effects: the act thread ends with its queue.
    let _ = act.join();
    // Whoever has something to add to the recording has ended, and nothing is left to undo: the recording's disk may hang.
    if let Some(reel) = &shared.reel {
        reel.finish(&mut told, &audit);
    }
    audit.append(Entry::Stop { why });
    if let Err(error) = audit.close() {
        tracing::error!("the audit log could not be closed: {error}");
    }
    let why = result?;
    tracing::info!("stopped: {why}");
    Ok(exit::OK)
}

fn executor_options(config: &Config, shared: &Shared) -> ExecutorOptions {
    let in_flight = Arc::clone(&shared.in_flight);
    ExecutorOptions {
        in_driver_call: Box::new(move |workload| {
            in_flight
                .get()
                .is_some_and(|view: &InFlightView| view.in_call(workload))
        }),
        driver_call_wait: config.driver_call_wait,
        alerts: act::AlertOptions {
            webhook: config.alerts.webhook.clone(),
            file: config.alerts.file.clone(),
            host: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
        },
        ..ExecutorOptions::default()
    }
}

/// What earlier runs left in the journal and what the keeper did since goes into the audit log.
fn tell_of_the_past(audit: &Audit, leases_dir: &Path, recovered: &act::journal::Recovered) {
    if recovered.damaged > 0 || recovered.torn {
        let text = format!(
            "the lease journal had {} damaged line(s), torn tail: {}",
            recovered.damaged, recovered.torn
        );
        tracing::warn!("{text}");
        audit.append(Entry::Note { text });
    }
    match act::keeper::read_log(leases_dir) {
        Ok(notes) => {
            for note in notes {
                let text = format!(
                    "keeper ({}): lease {} on {}: {} after {} µs",
                    note.why,
                    note.lease.id.0,
                    note.lease.cgroup,
                    serde_json::to_string(&note.outcome).unwrap_or_default(),
                    note.after_us
                );
                tracing::warn!("{text}");
                audit.append(Entry::Note { text });
            }
            if let Err(error) = act::keeper::clear_log(leases_dir) {
                tracing::warn!("the keeper's log could not be cleared: {error}");
            }
        }
        Err(error) => tracing::warn!("the keeper's log could not be read: {error}"),
    }
}

fn named<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .with_context(|| format!("cannot start the thread '{name}'"))
}
