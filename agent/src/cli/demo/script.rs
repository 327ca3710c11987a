//! The play: what is started and stopped when, and what is waited for.
//!
//! Invariants: waits have limits, and each turn of a wait looks at everything (service, audit
//! log, CPU time, children, signals). A wait that runs out is not an error: the claims say later
//! what did not happen. It must not judge; it watches and writes down.

use super::case::{Case, Culprit, Window};
use super::cgroups::Quota;
use super::children::Said;
use super::screen::{Screen, Tone, millis};
use super::settings::POLICIES;
use super::stage::{MODEL_NAME, REPORT_EVERY, Stage};
use super::{HOG, LOADER, SERVICE, Unable, claims, exit};
use crate::audit::{Follow, Hash, Head};
use crate::boot_clock;
use anyhow::{Context, Result, anyhow};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Between two looks at everything.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Between two readings of the culprits' CPU time.
const CPU_EVERY: Duration = Duration::from_millis(200);
/// Windows of the service that share a line on the screen.
const WINDOWS_A_LINE: usize = 5;
/// Loading the policies takes a moment in a debug build.
const AGENT_READY_WITHIN: Duration = Duration::from_secs(25);
const SERVICE_READY_WITHIN: Duration = Duration::from_secs(5);
const HEALTHY_FOR: Duration = Duration::from_millis(3600);
const FOUND_WITHIN: Duration = Duration::from_secs(10);
const HELD_FOR: Duration = Duration::from_secs(4);
const LOADER_HELD_FOR: Duration = Duration::from_secs(3);
const UNDONE_WITHIN: Duration = Duration::from_secs(9);
const AFTERWARDS_FOR: Duration = Duration::from_millis(1600);

/// A run of the play.
#[derive(Debug)]
pub(super) struct Play<'a> {
    stage: &'a mut Stage,
    screen: Screen,
    stop: &'a AtomicBool,
    begin: Instant,
    pub(super) case: Case,
    log: Follow,
    /// The end of the log as it was last seen: kept outside of it, to verify it against.
    pub(super) head: Option<Head>,
    said: Receiver<Said>,
    lines: Sender<Said>,
    cpu_next: Duration,
    /// `t_ms` of the service's last line.
    last_ms: u64,
    /// Windows that are not on the screen yet.
    pending: Vec<Window>,
}

impl<'a> Play<'a> {
    /// Nothing runs yet.
    pub(super) fn new(stage: &'a mut Stage, screen: Screen, stop: &'a AtomicBool) -> Result<Self> {
        let culprit = |name, policy, must_name| -> Result<Culprit> {
            let cgroups = &stage.cgroups;
            Ok(Culprit::new(
                name,
                policy,
                cgroups.path(name),
                cgroups.quota(name)?,
                must_name,
            ))
        };
        let culprits = vec![
            culprit(HOG, POLICIES[0].name, None)?,
            culprit(LOADER, POLICIES[1].name, Some(MODEL_NAME.to_owned()))?,
        ];
        let case = Case::new(boot_clock::now_ns(), stage.cgroups.path(SERVICE), culprits);
        let log = Follow::after(&stage.audit_dir(), 0);
        let (lines, said) = channel();
        Ok(Self {
            stage,
            screen,
            stop,
            begin: Instant::now(),
            case,
            log,
            head: None,
            said,
            lines,
            cpu_next: Duration::ZERO,
            last_ms: 0,
            pending: Vec::new(),
        })
    }

    /// Plays it to its end. On an error the case holds what was seen until then.
    pub(super) fn perform(&mut self) -> Result<()> {
        self.agent_starts()?;
        self.stage.start(SERVICE, &self.lines)?;
        self.tell(
            SERVICE,
            Tone::Plain,
            "starts: 1 ms of CPU and one device call a request",
        );
        self.until(SERVICE_READY_WITHIN, |case| !case.windows.is_empty())?;
        self.pass(HEALTHY_FOR)?;

        self.culprit_starts(
            0,
            "starts on the same CPU and device: burns 60 ms, holds the device 40 ms",
        )?;
        if self.until(FOUND_WITHIN, |case| case.culprits[0].throttle.is_some())? {
            self.pass(HELD_FOR)?;
        }
        self.culprit_stops(0);

        self.culprit_starts(
            1,
            &format!("starts: maps {MODEL_NAME} (256 MiB) over and over"),
        )?;
        if self.until(FOUND_WITHIN, |case| case.culprits[1].throttle.is_some())? {
            self.pass(LOADER_HELD_FOR)?;
        }
        self.culprit_stops(1);
        self.until(UNDONE_WITHIN, |case| {
            case.culprits
                .iter()
                .all(|one| one.throttle.is_none() || one.undo.is_some())
        })?;
        self.pass(AFTERWARDS_FOR)?;
        self.flush();
        self.stage.stop(SERVICE);
        Ok(())
    }

    /// Ends the agent in order, and reads the last of its log.
    pub(super) fn agent_ends(&mut self) -> Result<(), String> {
        let ended = self.stage.stop_agent();
        self.read_log().map_err(|error| format!("{error:#}"))?;
        ended
    }

    /// Since the begin.
    pub(super) fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Says something on the timeline.
    pub(super) fn tell(&mut self, who: &str, tone: Tone, text: &str) {
        self.flush();
        self.screen.event(self.now(), who, tone, text);
    }

    fn agent_starts(&mut self) -> Result<()> {
        self.stage.start_agent()?;
        let ready = self.until(AGENT_READY_WITHIN, |case| {
            case.agent_started
                && POLICIES
                    .iter()
                    .all(|one| case.policies.iter().any(|name| name == one.name))
        })?;
        if !ready {
            return Err(anyhow!(
                "the agent was not ready in time; it said:\n{}",
                self.stage.agent_said(12)
            ));
        }
        let text = format!(
            "watches {} and {} as the device, with {}",
            self.stage.cgroups.base(),
            self.stage.device_path().display(),
            POLICIES.map(|one| one.name).join(" and "),
        );
        self.tell("agent", Tone::Plain, &text);
        Ok(())
    }

