//! The main thread while the agent runs: signals and the control socket, on tokio.
//!
//! Invariant: questions are answered from snapshots or by messages to the core thread; nothing here decides.

use super::looking::{self, DeviceName};
use super::reel::Reel;
use super::watch::Alarm;
use super::{Message, Shared};
use crate::boot_clock;
use crate::config::Config;
use crate::control::{ErrorCode, Handler, Request, Response, Server};
use crate::policy::LoadError;
use crate::sensors::{SensorHandle, kind_names};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

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
            () = stop.notified() => "stopped over the control socket",
            thread = alarm.rung() => anyhow::bail!("the thread '{thread}' ended; the log above says why"),
            result = &mut server => {
                result.context("the control socket failed")?;
                anyhow::bail!("the control socket ended");
            }
        };
        let _ = closing.send(());
        // Answers that are under way are still given; none waits for a compiler.
        if let Some(engine) = shared.engine.get() {
            engine.stop_compiling();
        }
        let _ = server.await;
        Ok(why.to_owned())
    })
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
