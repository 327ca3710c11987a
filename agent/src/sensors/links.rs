//! One rung of a hook: loading its programs and attaching them, and the reverse.
//!
//! Invariants:
//! - A rung is attached as a whole or not at all.
//! - The program at a call's return is attached before the one at its entry, and detached after
//!   it: whoever is seen to enter is also seen to return.

use super::{
    SensorError,
    attach::{chain, explain},
    cuda,
    hooks::Rung,
    places::Places,
    program_info,
    tracefs::{self, TracefsError},
};
use aya::{
    Btf, Ebpf, Endianness,
    programs::{
        BtfTracePoint, FEntry, FExit, KProbe, Lsm, Program, ProgramError, ProgramFd, RawTracePoint,
        TracePoint, UProbe,
        fentry::FEntryLinkId,
        fexit::FExitLinkId,
        kprobe::KProbeLinkId,
        lsm::LsmLinkId,
        raw_trace_point::RawTracePointLinkId,
        tp_btf::BtfTracePointLinkId,
        trace_point::TracePointLinkId,
        uprobe::{UProbeAttachLocation, UProbeLinkId, UProbeScope},
    },
};
use aya_obj::generated::bpf_prog_info;
use std::{
    cell::OnceCell,
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

/// The kernel's active security modules, by comma.
const ACTIVE_LSM: &str = "/sys/kernel/security/lsm";

enum Link {
    Btf(BtfTracePointLinkId),
    Raw(RawTracePointLinkId),
    Fentry(FEntryLinkId),
    Fexit(FExitLinkId),
    Kprobe(KProbeLinkId),
    Point(TracePointLinkId),
    Uprobe(UProbeLinkId),
    Lsm(LsmLinkId),
}

/// A rung that is attached. Dropping it does not detach it.
pub(super) struct Attached {
    /// For people.
    pub place: String,
    /// Its programs, for what the kernel counts about them.
    programs: Vec<OwnedFd>,
    /// By program, in the order of attaching.
    links: Vec<(&'static str, Link)>,
}

/// The kernel's types as aya takes them, made when the first rung asks.
pub(super) struct Types<'a> {
    places: &'a Places,
    btf: OnceCell<Btf>,
}

impl<'a> Types<'a> {
    pub(super) fn new(places: &'a Places) -> Self {
        Self {
            places,
            btf: OnceCell::new(),
        }
    }

    fn get(&self) -> Result<&Btf, SensorError> {
        if let Some(btf) = self.btf.get() {
            return Ok(btf);
        }
        let btf = Btf::parse(&self.places.section(), Endianness::default());
        let btf = btf.map_err(|error| SensorError::Object {
            detail: chain(&error),
        })?;
        Ok(self.btf.get_or_init(|| btf))
    }
}

/// What attaching needs.
pub(super) struct Attacher<'a> {
    pub ebpf: &'a mut Ebpf,
    pub types: &'a Types<'a>,
    /// See [`super::SensorOptions::cuda_library`].
    pub cuda_library: Option<&'a Path>,
    /// The hook's programs that are loaded already.
    pub loaded: &'a mut Vec<&'static str>,
}

/// A program of type `$kind`, loaded (`$load` does it if need be).
macro_rules! program {
    ($self:ident, $name:ident, $kind:ty, |$program:ident| $load:expr) => {{
        let is_loaded = $self.loaded.contains(&$name);
        let program = $self.ebpf.program_mut($name);
        let $program: &mut $kind = program
            .ok_or_else(|| not_there($name))?
            .try_into()
            .map_err(|error| explain($name, error))?;
        if !is_loaded {
            $load.map_err(|error| explain($name, error))?;
            $self.loaded.push($name);
        }
        $program
    }};
}

