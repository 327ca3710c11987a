//! The main thread while the agent runs: signals and the control socket, on tokio.
//!
//! Invariant: questions are answered from snapshots or by messages to the core thread; nothing here decides.

use super::looking::{self, DeviceName};
use super::options::pressure_groups;
use super::reel::Reel;
use super::watch::Alarm;
use super::{Message, Shared};
use crate::audit::Entry;
use crate::boot_clock;
use crate::config::Config;
use crate::control::{ErrorCode, Handler, Request, Response, Server};
use crate::identity::{ScopeRoots, container, layout::Layout};
use crate::policy::LoadError;
use crate::sensors::{Scope, SensorHandle, kind_names};
use anyhow::{Context, Result};
use palisade_core::WorkloadId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// How often the watched cgroups are looked for.
const ROOTS_EVERY: Duration = Duration::from_secs(1);
/// And of these looks, every so many also for containers.
const CONTAINERS_EVERY: u32 = 5;
/// How long the core thread may take to answer.
const CORE_PATIENCE: Duration = Duration::from_secs(4);

struct Desk {
    shared: Shared,
    // Handlers are called from several threads' worth of tasks; the sender itself is cheap to clone.
    messages: Mutex<Sender<Message>>,
    stop: Arc<Notify>,
    window: Duration,
    devices: Vec<DeviceName>,
}

/// Serves until a signal, a stop by socket, or the end of the sensors. Returns which.
pub(super) fn serve(
    config: &Config,
    shared: &Shared,
    messages: &Sender<Message>,
    alarm: &Alarm,
    layout: &Layout,
) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start tokio")?;
    runtime.block_on(async {
        let stop = Arc::new(Notify::new());
        let desk = Arc::new(Desk {
            shared: shared.clone(),
            messages: Mutex::new(messages.clone()),
            stop: Arc::clone(&stop),
            window: config.watch.window,
            devices: looking::devices(config),
        });
        let server = Server::bind(&config.paths.socket(), desk)?;
        let (mut term, mut int) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        let (closing, closed) = tokio::sync::oneshot::channel::<()>();
        let server = server.run(async {
            let _ = closed.await;
        });
        tokio::pin!(server);
        let why = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
            () = follow_roots(config, shared, layout) => "the watch over the roots ended",
            () = stop.notified() => "stopped over the control socket",
            thread = alarm.rung() => anyhow::bail!("the thread '{thread}' ended; the log above says why"),
            result = &mut server => {
                result.context("the control socket failed")?;
                anyhow::bail!("the control socket ended");
            }
        };
        let _ = closing.send(());
        // Answers that are under way are still given.
        let _ = server.await;
        Ok(why.to_owned())
    })
}

/// Watched cgroups come and go with their services, each time with another id: looks once a second
/// and tells the sensors. Never ends.
async fn follow_roots(config: &Config, shared: &Shared, layout: &Layout) {
    let ScopeRoots::Below(roots) = &config.watch.scope else {
        return std::future::pending().await;
    };
    let look = || -> Vec<Option<WorkloadId>> {
        roots
            .iter()
            .map(|root| layout.workload_id(root).ok())
            .collect()
    };
    let find = || -> BTreeMap<WorkloadId, String> {
        container::find(layout, &config.watch.containers)
            .into_iter()
            .collect()
    };
    // Whatever the sensors were started with: a root may have come anew since.
    let (mut known, mut containers) = (look(), find());
    let tell = |ids: &[Option<WorkloadId>], containers: &BTreeMap<WorkloadId, String>| {
        if let Some(sensors) = shared.sensors.get() {
            let ids = ids.iter().flatten().chain(containers.keys()).copied();
            let processes = config.watch.processes.clone();
            sensors.set_scope(Scope::CgroupsAnd(ids.collect(), processes));
            sensors.set_pressure(pressure_groups(config, layout));
        }
    };
    tell(&known, &containers);
    let mut timer = tokio::time::interval(ROOTS_EVERY);
    let mut turns = 0_u32;
    loop {
        timer.tick().await;
        turns = turns.wrapping_add(1);
        // Looking for containers walks the whole tree of cgroups: less often.
        let found = if turns.is_multiple_of(CONTAINERS_EVERY) {
            find()
        } else {
            containers.clone()
        };
        let now = look();
        if now == known && found == containers {
            continue;
        }
        for (id, cgroup) in &found {
            if !containers.contains_key(id) {
                let text = format!(
                    "the container's cgroup {cgroup} is watched, as workload {}",
                    id.0
                );
                tracing::info!("{text}");
                shared.audit.append(Entry::Note { text });
            }
        }
        for ((root, before), after) in roots.iter().zip(&known).zip(&now) {
            let text = match (before, after) {
                (before, after) if before == after => continue,
                (_, None) => format!(
                    "the watched cgroup {root} is gone; it is watched again when it comes back"
                ),
                (_, Some(id)) => format!(
                    "the watched cgroup {root} is there anew, as workload {}",
                    id.0
                ),
            };
            tracing::warn!("{text}");
            shared.audit.append(Entry::Note { text });
        }
        tell(&now, &found);
        (known, containers) = (now, found);
    }
}

