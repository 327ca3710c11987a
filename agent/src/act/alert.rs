//! Alerts: to the log, to a file of JSON lines, to a webhook.
//!
//! Invariants: the act thread never waits for the network (bounded queue, own thread, a full
//! queue drops and counts); every alert goes to the log, whatever else fails. Texts of policies are
//! escaped there, so that they cannot forge log lines.
//!
//! The JSON object, in the file and as the body of the POST (`Content-Type: application/json`):
//! `{"format":1,"time_ns":BOOTTIME,"unix_ms":WALL,"host":NAME,"policy":NAME,"severity":"info|
//! warning|critical","reason":TEXT,"target":{"process":{"pid":N,"start_ns":N}}|{"workload":ID},
//! "cgroup":PATH|null,"evidence":[{"name":TEXT,"value":NUMBER,"unit":TEXT}],"decision":N,
//! "effect":N}`. Fields may be added; `format` counts up when one changes its meaning.

use crate::boot_clock::now_ns;
use palisade_core::{ActOutcome, EffectId, Evidence, Severity, Target};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel,
};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Alerts waiting for the webhook at most.
const QUEUE: usize = 64;
/// Time for one POST, connection included.
const POST_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses before the retries of one alert; then it counts as failed.
const RETRY_AFTER: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];
/// How long the end of the agent waits for alerts that are under way.
const DRAIN: Duration = Duration::from_secs(1);
/// How soon a pause before a retry notices the agent's end.
const NAP: Duration = Duration::from_millis(50);

/// Where alerts go, besides the log.
#[derive(Clone, Debug, Default)]
pub struct AlertOptions {
    /// Each alert is POSTed there.
    pub webhook: Option<String>,
    /// Each alert is appended there as a line (made with mode 0640).
    pub file: Option<PathBuf>,
    /// This host's name in the JSON object.
    pub host: String,
}

/// What became of webhook alerts, counted since the start.
#[derive(Debug, Default)]
pub struct AlertCounts {
    /// Answered with 2xx.
    pub sent: AtomicU64,
    /// Given up after the retries, or refused with a 4xx.
    pub failed: AtomicU64,
    /// The queue was full.
    pub dropped: AtomicU64,
}

/// One alert.
#[derive(Clone, Debug, Serialize)]
pub struct Alert<'a> {
    /// Number of the effect; `None` if no request led to it.
    pub effect: Option<EffectId>,
    /// Number of the decision; likewise.
    pub decision: Option<u64>,
    /// Who says so.
    pub policy: &'a str,
    /// About whom; `None` if it is about the policy itself.
    pub target: Option<Target>,
    /// The cgroup's path, where known.
    pub cgroup: Option<&'a str>,
    /// How urgent.
    pub severity: Severity,
    /// One sentence.
    pub reason: &'a str,
    /// The numbers behind it.
    pub evidence: &'a [Evidence],
}

#[derive(Serialize)]
struct Body<'a> {
    format: u32,
    time_ns: u64,
    unix_ms: u64,
    host: &'a str,
    #[serde(flatten)]
    alert: &'a Alert<'a>,
}

/// The ways out.
#[derive(Debug)]
pub struct Alerts {
    host: String,
    file: Option<(PathBuf, Option<File>)>,
    webhook: Option<Webhook>,
    counts: Arc<AlertCounts>,
}

impl Alerts {
    /// Opens the ways out. Starts the thread `palisade-alert` if there is a webhook.
    pub fn new(options: AlertOptions) -> Self {
        let counts = Arc::new(AlertCounts::default());
        let webhook = options
            .webhook
            .and_then(|url| Webhook::start(url, Arc::clone(&counts)));
        Self {
            host: options.host,
            file: options.file.map(|path| (path, None)),
            webhook,
            counts,
        }
    }

    /// The webhook's counters.
    pub fn counts(&self) -> Arc<AlertCounts> {
        Arc::clone(&self.counts)
    }