impl Attacher<'_> {
    /// Has the kernel verify all programs of a rung.
    pub(super) fn load(&mut self, rung: Rung) -> Result<(), SensorError> {
        self.each(rung, None)
    }

    /// Attaches all programs of a rung.
    pub(super) fn attach(&mut self, rung: Rung) -> Result<Attached, SensorError> {
        let mut attached = Attached {
            place: rung.place(),
            programs: Vec::new(),
            links: Vec::new(),
        };
        let result = self.each(rung, Some(&mut attached));
        match result.and_then(|()| self.programs(rung)) {
            Ok(programs) => {
                attached.programs = programs;
                Ok(attached)
            }
            Err(error) => {
                attached.detach(self.ebpf);
                Err(error)
            }
        }
    }

    /// Second descriptors of a rung's programs. One whose place the machine lacks is not loaded.
    fn programs(&self, rung: Rung) -> Result<Vec<OwnedFd>, SensorError> {
        let names = rung.programs();
        let loaded = names.filter_map(|name| Some((name, self.ebpf.program(name)?.fd().ok()?)));
        let another = |(name, fd): (&str, &ProgramFd)| {
            let fd = fd.as_fd().try_clone_to_owned();
            fd.map_err(|source| SensorError::Descriptor {
                program: name.into(),
                source,
            })
        };
        loaded.map(another).collect()
    }

    /// Loads each program and, where there is something to keep the links in, attaches it.
    fn each(&mut self, rung: Rung, mut to: Option<&mut Attached>) -> Result<(), SensorError> {
        let mut add = |name, attach: &mut dyn FnMut() -> Result<Link, ProgramError>| {
            if let Some(to) = &mut to {
                let link = attach().map_err(|error| explain(name, error))?;
                to.links.push((name, link));
            }
            Ok(())
        };
        match rung {
            Rung::Btf { program, point } => {
                let loaded = program!(self, program, BtfTracePoint, |it| it
                    .load(point, self.types.get()?));
                add(program, &mut || loaded.attach().map(Link::Btf))
            }
            Rung::Raw { program, point } => {
                let loaded = program!(self, program, RawTracePoint, |it| it.load());
                add(program, &mut || loaded.attach(point).map(Link::Raw))
            }
            Rung::Fexit { program, function } => {
                let loaded = program!(self, program, FExit, |it| it
                    .load(function, self.types.get()?));
                add(program, &mut || loaded.attach().map(Link::Fexit))
            }
            Rung::FentryFexit {
                entry,
                program,
                function,
            } => {
                let loaded = program!(self, program, FExit, |it| it
                    .load(function, self.types.get()?));
                add(program, &mut || loaded.attach().map(Link::Fexit))?;
                let loaded = program!(self, entry, FEntry, |it| it
                    .load(function, self.types.get()?));
                add(entry, &mut || loaded.attach().map(Link::Fentry))
            }
            Rung::Kretprobe {
                entry,
                program,
                function,
            } => [program, entry].into_iter().try_for_each(|name| {
                let loaded = program!(self, name, KProbe, |it| it.load());
                add(name, &mut || loaded.attach(function, 0).map(Link::Kprobe))
            }),
            Rung::Syscall {
                program,
                point,
                words,
            } => {
                tracefs::check(&tracefs::ensure()?, "syscalls", point, words)?;
                let loaded = program!(self, program, TracePoint, |it| it.load());
                add(program, &mut || {
                    loaded.attach("syscalls", point).map(Link::Point)
                })
            }
            Rung::SyscallPair {
                entry,
                program,
                call,
                words,
            } => {
                let ends = [
                    (program, format!("sys_exit_{call}"), 1),
                    (entry, format!("sys_enter_{call}"), words),
                ];
                ends.into_iter().try_for_each(|(name, point, words)| {
                    tracefs::check(&tracefs::ensure()?, "syscalls", &point, words)?;
                    let loaded = program!(self, name, TracePoint, |it| it.load());
                    add(name, &mut || {
                        loaded.attach("syscalls", &point).map(Link::Point)
                    })
                })
            }
            Rung::Lsm { program, hook } => {
                active_lsm()?;
                let loaded = program!(self, program, Lsm, |it| it.load(hook, self.types.get()?));
                add(program, &mut || loaded.attach().map(Link::Lsm))
            }
            Rung::Returns { programs, points } => {
                let tracefs = tracefs::ensure()?;
                for (name, point) in programs.iter().copied().zip(points) {
                    match tracefs::check(&tracefs, "syscalls", point, 1) {
                        Err(TracefsError::NoSuchTracepoint { .. }) if name != programs[0] => {
                            continue;
                        }
                        checked => checked?,
                    }
                    let loaded = program!(self, name, TracePoint, |it| it.load());
                    add(name, &mut || {
                        loaded.attach("syscalls", point).map(Link::Point)
                    })?;
                }
                Ok(())
            }
            Rung::Uprobe { programs, symbols } => {
                let library = cuda::Library::find(self.cuda_library, symbols)?;
                for name in programs.iter().copied() {
                    let loaded = program!(self, name, UProbe, |it| it.load());
                    for offset in library.offsets() {
                        add(name, &mut || {
                            let at = UProbeAttachLocation::AbsoluteOffset(offset);
                            let link = loaded.attach(at, library.path(), UProbeScope::AllProcesses);
                            link.map(Link::Uprobe)
                        })?;
                    }
                }
                if let Some(to) = to {
                    to.place = library.place();
                }
                Ok(())
            }
        }
    }
}

