//! Whose events count: the filter by workload, and by process.
//!
//! The answer for a cgroup is remembered under its id. A cgroup cannot get another parent, so an
//! answer stays right until the agent changes the scope, which counts up the generation.

use crate::{
    kernel::{Address, Task, cgroup_id},
    pids,
    repeat::{self, Then},
    tables::{CONFIG, ROOTS, VERDICTS, offset},
};
use palisade_abi::{Config, CountersKey, Kind, MAX_CGROUP_DEPTH, Verdict};

/// A watched task, as records name it.
#[derive(Clone, Copy)]
pub struct Who {
    /// Kernfs id of its cgroup.
    pub workload: u64,
    /// Start of its process, `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
}

impl Who {
    /// Key of the process's counters.
    #[inline(always)]
    pub fn key(&self) -> CountersKey {
        CountersKey {
            start_ns: self.start_ns,
            workload: self.workload,
            pid: self.pid,
            pad: 0,
        }
    }
}

/// The switches as they are now.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Whether records of that kind are wanted.
#[inline(always)]
pub fn wanted(config: &Config, kind: Kind) -> bool {
    config.kinds & kind.bit() != 0
}

/// The task, if it or its workload is watched and it is not the agent.
#[inline(always)]
pub fn watched(config: &Config, task: Task) -> Option<Who> {
    let workload = watched_workload(config, task)?;
    let pid = task.pid()?;
    if pid == config.own_pid || pid == 0 {
        return None;
    }
    Some(Who {
        workload,
        start_ns: task.leader()?.own_start()?,
        pid,
        tid: task.tid()?,
    })
}

/// The task's workload, if it or the task is watched. The cheap half of [`watched`].
#[inline(always)]
pub fn watched_workload(config: &Config, task: Task) -> Option<u64> {
    let css = task.css()?;
    let id = cgroup_id(css)?;
    verdict(config, id, css).or_else(|| {
        if pids::counts(config, task.0) {
            Some(id)
        } else {
            None
        }
    })
}

/// The id of a cgroup, if it is watched.
#[inline(always)]
pub fn verdict(config: &Config, id: u64, css: Address) -> Option<u64> {
    if config.scope_all != 0 {
        return Some(id);
    }
    // Read once, before the look-ups: an answer must be stored under the generation that it was
    // found under, also if the agent changes the scope meanwhile.
    // SAFETY: an aligned word of a map value, which the agent may change at any time.
    let generation = unsafe { core::ptr::read_volatile(&raw const config.generation) };
    // SAFETY: an entry may be replaced while it is read; a torn verdict could only pair an old
    // generation with a new answer or the reverse, and both halves of one id's answer agree.
    if let Some(verdict) = unsafe { VERDICTS.get(id) }
        && verdict.generation == generation
    {
        return if verdict.watched == 1 { Some(id) } else { None };
    }
    let found = below_a_root(css);
    let verdict = Verdict {
        generation,
        watched: found as u32,
    };
    // A full cache only costs another walk.
    let _ = VERDICTS.insert(id, verdict, 0);
    if found { Some(id) } else { None }
}

/// Whether the cgroup or one above it is a watched root.
#[inline(always)]
fn below_a_root(css: Address) -> bool {
    let mut climb = Climb { css, found: 0 };
    repeat::up_to(MAX_CGROUP_DEPTH, Climb::step, &mut climb);
    climb.found == 1
}

struct Climb {
    css: Address,
    /// 1 at a root. A whole word: the verifier keeps track of words.
    found: u64,
}

impl Climb {
    extern "C" fn step(_turn: u32, climb: &mut Self) -> Then {
        let Some(id) = cgroup_id(climb.css) else {
            return Then::End;
        };
        if ROOTS.get_ptr(id).is_some() {
            climb.found = 1;
            return Then::End;
        }
        let Some(parent) = climb.css.follow(offset!(css_parent)) else {
            return Then::End;
        };
        climb.css = parent;
        Then::GoOn
    }
}