    /// Sends one out. `Done` means logged, written, and handed to the webhook's queue; what the
    /// webhook answered is in the counters.
    pub fn raise(&mut self, alert: &Alert<'_>) -> ActOutcome {
        let (policy, cgroup, reason) = (alert.policy, alert.cgroup, alert.reason);
        match alert.severity {
            Severity::Info => tracing::info!(?policy, ?cgroup, "alert: {reason:?}"),
            Severity::Warning => tracing::warn!(?policy, ?cgroup, "alert: {reason:?}"),
            Severity::Critical => tracing::error!(?policy, ?cgroup, "alert: {reason:?}"),
        }
        let body = Body {
            format: 1,
            time_ns: now_ns(),
            unix_ms: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_millis() as u64),
            host: &self.host,
            alert,
        };
        let mut json = match serde_json::to_string(&body) {
            Ok(json) => json,
            Err(e) => {
                return ActOutcome::Failed {
                    error: format!("logged, but not encoded: {e}"),
                };
            }
        };
        let mut ways = vec!["logged"];
        let mut faults = Vec::new();
        if let Some(webhook) = &self.webhook {
            match webhook.send(json.clone()) {
                Ok(()) => ways.push("queued for the webhook"),
                Err(why) => {
                    self.counts.dropped.fetch_add(1, Ordering::Relaxed);
                    faults.push(format!("webhook: {why}"));
                }
            }
        }
        if let Some((path, file)) = &mut self.file {
            json.push('\n');
            match append(path, file, json.as_bytes()) {
                Ok(()) => ways.push("written"),
                Err(e) => {
                    // Opened again next time: the disk may have room then.
                    *file = None;
                    faults.push(format!("{}: {e}", path.display()));
                }
            }
        }
        if faults.is_empty() {
            ActOutcome::Done {
                observed: ways.join(", "),
                original: None,
            }
        } else {
            ActOutcome::Failed {
                error: format!("{}, but {}", ways.join(", "), faults.join("; ")),
            }
        }
    }
}

fn append(path: &PathBuf, file: &mut Option<File>, line: &[u8]) -> std::io::Result<()> {
    let file = match file {
        Some(file) => file,
        None => file.insert(
            OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o640)
                .open(path)?,
        ),
    };
    file.write_all(line)
}

#[derive(Debug)]
struct Webhook {
    queue: Option<SyncSender<String>>,
    stop: Arc<AtomicBool>,
    ended: Receiver<()>,
}

impl Webhook {
    fn start(url: String, counts: Arc<AlertCounts>) -> Option<Self> {
        let (queue, waiting) = sync_channel(QUEUE);
        let (end, ended) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let started = thread::Builder::new()
            .name("palisade-alert".to_owned())
            .spawn(move || {
                post_all(&url, &waiting, &counts, &stopping);
                // Nobody listens any more if the drain was given up.
                let _ = end.send(());
            });
        match started {
            Ok(_) => Some(Self {
                queue: Some(queue),
                stop,
                ended,
            }),
            Err(error) => {
                tracing::error!(%error, "no thread for the alert webhook; it gets no alerts");
                None
            }
        }
    }

    fn send(&self, body: String) -> Result<(), &'static str> {
        let Some(queue) = &self.queue else {
            return Err("closed");
        };
        queue.try_send(body).map_err(|e| match e {
            TrySendError::Full(_) => "its queue is full",
            TrySendError::Disconnected(_) => "its thread ended",
        })
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.queue = None;
        match self.ended.recv_timeout(DRAIN) {
            Err(RecvTimeoutError::Timeout) => {
                // The thread ends by itself: no more retries, and a POST has its own limit.
                self.stop.store(true, Ordering::Relaxed);
                tracing::warn!("alerts were still on their way to the webhook");
            }
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
        }
    }
}

fn post_all(url: &str, waiting: &Receiver<String>, counts: &AlertCounts, stop: &AtomicBool) {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(POST_TIMEOUT))
        .build()
        .into();
    for body in waiting {
        let counter = if !stop.load(Ordering::Relaxed) && post(&agent, url, &body, stop) {
            &counts.sent
        } else {
            &counts.failed
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn post(agent: &ureq::Agent, url: &str, body: &str, stop: &AtomicBool) -> bool {
    let mut pauses = RETRY_AFTER.iter();
    loop {
        let answer = agent
            .post(url)
            .header("content-type", "application/json")
            .send(body);
        match answer {
            Ok(_) => return true,
            // Refused for what it is: sending it again changes nothing.
            Err(ureq::Error::StatusCode(code)) if (400..500).contains(&code) && code != 429 => {
                tracing::warn!(code, "the alert webhook refused an alert");
                return false;
            }
            Err(error) => {
                let Some(pause) = pauses.next() else {
                    tracing::warn!(%error, "an alert did not reach the webhook");
                    return false;
                };
                let mut slept = Duration::ZERO;
                while slept < *pause {
                    if stop.load(Ordering::Relaxed) {
                        return false;
                    }
                    thread::sleep(NAP);
                    slept += NAP;
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "alert_tests.rs"]
mod tests;