impl Attached {
    /// What the kernel counts about its programs.
    pub(super) fn runs(&self) -> impl Iterator<Item = bpf_prog_info> {
        self.programs.iter().filter_map(program_info::runs)
    }

    /// Detaches everything, the last first.
    pub(super) fn detach(self, ebpf: &mut Ebpf) {
        for (name, link) in self.links.into_iter().rev() {
            let result = ebpf
                .program_mut(name)
                .map_or(Ok(()), |program| detach(program, link));
            if let Err(error) = result {
                tracing::warn!(place = self.place, program = name, %error, "detaching failed");
            }
        }
    }
}

fn detach(program: &mut Program, link: Link) -> Result<(), ProgramError> {
    match link {
        Link::Btf(link) => <&mut BtfTracePoint>::try_from(program)?.detach(link),
        Link::Raw(link) => <&mut RawTracePoint>::try_from(program)?.detach(link),
        Link::Fentry(link) => <&mut FEntry>::try_from(program)?.detach(link),
        Link::Fexit(link) => <&mut FExit>::try_from(program)?.detach(link),
        Link::Kprobe(link) => <&mut KProbe>::try_from(program)?.detach(link),
        Link::Point(link) => <&mut TracePoint>::try_from(program)?.detach(link),
        Link::Uprobe(link) => <&mut UProbe>::try_from(program)?.detach(link),
        Link::Lsm(link) => <&mut Lsm>::try_from(program)?.detach(link),
    }
}

/// Whether the kernel runs programs at security hooks. Where it does not, they can be attached all the
/// same, and are never run.
fn active_lsm() -> Result<(), SensorError> {
    let active = fs::read_to_string(ACTIVE_LSM).map_err(|error| SensorError::NoLsm {
        active: format!("{ACTIVE_LSM}: {error}"),
    })?;
    if is_among(active.trim()) {
        return Ok(());
    }
    Err(SensorError::NoLsm {
        active: active.trim().into(),
    })
}

fn is_among(active: &str) -> bool {
    active.split(',').any(|name| name == "bpf")
}

fn not_there(program: &str) -> SensorError {
    SensorError::Object {
        detail: format!("program {program} is not in it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_a_security_module_by_their_whole_name() {
        assert!(is_among("lockdown,capability,yama,bpf"));
        assert!(!is_among("capability,bpfilter"));
        assert!(!is_among(""));
    }
}