    fn culprit_starts(&mut self, index: usize, text: &str) -> Result<()> {
        let name = self.case.culprits[index].name;
        self.stage.start(name, &self.lines)?;
        self.tell(name, Tone::Loud, text);
        self.case.culprits[index].started = Some(self.now());
        Ok(())
    }

    fn culprit_stops(&mut self, index: usize) {
        let name = self.case.culprits[index].name;
        self.sample_cpu();
        self.case.culprits[index].stopped = Some(self.now());
        self.stage.stop(name);
        self.tell(name, Tone::Plain, "stops");
    }

    fn pass(&mut self, time: Duration) -> Result<()> {
        self.until(time, |_| false).map(drop)
    }

    /// Looks at everything until it is so, or time is up.
    fn until(&mut self, limit: Duration, so: impl Fn(&Case) -> bool) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            self.look()?;
            if so(&self.case) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn look(&mut self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(anyhow!("stopped by a signal"));
        }
        while let Ok(said) = self.said.try_recv() {
            self.hear(&said);
        }
        self.read_log()?;
        if self.now() >= self.cpu_next {
            self.sample_cpu();
        }
        self.look_at_children()
    }

    /// Reads what the agent has written to its log since the last time.
    pub(super) fn read_log(&mut self) -> Result<()> {
        for record in self.log.poll().context("reading the audit log")? {
            let cgroups = &self.stage.cgroups;
            let quota = |name: &str| {
                cgroups.quota(name).unwrap_or_else(|error| Quota {
                    text: error.to_string(),
                    permille: None,
                })
            };
            self.head = Some(Head {
                seq: record.seq,
                hash: Hash::of(record.line.as_bytes()),
            });
            let Some(entry) = record.entry() else {
                continue;
            };
            if let Some(told) = self.case.hear(record.seq, record.boot_ns, &entry, quota) {
                self.flush();
                self.screen.event(told.at, &told.who, told.tone, &told.text);
            }
        }
        Ok(())
    }

    fn hear(&mut self, said: &Said) {
        let number = |key: &str| said.value.get(key).and_then(serde_json::Value::as_u64);
        let (SERVICE, Some(t_ms), Some(p99)) = (said.name, number("t_ms"), number("p99_us")) else {
            return;
        };
        let to = self.now();
        let length = Duration::from_millis(t_ms.saturating_sub(self.last_ms));
        self.last_ms = t_ms;
        let window = Window {
            from: to.saturating_sub(length),
            to,
            requests: number("requests").unwrap_or(0),
            p50_ms: number("p50_us").unwrap_or(0) as f64 / 1e3,
            p99_ms: p99 as f64 / 1e3,
        };
        self.pending.push(window.clone());
        self.case.windows.push(window);
        if self.pending.len() >= WINDOWS_A_LINE {
            self.flush();
        }
    }

    /// Puts the windows that wait on the screen, as one line.
    fn flush(&mut self) {
        let windows = std::mem::take(&mut self.pending);
        let Some(last) = windows.last() else { return };
        let middle = |value: fn(&Window) -> f64| {
            let mut values: Vec<f64> = windows.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let (p50, p99) = (
            middle(|window| window.p50_ms),
            middle(|window| window.p99_ms),
        );
        let time: Duration = windows
            .iter()
            .map(|window| window.to.saturating_sub(window.from))
            .sum();
        let requests: u64 = windows.iter().map(|window| window.requests).sum();
        let per_second = requests as f64 / time.max(Duration::from_millis(1)).as_secs_f64();
        let risen =
            claims::healthy(&self.case).is_ok_and(|base| p99 >= base * 3.0 && p99 >= base + 5.0);
        let tone = if risen { Tone::Bad } else { Tone::Good };
        self.screen.latency(last.to, p50, p99, per_second, tone);
    }

    fn sample_cpu(&mut self) {
        let now = self.now();
        self.cpu_next = now + CPU_EVERY;
        for culprit in &mut self.case.culprits {
            if let Ok(used) = self.stage.cgroups.cpu_time(culprit.name) {
                culprit.cpu.push((now, used));
            }
        }
    }

    /// A child that ended although nobody ended it.
    fn look_at_children(&mut self) -> Result<()> {
        if let Some(agent) = &mut self.stage.agent
            && let Some(status) = agent.ended()
        {
            let said = self.stage.agent_said(12);
            return Err(
                match status.code().and_then(|code| u8::try_from(code).ok()) {
                    Some(exit::KERNEL | exit::NO_OBJECT) => Unable(said).into(),
                    _ => anyhow!("the agent ended ({status}); it said:\n{said}"),
                },
            );
        }
        let stopped: Vec<&str> = self
            .case
            .culprits
            .iter()
            .filter(|culprit| culprit.stopped.is_some())
            .map(|culprit| culprit.name)
            .collect();
        for child in &mut self.stage.workloads {
            if !stopped.contains(&child.name())
                && let Some(status) = child.ended()
            {
                return Err(anyhow!("the {} ended by itself ({status})", child.name()));
            }
        }
        Ok(())
    }
}

/// The rise and fall in a few words, for the end.
pub(super) fn summary(case: &Case) -> String {
    let worst = case
        .windows
        .iter()
        .map(|window| window.p99_ms)
        .fold(0.0, f64::max);
    format!(
        "{} windows of {} ms, worst p99 {}; {} events lost",
        case.windows.len(),
        REPORT_EVERY.as_millis(),
        millis(worst),
        case.lost,
    )
}
