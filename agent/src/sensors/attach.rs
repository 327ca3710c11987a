//! Loading, attaching and detaching: tries a hook's rungs from the best to the last and keeps a report.
//!
//! Invariants:
//! - A hook is attached while, and only while, a wanted kind needs it.
//! - Why a rung failed is never dropped: it is in the report, with the verifier's last lines.
//! - What the kernel lacks is tried once; a program for which there was no memory or descriptor just then, again.

use super::{
    SensorError, Way,
    hooks::{self, Hook, Rung},
    ladder,
    links::{Attached, Attacher, Types},
    load::take,
    offsets::{Group, Missing},
    places::Places,
    tracefs::TracefsError,
};
use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::ProgramError,
};
use nix::errno::Errno;
use serde::Serialize;
use std::{io, path::PathBuf};

/// Lines of the verifier's log that are worth showing.
const VERIFIER_LINES: usize = 12;

/// What is attached, and why something is not.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AttachReport {
    /// Bits of the kinds that were asked for.
    pub kinds: u64,
    /// Every hook, wanted or not.
    pub hooks: Vec<HookReport>,
    /// Bits of the kinds that the agent makes itself, and cannot make here.
    pub unavailable: u64,
}

/// One hook.
#[derive(Clone, Debug, Serialize)]
pub struct HookReport {
    /// Name for people.
    pub name: String,
    /// Bits of the kinds that it makes.
    pub kinds: u64,
    /// A wanted kind needs it.
    pub wanted: bool,
    /// Where it is attached (`tp_btf:sched_switch`).
    pub attached: Option<String>,
    /// The kernel may lack it without harm.
    pub optional: bool,
    /// Rungs that were tried and failed: place and reason.
    pub failed: Vec<(String, String)>,
}

impl AttachReport {
    /// Hooks that are wanted, necessary and not attached.
    pub fn missing(&self) -> impl Iterator<Item = &HookReport> {
        self.hooks
            .iter()
            .filter(|hook| hook.wanted && !hook.optional && hook.attached.is_none())
    }
}

impl std::fmt::Display for HookReport {
    /// Its name and the first reason why it is not attached, in one line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        match self.failed.first() {
            Some((place, why)) => {
                write!(f, " ({place}: {})", why.lines().next().unwrap_or_default())
            }
            None => Ok(()),
        }
    }
}

/// What the kernel counts about the programs of one attached hook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProgramRuns {
    /// Hook.
    pub hook: &'static str,
    /// Runs; only counted while `kernel.bpf_stats_enabled` is 1.
    pub runs: u64,
    /// Time of all runs, nanoseconds; as above.
    pub run_ns: u64,
    /// Bits of the kinds that it feeds.
    pub kinds: u64,
    /// Events for which it was not run because another program was under way on that CPU.
    pub skipped: u64,
}

struct Slot {
    hook: &'static Hook,
    attached: Option<(Rung, Attached)>,
    failed: Vec<(Rung, SensorError)>,
    /// Programs that the kernel has verified already, attached or not.
    loaded: Vec<&'static str>,
    /// See [`Hook::missed`].
    missed: Option<Array<MapData, u64>>,
}

/// The hooks and their state.
pub(super) struct Hooks {
    slots: Vec<Slot>,
    missing: Vec<Missing>,
    places: Places,
    avoid: Vec<Way>,
    cuda_library: Option<PathBuf>,
    kinds: u64,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks")
            .field("report", &self.report())
            .finish_non_exhaustive()
    }
}