impl Handler for Desk {
    fn handle(&self, request: Request) -> Response {
        match request {
            Request::Status => self.status(),
            Request::Metrics => Response::ok(self.shared.looking.look(&self.shared, &self.devices)),
            Request::PolicyList => Response::ok(self.policies()),
            Request::PolicyReload { name } => self.reload(name.as_deref()),
            Request::Leases => self
                .core()
                .map_or_else(|error| error, |core| Response::ok(&core["leases"])),
            Request::LeaseRelease { id } => {
                self.told(ErrorCode::NotFound, |reply| Message::Release(id, reply))
            }
            Request::Disarm { on } => {
                self.told(ErrorCode::Failed, |reply| Message::Disarm(on, reply))
            }
            Request::Stop => {
                self.stop.notify_one();
                Response::ok("stopping")
            }
        }
    }
}

impl Desk {
    fn ask<T>(&self, message: impl FnOnce(SyncSender<T>) -> Message) -> Result<T, Response> {
        let (reply, answer) = sync_channel(1);
        let sent = self
            .messages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(message(reply));
        let gone = || Response::error(ErrorCode::Failed, "the core thread does not answer");
        sent.map_err(|_| gone())?;
        answer.recv_timeout(CORE_PATIENCE).map_err(|_| gone())
    }

    fn told(
        &self,
        failure: ErrorCode,
        message: impl FnOnce(SyncSender<Result<String, String>>) -> Message,
    ) -> Response {
        match self.ask(message) {
            Ok(Ok(done)) => Response::ok(done),
            Ok(Err(why)) => Response::error(failure, why),
            Err(silence) => silence,
        }
    }

    fn core(&self) -> Result<Value, Response> {
        self.ask(Message::Status)
    }

    fn policies(&self) -> Value {
        self.shared
            .engine
            .get()
            .map_or(Value::Null, |engine| json!(engine.status()))
    }

    fn status(&self) -> Response {
        let core = match self.core() {
            Ok(core) => core,
            Err(error) => return error,
        };
        let audit = self.shared.audit.health();
        Response::ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "now_ns": boot_clock::now_ns(),
            "window_ns": u64::try_from(self.window.as_nanos()).unwrap_or(u64::MAX),
            "core": core,
            "policies": self.policies(),
            "sensors": self.shared.sensors.get().map(sensors),
            "recording": self.shared.reel.as_ref().map(Reel::status),
            "identity": self.shared.tables.stats(),
            "audit": { "head": self.shared.audit.head().to_string(), "health": audit, "public_key": self.shared.audit.public_key() },
            "memory_bytes": resident_bytes(),
        }))
    }

    fn reload(&self, name: Option<&str>) -> Response {
        let Some(engine) = self.shared.engine.get() else {
            return Response::error(ErrorCode::Failed, "the agent is still starting");
        };
        let names = match name {
            Some(name) => vec![name.to_owned()],
            None => engine
                .status()
                .into_iter()
                .map(|policy| policy.name)
                .collect(),
        };
        let mut reloaded = Vec::new();
        for name in names {
            match engine.reload(&name) {
                Ok(policy) => reloaded.push(policy),
                Err(error @ LoadError::Unknown { .. }) => {
                    return Response::error_next(
                        ErrorCode::NotFound,
                        error.to_string(),
                        "see: palisade policy list",
                    );
                }
                Err(error) => {
                    return Response::error_next(
                        ErrorCode::Refused,
                        format!("policy '{name}' was refused, the old one goes on: {error}"),
                        "try the file with: palisade policy check FILE",
                    );
                }
            }
        }
        Response::ok(reloaded)
    }
}

/// What is attached, what cannot be had, and the sensors' own numbers.
fn sensors(sensors: &SensorHandle) -> Value {
    let report = sensors.report();
    let absent = kind_names(report.absent());
    json!({ "report": report, "absent": absent, "stats": sensors.stats() })
}

/// Resident memory of the agent, bytes (/proc/self/statm, in pages).
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
