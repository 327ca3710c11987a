//! What goes on over time: a culprit must stay the same for a while before anything is asked
//! for; an episode ends slowly while the culprit is active, quickly when it is not.

use crate::tally::{Finding, Tally, Unit};
use crate::{Options, Rung};
use palisade_policy_sdk::host::{self, printable};
use palisade_policy_sdk::state::{Reader, Writer};
use palisade_policy_sdk::{BoundedMap, MS, ProcessId, Request, Requests, SECOND, Severity, Target};

/// A new episode of the same culprit so soon after the last is a relapse.
const RELAPSE_NS: u64 = 60 * SECOND;
/// A relapse doubles the hold, so often.
const MAX_DOUBLINGS: u32 = 3;
/// Windows without any call that do not interrupt a streak: one call can be longer than a window.
const SILENT_WINDOWS: u64 = 5;

/// The window that is being closed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub now_ns: u64,
    pub length_ns: u64,
    /// Records lost in it.
    pub lost: u64,
}

#[derive(Clone, Copy, Debug)]
struct Streak {
    culprit: Unit,
    windows: u32,
    last_ns: u64,
    /// Beginning of the first window since then in which calls returned and nothing was contended.
    calm_ns: Option<u64>,
    /// Records lost meanwhile.
    lost: u64,
}

#[derive(Clone, Copy, Debug)]
struct Episode {
    /// The last contended window's.
    finding: Finding,
    since_ns: u64,
    contended_ns: u64,
    used_ns: u64,
    asked_ns: u64,
    relapses: u32,
    /// Other processes of the culprit use the device, too.
    shared: bool,
}

#[derive(Clone, Copy, Debug)]
struct Past {
    culprit: Unit,
    ended_ns: u64,
    relapses: u32,
}

/// The course of one device class.
#[derive(Clone, Copy, Debug, Default)]
struct Course {
    streak: Option<Streak>,
    episode: Option<Episode>,
    past: Option<Past>,
}

/// The courses of all device classes.
#[derive(Debug)]
pub(crate) struct Episodes(BoundedMap<u32, Course>);

impl Episodes {
    pub(crate) fn new(classes: usize) -> Self {
        Self(BoundedMap::new(classes))
    }

    /// Judges a window of one class in which there were calls.
    pub(crate) fn judge(
        &mut self,
        options: &Options,
        class: u32,
        window: &Window,
        tally: &Tally,
        out: &mut Requests,
    ) {
        let course = self.0.get_or_insert_with(class, Course::default);
        let found = options.judge.find(tally, window.length_ns);
        course.note_use(tally, window);
        match found {
            Some(finding) => course.contended(options, class, window, finding, out),
            None => course.calm(window),
        }
    }

    /// Renews and ends what is due. To be called after the classes with calls were judged.
    pub(crate) fn age(&mut self, options: &Options, now_ns: u64, out: &mut Requests) {
        let mut classes: Vec<u32> = self.0.iter().map(|(class, _)| *class).collect();
        classes.sort_unstable();
        for class in classes {
            if let Some(course) = self.0.get_mut(&class) {
                course.age(options, class, now_ns, out);
            }
        }
    }

    /// A process ended. If it was the culprit alone, its episode ends with it.
    pub(crate) fn exited(&mut self, process: ProcessId, now_ns: u64) {
        for (_, course) in self.0.iter_mut() {
            if course
                .episode
                .is_some_and(|e| e.finding.process == process && !e.shared)
            {
                course.end(now_ns);
            }
        }
    }
}

impl Streak {
    /// Whether a new finding continues it: the time since the last one is covered by the calls that
    /// returned now, or was silent and short.
    fn goes_on(&self, options: &Options, window: &Window, finding: &Finding) -> bool {
        let lasted_ns = finding.lasted_ns();
        // A call longer than the window returned somewhere in it.
        let reach_ns = if lasted_ns > window.length_ns {
            lasted_ns.saturating_add(window.length_ns)
        } else {
            window.length_ns
        };
        let covered_ns = window.now_ns.saturating_sub(reach_ns);
        let longest_gap = options.window_ns.saturating_mul(SILENT_WINDOWS);
        covered_ns.saturating_sub(self.last_ns) <= longest_gap
            && self.calm_ns.is_none_or(|calm_ns| calm_ns >= covered_ns)
    }
}

impl Course {
    fn note_use(&mut self, tally: &Tally, window: &Window) {
        if let Some(episode) = &mut self.episode {
            let users = tally.users_in(episode.finding.culprit);
            if users > 0 {
                episode.used_ns = window.now_ns;
                episode.shared = users > 1;
            }
        }
    }

    /// Keeps the streak for now: a call may be under way that holds the driver all the time, and
    /// its return says so.
    fn calm(&mut self, window: &Window) {
        if let Some(streak) = &mut self.streak {
            let start_ns = window.now_ns.saturating_sub(window.length_ns);
            streak.calm_ns.get_or_insert(start_ns);
            streak.lost = streak.lost.saturating_add(window.lost);
        }
    }