impl Hooks {
    /// Nothing is attached yet. `missing` are the members that the kernel's BTF lacks; for the
    /// others see [`super::SensorOptions`].
    pub(super) fn new(
        ebpf: &mut Ebpf,
        places: Places,
        missing: Vec<Missing>,
        avoid: Vec<Way>,
        cuda_library: Option<PathBuf>,
    ) -> Result<Self, SensorError> {
        let slot = |hook: &'static Hook| {
            Ok(Slot {
                hook,
                attached: None,
                failed: Vec::new(),
                loaded: Vec::new(),
                missed: hook.missed.map(|map| take(ebpf, map)).transpose()?,
            })
        };
        Ok(Self {
            slots: hooks::all().map(slot).collect::<Result<_, SensorError>>()?,
            missing,
            places,
            avoid,
            cuda_library,
            kinds: 0,
        })
    }

    /// Detaches what `kinds` does not need, last hook first.
    pub(super) fn detach(&mut self, ebpf: &mut Ebpf, kinds: u64) {
        self.kinds = kinds;
        for slot in self.slots.iter_mut().rev() {
            if slot.hook.kinds & kinds == 0
                && let Some((_, attached)) = slot.attached.take()
            {
                attached.detach(ebpf);
            }
        }
    }

    /// Has the kernel verify what `kinds` needs, so that attaching takes little.
    pub(super) fn load(&mut self, ebpf: &mut Ebpf, kinds: u64) {
        self.climb(ebpf, kinds, |attacher, rung| {
            if rung.loads_ahead() {
                attacher.load(rung)?;
            }
            Ok(None)
        });
    }

    /// Attaches what `kinds` needs. Failures are kept, for the report and so that a place that the
    /// kernel lacks is not tried again.
    pub(super) fn attach(&mut self, ebpf: &mut Ebpf, kinds: u64) {
        self.kinds = kinds;
        self.climb(ebpf, kinds, |attacher, rung| {
            attacher.attach(rung).map(Some)
        });
    }

    /// Tries the rungs of every hook that `kinds` needs and that is not attached, until one succeeds.
    fn climb(
        &mut self,
        ebpf: &mut Ebpf,
        kinds: u64,
        each: impl Fn(&mut Attacher<'_>, Rung) -> Result<Option<Attached>, SensorError>,
    ) {
        let due = |slot: &Slot| slot.hook.kinds & kinds != 0 && slot.attached.is_none();
        // Read by the first rung that needs it.
        let types = Types::new(&self.places);
        let mut tried = false;
        for slot in self.slots.iter_mut().filter(|slot| due(slot)) {
            let hook = slot.hook;
            slot.failed
                .retain(|(rung, error)| !may_come(hook, *rung) && !may_pass(error));
            for rung in slot.hook.rungs {
                if slot.failed.iter().any(|(failed, _)| failed == rung) {
                    continue;
                }
                tried = true;
                let lacking = self.missing.iter().find(|missing| {
                    missing.group == Group::Identity || slot.hook.groups.contains(&missing.group)
                });
                let mut attacher = Attacher {
                    ebpf,
                    types: &types,
                    cuda_library: self.cuda_library.as_deref(),
                    loaded: &mut slot.loaded,
                };
                let result = match lacking {
                    Some(missing) => Err(SensorError::OffsetMissing {
                        member: missing.member.clone(),
                    }),
                    None if leaves_out(&self.avoid, slot.hook, *rung) => Err(SensorError::Avoided),
                    None => each(&mut attacher, *rung),
                };
                match result {
                    Ok(attached) => {
                        slot.attached = attached.map(|attached| (*rung, attached));
                        break;
                    }
                    Err(error) => slot.failed.push((*rung, error)),
                }
            }
        }
        drop(types);
        if tried {
            crate::memory::give_back();
        }
    }

    /// The state of every hook.
    pub(super) fn report(&self) -> AttachReport {
        let hooks = self.slots.iter().map(|slot| HookReport {
            name: slot.hook.name.into(),
            kinds: hooks::made_by(slot.hook),
            wanted: slot.hook.kinds & self.kinds != 0,
            attached: slot
                .attached
                .as_ref()
                .map(|(_, attached)| attached.place.clone()),
            optional: slot.hook.optional,
            failed: slot
                .failed
                .iter()
                .map(|(rung, error)| (rung.place(), error.to_string()))
                .collect(),
        });
        AttachReport {
            kinds: self.kinds,
            hooks: hooks.collect(),
            unavailable: ladder::unavailable(),
        }
    }

    /// The first failure of a wanted, necessary hook that is attached nowhere; hands it over.
    pub(super) fn take_failure(&mut self) -> Option<SensorError> {
        let kinds = self.kinds;
        self.slots
            .iter_mut()
            .find(|slot| {
                let wanted = slot.hook.kinds & kinds != 0 && !slot.hook.optional;
                wanted && slot.attached.is_none() && !slot.failed.is_empty()
            })
            .map(|slot| slot.failed.swap_remove(0).1)
    }

    /// What the kernel counts about the attached programs.
    pub(super) fn runs(&self) -> Vec<ProgramRuns> {
        let attached = self.slots.iter().filter_map(|slot| {
            let (_, attached) = slot.attached.as_ref()?;
            let sum = ProgramRuns {
                hook: slot.hook.name,
                kinds: slot.hook.kinds,
                skipped: slot.missed_returns(),
                ..ProgramRuns::default()
            };
            Some(attached.runs().fold(sum, |sum, one| ProgramRuns {
                runs: sum.runs + one.run_cnt,
                run_ns: sum.run_ns + one.run_time_ns,
                skipped: sum.skipped + one.recursion_misses,
                ..sum
            }))
        });
        attached.collect()
    }
}

