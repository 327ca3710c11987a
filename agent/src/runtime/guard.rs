//! The part of a run in which the host is guarded: policies, sensors and the control socket, from their start to
//! their end.
//!
//! Invariant: whatever was started here has ended when it returns, also after a failure on the way.

use super::judge::Message;
use super::losses::LIFE;
use super::reel::Reel;
use super::roots::Follower;
use super::tape::Tape;
use super::watch::Alarm;
use super::{
    OWN_PROGRAM, Shared, answer, asked, kinds, lookup, named, of_the_kernel, options, sink,
};
use crate::audit::Entry;
use crate::config::Config;
use crate::exit::{self, coded};
use crate::identity::{ScopeRoots, layout::Layout};
use crate::policy::{Engine, EngineOptions, Events, Lookup, PolicyEvent};
use crate::sensors::{Scope, SensorHandle, SensorOptions, Sensors, kernel_release};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;

/// Policies, sensors and the control socket, from their start to their end. Returns why it ended.
pub(super) fn guard(
    config: &Config,
    object: &[u8],
    layout: &Layout,
    shared: &Shared,
    messages: &mpsc::Sender<Message>,
    alarm: &Alarm,
    tape: Option<Tape>,
) -> Result<String> {
    let mut lookup: Arc<dyn Lookup> = Arc::new(lookup::TableLookup(shared.tables.clone()));
    if let Some(recorder) = shared.reel.as_ref().map(Reel::recorder) {
        lookup = Arc::new(asked::Witness::new(lookup, recorder.clone()));
    }
    let events = messages.clone();
    let intake = shared.intake.clone();
    let engine = Engine::new(
        EngineOptions {
            compiler: Some(PathBuf::from(OWN_PROGRAM)),
            ..EngineOptions::default()
        },
        lookup,
        Events::new(move |event| {
            if !matches!(event, PolicyEvent::Output { .. }) || intake.offer() {
                let _ = events.send(Message::Policy(event));
            }
        }),
    )
    .map_err(|error| anyhow::anyhow!("cannot start the policy host: {error}"))?;
    let engine = Stopping(engine);
    let sources = config.policies.iter().map(options::policy_source).collect();
    let sensor_options = options::sensor_options(config, layout, 0);
    // Both take their time; an error of one is told when the other has ended. Nothing is sensed before the policies are
    // there, so nothing waits and is lost.
    let (loaded, sensors) = thread::scope(|threads| {
        let sensors = thread::Builder::new()
            .name("sensors-load".to_owned())
            .spawn_scoped(threads, || prepare(config, object, sensor_options))?;
        let loaded = engine.0.load_all(sources);
        let sensors = sensors
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, std::io::Error>((loaded, sensors))
    })
    .context("cannot start the thread 'sensors-load'")?;
    let loaded =
        loaded.map_err(|(name, error)| coded(exit::POLICY, format!("policy '{name}': {error}")))?;
    engine
        .0
        .watch_files()
        .context("cannot watch the policy files")?;
    let publisher = engine.0.publisher();

    let (mut sensors, scope) = sensors?;
    sensors
        .attach(&scope, kinds(&engine.0))
        .map_err(of_the_kernel)?;
    let handle = sensors.handle();
    let _ = shared.in_flight.set(sensors.in_flight());
    let _ = shared.sensors.set(handle.clone());
    let _ = shared.engine.set(engine.0.clone());
    // A policy file may have changed since the first look at the subscriptions.
    shared.subscribe();
    let report = sensors.report();
    for missing in report.missing() {
        tracing::warn!(
            "a subscribed signal is not to be had here: {missing}; to see more: palisade doctor"
        );
    }
    shared
        .tables
        .seed_from_proc()
        .context("cannot read /proc")?;
    shared.audit.append(Entry::Start {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: kernel_release(),
        config_sha256: config.digest.clone(),
        policies: loaded,
        sensors: serde_json::to_value(report.brief())?,
        protected: shared.protected.get().cloned().unwrap_or_default(),
    });
    if let Some(reel) = &shared.reel {
        reel.recorder().begin();
    }
    let mut sink = sink::AgentSink::new(publisher, shared.clone(), messages.clone(), tape);
    let thread = named("sensors", {
        let guard = alarm.guard("sensors");
        move || {
            let _guard = guard;
            if let Err(error) = sensors.run(&mut sink) {
                tracing::error!("the sensors stopped: {error}");
            }
        }
    })?;
    crate::memory::give_back();
    tracing::info!(
        policies = config.policies.len(),
        "guarding; to look: palisade status; to stop: SIGTERM"
    );
    let served = follow_roots(config, layout, scope, shared, handle.clone(), alarm)
        .and_then(|_following| answer::serve(config, shared, messages, alarm));
    handle.stop();
    let _ = thread.join();
    served
}

/// Sensors that have only to be attached, and whom they are to watch.
fn prepare(
    config: &Config,
    object: &[u8],
    options: std::io::Result<SensorOptions>,
) -> Result<(Sensors, Scope)> {
    let mut options = options.map_err(|error| coded(exit::CONFIG, error))?;
    options.kinds = expected(config);
    let scope = options.scope.clone();
    let sensors = Sensors::prepare(object, options).map_err(of_the_kernel)?;
    Ok((sensors, scope))
}

/// What the policies will subscribe to, as far as their files say so by now: what is wrong with one is told when it
/// is loaded.
fn expected(config: &Config) -> u64 {
    let manifests = config
        .policies
        .iter()
        .filter_map(|policy| crate::policy::inspect(&policy.path).ok());
    manifests.fold(LIFE, |bits, manifest| bits | manifest.mask())
}

/// Has the sensors told which of the watched cgroups and containers are there, and the log of changes.
fn follow_roots(
    config: &Config,
    layout: &Layout,
    loaded: Scope,
    shared: &Shared,
    sensors: SensorHandle,
    alarm: &Alarm,
) -> Result<Follower> {
    let audit = shared.audit.clone();
    // Rings when the thread ends; where the whole host is watched there is none.
    let guard = (config.watch.scope != ScopeRoots::All).then(|| alarm.guard("roots"));
    Follower::start(config, layout, loaded, move |change| {
        let _ = &guard;
        sensors.set_scope(change.scope);
        sensors.set_pressure(change.pressure);
        for text in &change.warnings {
            tracing::warn!("{text}");
        }
        for text in &change.news {
            tracing::info!("{text}");
        }
        for text in change.news.into_iter().chain(change.warnings) {
            audit.append(Entry::Note { text });
        }
    })
}

/// Ends the policies' threads whatever happens.
struct Stopping(Engine);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.shutdown();
    }
}