    fn contended(
        &mut self,
        options: &Options,
        class: u32,
        window: &Window,
        finding: Finding,
        out: &mut Requests,
    ) {
        let now_ns = window.now_ns;
        if let Some(episode) = &mut self.episode
            && episode.finding.culprit == finding.culprit
        {
            episode.finding = finding;
            episode.contended_ns = now_ns;
            self.streak = None;
            return;
        }
        let streak = self.streak.filter(|streak| {
            streak.culprit == finding.culprit && streak.goes_on(options, window, &finding)
        });
        // A call of many windows is seen in one only, that of its return.
        let windows = (finding.lasted_ns() / options.window_ns.max(1)).max(1);
        let streak = Streak {
            culprit: finding.culprit,
            windows: streak
                .map_or(0, |streak| streak.windows)
                .saturating_add(u32::try_from(windows).unwrap_or(u32::MAX)),
            last_ns: now_ns,
            calm_ns: None,
            lost: streak
                .map_or(0, |streak| streak.lost)
                .saturating_add(window.lost),
        };
        self.streak = Some(streak);
        if streak.windows < options.sustain {
            return;
        }
        self.streak = None;
        let relapses = match self.past {
            Some(past)
                if past.culprit == finding.culprit
                    && now_ns.saturating_sub(past.ended_ns) <= RELAPSE_NS =>
            {
                past.relapses.saturating_add(1)
            }
            _ => 0,
        };
        let episode = Episode {
            finding,
            since_ns: now_ns,
            contended_ns: now_ns,
            used_ns: now_ns,
            asked_ns: now_ns,
            relapses,
            shared: false,
        };
        self.episode = Some(episode);
        let severity = if finding.within {
            Severity::Info
        } else {
            Severity::Warning
        };
        let alert = Request::alert(target(&finding)).severity(severity);
        out.push(explain(alert, class, &episode, now_ns, streak.lost));
        ask(options, class, &episode, now_ns, streak.lost, out);
    }

    fn age(&mut self, options: &Options, class: u32, now_ns: u64, out: &mut Requests) {
        let Some(episode) = &mut self.episode else {
            return;
        };
        let hold_ns = options.hold_ns << episode.relapses.min(MAX_DOUBLINGS);
        let calm_ns = now_ns.saturating_sub(episode.contended_ns);
        let idle_ns = now_ns.saturating_sub(episode.used_ns);
        // A culprit of long calls may be in the next one already.
        let finding = &episode.finding;
        let long_ns = finding.lasted_ns().saturating_sub(finding.length_ns);
        if calm_ns > hold_ns || idle_ns >= options.idle_ns.saturating_add(long_ns) {
            self.end(now_ns);
            return;
        }
        // Thrice in a lease: one ask may be lost or deferred without a gap.
        let pace_ns = u64::from(options.lease_ms) * MS / 3;
        if now_ns.saturating_sub(episode.asked_ns) >= pace_ns {
            episode.asked_ns = now_ns;
            ask(options, class, episode, now_ns, 0, out);
        }
    }

    fn end(&mut self, now_ns: u64) {
        if let Some(episode) = self.episode.take() {
            self.past = Some(Past {
                culprit: episode.finding.culprit,
                ended_ns: now_ns,
                relapses: episode.relapses,
            });
        }
    }
}

fn target(finding: &Finding) -> Target {
    match finding.culprit {
        Unit::Workload(id) => Target::Workload(id),
        Unit::Process(id) => Target::Process(id),
    }
}

/// Asks for the containment, or for more of it. None for a workload that only harms itself, or
/// one that is not known.
fn ask(
    options: &Options,
    class: u32,
    episode: &Episode,
    now_ns: u64,
    lost: u64,
    out: &mut Requests,
) {
    let Unit::Workload(workload) = episode.finding.culprit else {
        return;
    };
    let target = Target::Workload(workload);
    let request = match options.rung {
        _ if episode.finding.within => return,
        Rung::Alert => return,
        Rung::Weight(weight) => Request::cpu_weight(target, weight),
        Rung::Quota(permille) => Request::cpu_quota(target, permille),
    };
    out.push(explain(
        request.lease_ms(options.lease_ms),
        class,
        episode,
        now_ns,
        lost,
    ));
}