impl Slot {
    /// Most of them the kernel has counted as skipped runs, too: these are told twice, which is the careful side.
    fn missed_returns(&self) -> u64 {
        let missed = self.missed.as_ref();
        missed.map_or(0, |missed| missed.get(&0, 0).unwrap_or(0))
    }
}

/// Whether a rung is left out: its way is unwanted, and the hook has another one.
fn leaves_out(avoid: &[Way], hook: &Hook, rung: Rung) -> bool {
    avoid.contains(&rung.way()) && hook.rungs.iter().any(|it| !avoid.contains(&it.way()))
}

/// Whether what a rung needs may come while the agent runs: a library that is installed, a driver's
/// module that is loaded. The kernel itself stays what it is.
fn may_come(hook: &Hook, rung: Rung) -> bool {
    match rung {
        Rung::Uprobe { .. } => true,
        Rung::Raw { .. } => hook.optional,
        _ => false,
    }
}

/// Whether a program is missing for want of something that may be there in the next moment.
fn may_pass(error: &SensorError) -> bool {
    let errno = match error {
        SensorError::Verifier { source, .. } | SensorError::Descriptor { source, .. } => {
            source.raw_os_error()
        }
        SensorError::Attach { errno, .. } => *errno,
        _ => None,
    };
    matches!(
        errno.map(Errno::from_raw),
        Some(Errno::ENOMEM | Errno::EAGAIN | Errno::EINTR | Errno::EMFILE | Errno::ENFILE)
    )
}

/// A program's error in our terms.
pub(super) fn explain(program: &str, error: ProgramError) -> SensorError {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            if io_error.kind() == io::ErrorKind::PermissionDenied && log.trim().is_empty() {
                return SensorError::Refused { source: io_error };
            }
            let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
            let last = lines[lines.len().saturating_sub(VERIFIER_LINES)..].join("\n");
            SensorError::Verifier {
                program: program.into(),
                source: io_error,
                log: last,
            }
        }
        other => SensorError::Attach {
            program: program.into(),
            detail: chain(&other),
            errno: errno(&other),
        },
    }
}

/// The system call's answer in an error or among its causes.
fn errno(error: &ProgramError) -> Option<i32> {
    // It stands for its cause, which is then not among its causes.
    if let ProgramError::IOError(error) = error {
        return error.raw_os_error();
    }
    let first: Option<&(dyn std::error::Error + 'static)> = Some(error);
    std::iter::successors(first, |error| error.source())
        .find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error())
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl From<TracefsError> for SensorError {
    fn from(error: TracefsError) -> Self {
        SensorError::Tracefs(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aya::sys::SyscallError;
    use nix::libc;

    #[test]
    fn want_of_memory_or_descriptors_may_pass_and_a_refusal_does_not() {
        let source = io::Error::from_raw_os_error;
        let verifier = |errno| SensorError::Verifier {
            program: "x".into(),
            source: source(errno),
            log: String::new(),
        };
        let descriptor = |errno| SensorError::Descriptor {
            program: "x".into(),
            source: source(errno),
        };
        let opened = |errno| explain("x", ProgramError::IOError(source(errno)));
        let linked = |errno| {
            let error = SyscallError {
                call: "bpf_link_create",
                io_error: source(errno),
            };
            explain("x", ProgramError::SyscallError(error))
        };
        let all: [&dyn Fn(i32) -> SensorError; 4] = [&verifier, &descriptor, &opened, &linked];
        for error in all {
            for errno in [
                libc::ENOMEM,
                libc::EAGAIN,
                libc::EINTR,
                libc::EMFILE,
                libc::ENFILE,
            ] {
                assert!(may_pass(&error(errno)), "{:?}", error(errno));
            }
            for errno in [libc::EINVAL, libc::EPERM, libc::E2BIG, libc::ENOENT] {
                assert!(!may_pass(&error(errno)), "{:?}", error(errno));
            }
        }
        assert!(!may_pass(&SensorError::Avoided));
    }
}