fn explain(request: Request, class: u32, episode: &Episode, now_ns: u64, lost: u64) -> Request {
    let finding = &episode.finding;
    // Calls that began before the window can have held for longer than it.
    let span_ns = finding.length_ns.max(finding.hold_ns).max(1);
    let held = finding.hold_ns as f64 / span_ns as f64;
    let reason = format!(
        "{} held the driver of device class {class} for {:.0} % of {:.1} s, while {} {} \
         spent {:.0} % of the time in the driver waiting",
        name(finding),
        held * 100.0,
        span_ns as f64 / 1e9,
        finding.waiters,
        match (finding.within, finding.waiters) {
            (true, _) => "of the same workload",
            (false, 1) => "process of another workload",
            (false, _) => "processes of other workloads",
        },
        finding.waiting * 100.0,
    );
    let ms = |ns: u64| ns as f64 / MS as f64;
    let request = request
        .reason(reason)
        .evidence("waiting share of the others", finding.waiting, "ratio")
        .evidence("waiting of the others", ms(finding.lost_ns), "ms")
        .evidence("driver time with a baseline", finding.known, "ratio")
        .evidence("others waiting", f64::from(finding.waiters), "processes")
        .evidence("hold of the culprit", ms(finding.hold_ns), "ms")
        .evidence("culprit's share of all hold", finding.share, "ratio")
        .evidence("window", ms(finding.length_ns), "ms")
        .evidence("since", ms(now_ns.saturating_sub(episode.since_ns)), "ms")
        .evidence(
            "last contended",
            ms(now_ns.saturating_sub(episode.contended_ns)),
            "ms ago",
        )
        .evidence("relapses", f64::from(episode.relapses), "count");
    if lost == 0 {
        request
    } else {
        request.evidence("records lost", lost as f64, "count")
    }
}

fn name(finding: &Finding) -> String {
    let process = host::process_of(finding.process);
    let program = process
        .map(|info| {
            let exe = info.exe.rsplit('/').next().unwrap_or_default().to_owned();
            if exe.is_empty() { info.comm } else { exe }
        })
        .filter(|name| !name.is_empty())
        .map_or_else(|| "A process".to_owned(), |name| printable(&name, 32));
    let place = match finding.culprit {
        Unit::Workload(id) => match host::workload_of(id) {
            Some(info) => format!(" of {}", printable(&info.cgroup, 128)),
            None => format!(" of workload {id}"),
        },
        Unit::Process(_) => String::new(),
    };
    format!("{program} (pid {}){place}", finding.process.pid)
}

impl Episodes {
    pub(crate) fn write(&self, out: &mut Writer) {
        let mut running: Vec<(u32, Episode)> = self
            .0
            .iter()
            .filter_map(|(class, course)| course.episode.map(|episode| (*class, episode)))
            .collect();
        running.sort_unstable_by_key(|(class, _)| *class);
        out.list(running.iter(), |out, (class, episode)| {
            out.u32(*class);
            write_finding(out, &episode.finding);
            out.u64(episode.since_ns);
            out.u64(episode.contended_ns);
            out.u64(episode.used_ns);
            out.u64(episode.asked_ns);
            out.u32(episode.relapses);
            out.u8(u8::from(episode.shared));
        });
    }

    /// Reads what [`Self::write`] of that state version wrote.
    pub(crate) fn read(from: &mut Reader<'_>, version: u32, classes: usize) -> Option<Self> {
        let mut episodes = Self::new(classes);
        let running = from.list(classes, |from| {
            let class = from.u32()?;
            let episode = Episode {
                finding: read_finding(from, version)?,
                since_ns: from.u64()?,
                contended_ns: from.u64()?,
                used_ns: from.u64()?,
                asked_ns: from.u64()?,
                relapses: from.u32()?,
                shared: from.u8()? != 0,
            };
            Some((class, episode))
        })?;
        for (class, episode) in running {
            episodes
                .0
                .get_or_insert_with(class, Course::default)
                .episode = Some(episode);
        }
        Some(episodes)
    }
}

fn write_finding(out: &mut Writer, finding: &Finding) {
    match finding.culprit {
        Unit::Workload(id) => {
            out.u8(0);
            out.u64(id);
        }
        // Its id follows as the process.
        Unit::Process(_) => out.u8(1),
    }
    out.u32(finding.process.pid);
    out.u64(finding.process.start_ns);
    out.u64(finding.hold_ns);
    out.f64(finding.share);
    out.u32(finding.waiters);
    out.u64(finding.lost_ns);
    out.f64(finding.waiting);
    out.f64(finding.known);
    out.u64(finding.length_ns);
    out.u8(u8::from(finding.within));
}

fn read_finding(from: &mut Reader<'_>, version: u32) -> Option<Finding> {
    let workload = match from.u8()? {
        0 => Some(from.u64()?),
        1 => None,
        _ => return None,
    };
    let process = ProcessId {
        pid: from.u32()?,
        start_ns: from.u64()?,
    };
    Some(Finding {
        culprit: workload.map_or(Unit::Process(process), Unit::Workload),
        process,
        hold_ns: from.u64()?,
        share: from.f64()?,
        waiters: from.u32()?,
        lost_ns: from.u64()?,
        waiting: from.f64()?,
        // The first version knew of no baselines.
        known: if version < 2 { 0.0 } else { from.f64()? },
        length_ns: from.u64()?,
        within: from.u8()? != 0,
    })
}
