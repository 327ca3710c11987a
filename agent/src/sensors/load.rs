//! Loading the object: offsets, map sizes, what the maps hold at first.

use super::{
    MAX_SUFFIX, Scope, SensorError, SensorOptions,
    attach::{AttachReport, Hooks, chain},
    btf,
    capabilities::may_load,
    check::{check, check_roots},
    constants, devices, families,
    globals::Globals,
    hooks::{self, needed},
    in_flight::InFlightView,
    kernel_version,
    offsets::Group,
    pids::{self, Pids},
    places::Places,
    pod::Plain,
    pressure::Pressure,
    quotas,
    run::{SensorHandle, Shared},
    under_way::UnderWay,
    window::Collect,
};
use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuHashMap, PerCpuValues, RingBuf},
};
use palisade_abi::{Added, Config, CpuLosses, MODEL_SUFFIX_BYTES};
use std::{io, sync::Arc, time::Duration};

pub(super) const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";
const PAGE: u32 = 4096;
/// The ring buffer at most: half of what a 32-bit size can say, as a power of two.
const MAX_RING: u32 = 1 << 30;

/// The agent's ends of the maps.
#[allow(missing_debug_implementations)] // aya's maps have none
pub(super) struct Maps {
    pub config: Array<MapData, Plain<Config>>,
    pub roots: HashMap<MapData, u64, u32>,
    pub losses: PerCpuHashMap<MapData, u64, Plain<CpuLosses>>,
    pub added: Array<MapData, Plain<Added>>,
}

/// Loaded programs, some of them attached.
pub struct Sensors {
    pub(super) ebpf: Ebpf,
    pub(super) hooks: Hooks,
    pub(super) maps: Maps,
    pub(super) families: Vec<Box<dyn Collect>>,
    pub(super) ring: RingBuf<MapData>,
    pub(super) under_way: UnderWay,
    pub(super) pids: Pids,
    pub(super) view: InFlightView,
    pub(super) pressure: Pressure,
    pub(super) switches: Config,
    pub(super) wanted: u64,
    /// Bits of the kinds whose hooks are attached.
    pub(super) hooked: u64,
    pub(super) window: Duration,
    pub(super) shared: Arc<Shared>,
}

impl std::fmt::Debug for Sensors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sensors")
            .field("hooks", &self.hooks)
            .field("switches", &self.switches)
            .finish_non_exhaustive()
    }
}

impl Sensors {
    /// Loads the object and attaches what `options.kinds` needs. A hook that cannot be attached is
    /// no error here: see [`Sensors::report`] and [`Sensors::require_all`].
    pub fn load(object: &[u8], options: SensorOptions) -> Result<Sensors, SensorError> {
        let (scope, kinds) = (options.scope.clone(), options.kinds);
        let mut sensors = Self::prepare(object, options)?;
        sensors.attach(&scope, kinds)?;
        Ok(sensors)
    }

    /// The first and longer part of [`Sensors::load`]: has the kernel verify what `options.kinds` needs, and attaches
    /// nothing.
    pub fn prepare(object: &[u8], options: SensorOptions) -> Result<Sensors, SensorError> {
        check(&options)?;
        if !may_load() {
            return Err(SensorError::NotRoot);
        }
        kernel_version::check(&kernel_version::kernel_release())?;
        let jit = std::fs::read_to_string(kernel_version::JIT_SWITCH);
        kernel_version::check_jit(jit.ok().as_deref())?;
        let data = std::fs::read(BTF_PATH).map_err(|source| SensorError::NoBtf {
            path: BTF_PATH,
            source,
        })?;
        let types = btf::Btf::parse(data)?;
        let (globals, missing) = Globals::resolve(&types, options.cgroup_v2);
        let places = Places::find(&types);
        drop(types);
        if let Some(missing) = missing
            .iter()
            .find(|missing| missing.group == Group::Identity)
        {
            return Err(SensorError::OffsetMissing {
                member: missing.member.clone(),
            });
        }
        let ring_bytes = options.ring_bytes.clamp(PAGE, MAX_RING).next_power_of_two();
        let classes = options
            .devices
            .iter()
            .map(|device| device.class + 1)
            .max()
            .unwrap_or(1);
        let mut loader = EbpfLoader::new();
        loader
            // The programs have no offsets to be fixed up: they are given them.
            .btf(None)
            .map_max_entries("EVENTS", ring_bytes)
            .map_max_entries("SOCKETS", options.max_processes.saturating_mul(4))
            .map_max_entries("READ_FDS", read_fds(possible_cpus()?))
            .map_max_entries(
                "GPU_COUNTERS",
                options.max_processes.saturating_mul(classes.min(4)),
            );
        globals.give_to(&mut loader);
        for (map, each) in families::ROOM {
            loader.map_max_entries(map, options.max_processes.saturating_mul(*each));
        }
        let mut ebpf = loader.load(object).map_err(refused_or_broken)?;

        let mut maps = Maps {
            config: take(&mut ebpf, "CONFIG")?,
            roots: take(&mut ebpf, "ROOTS")?,
            losses: take(&mut ebpf, "LOSSES")?,
            added: take(&mut ebpf, "ADDED")?,
        };
        fill(&mut ebpf, &mut maps, &options)?;
        let under_way = UnderWay::new(&mut ebpf)?;
        let view = InFlightView::new(&under_way.in_flight)?;
        let mut families = families::all(&mut ebpf)?;
        families.push(Box::new(under_way.sweeper()?));
        let mut sensors = Sensors {
            ring: take(&mut ebpf, "EVENTS")?,
            families,
            pids: Pids::new(&mut ebpf, &options.devices)?,
            hooks: Hooks::new(
                &mut ebpf,
                places,
                missing,
                options.avoid,
                options.cuda_library,
            )?,
            ebpf,
            maps,
            under_way,
            view,
            pressure: Pressure::new(options.pressure),
            switches: Config {
                model_min_bytes: options.model_min_bytes,
                own_pid: std::process::id(),
                ..Config::default()
            },
            wanted: 0,
            hooked: 0,
            window: options.window,
            shared: Arc::new(Shared::new(ring_bytes)?),
        };
        let kinds = needed(options.kinds) | pids::kinds(options.scope.processes());
        sensors.hooks.load(&mut sensors.ebpf, kinds);
        Ok(sensors)
    }

    /// The second part: attaches what these kinds need in this scope, whether it was prepared or not.
    pub fn attach(&mut self, scope: &Scope, kinds: u64) -> Result<(), SensorError> {
        self.apply_scope(scope)?;
        self.apply_kinds(kinds)
    }

    /// What is attached, and why something is not.
    pub fn report(&self) -> AttachReport {
        self.hooks.report()
    }

    /// The first reason why a wanted kind is not, or not fully, sensed.
    pub fn require_all(&mut self) -> Result<(), SensorError> {
        match self.hooks.take_failure() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// A view of the driver calls under way.
    pub fn in_flight(&self) -> InFlightView {
        self.view.clone()
    }

    /// For changing and stopping the sensors from other threads.
    pub fn handle(&self) -> SensorHandle {
        SensorHandle::new(self.shared.clone())
    }

    /// Attaches and detaches so that exactly `wanted` is sensed.
    pub(super) fn apply_kinds(&mut self, wanted: u64) -> Result<(), SensorError> {
        let kinds = needed(wanted) | self.pids.kinds();
        self.hooks.detach(&mut self.ebpf, kinds);
        self.under_way.forget_between(self.hooked, kinds)?;
        self.hooked = kinds;
        // Following GPU users takes the hooks of driver calls, but nobody reads what they could count.
        self.switches.kinds = needed(wanted) | (self.pids.kinds() & !hooks::GPU);
        self.wanted = wanted;
        self.write_config()?;
        self.hooks.attach(&mut self.ebpf, kinds);
        self.shared.set_report(self.hooks.report());
        Ok(())
    }

    /// Changes whose events are recorded.
    pub(super) fn apply_scope(&mut self, scope: &Scope) -> Result<(), SensorError> {
        let (cgroups, processes) = (scope.cgroups(), scope.processes());
        let new: Vec<u64> = cgroups.iter().map(|id| id.0).collect();
        check_roots(new.len())?;
        // The new generation comes last: answers found under the old one are void with it, so it
        // does not matter which roots they were found with.
        let old: Vec<u64> = self.maps.roots.keys().filter_map(Result::ok).collect();
        for root in old.iter().filter(|root| !new.contains(root)) {
            self.maps
                .roots
                .remove(root)
                .map_err(|error| map_error("ROOTS", &error))?;
        }
        for root in &new {
            self.maps
                .roots
                .insert(root, 1, 0)
                .map_err(|error| map_error("ROOTS", &error))?;
        }
        let all = u32::from(*scope == Scope::All);
        let fewer = all < self.switches.scope_all || old.iter().any(|root| !new.contains(root));
        self.switches.scope_all = all;
        self.switches.generation = self.switches.generation.wrapping_add(1);
        if self.pids.set(processes)? {
            self.switches.watch = self.pids.switches();
            // Whoever starts from now on is seen by the hooks, whoever is there is looked up.
            self.apply_kinds(self.wanted)?;
            self.pids.seed();
        }
        self.write_config()?;
        if fewer {
            self.under_way.forget_unwatched();
        }
        Ok(())
    }

    fn write_config(&mut self) -> Result<(), SensorError> {
        self.maps
            .config
            .set(0, Plain(self.switches), 0)
            .map_err(|error| map_error("CONFIG", &error))
    }
}

/// Room for what descriptors are. So many of them are read at once on so many CPUs; one that is pushed
/// out is only looked at again.
fn read_fds(cpus: usize) -> u32 {
    u32::try_from(cpus)
        .unwrap_or(u32::MAX)
        .saturating_mul(512)
        .clamp(4096, 16_384)
}

/// Devices, suffixes, and the entry that takes losses without an owner.
fn fill(ebpf: &mut Ebpf, maps: &mut Maps, options: &SensorOptions) -> Result<(), SensorError> {
    devices::fill(ebpf, &options.devices)?;
    let mut suffixes: HashMap<&mut MapData, [u8; MODEL_SUFFIX_BYTES], u32> =
        borrow(ebpf, "SUFFIXES")?;
    for suffix in &options.model_suffixes {
        suffixes
            .insert(suffix_key(suffix), 1, 0)
            .map_err(|error| map_error("SUFFIXES", &error))?;
    }
    let nothing = PerCpuValues::try_from(vec![Plain(CpuLosses::default()); possible_cpus()?])
        .map_err(|error| map_error("LOSSES", &error.into()))?;
    maps.losses
        .insert(0, nothing, 0)
        .map_err(|error| map_error("LOSSES", &error))?;
    quotas::limit(ebpf, options.max_processes, families::room)?;
    constants::fill(ebpf, options.nodes.as_deref())
}

/// CPUs that the kernel makes room for.
pub(super) fn possible_cpus() -> Result<usize, SensorError> {
    aya::util::nr_cpus().map_err(|(what, source)| SensorError::Object {
        detail: format!("number of CPUs ({what}): {source}"),
    })
}

/// A suffix as the kernel compares it: without the dot, aligned to the end, NULs in front.
fn suffix_key(suffix: &str) -> [u8; MODEL_SUFFIX_BYTES] {
    let mut key = [0; MODEL_SUFFIX_BYTES];
    let bytes = suffix.trim_start_matches('.').as_bytes();
    let bytes = &bytes[bytes.len().saturating_sub(MAX_SUFFIX)..];
    key[MODEL_SUFFIX_BYTES - bytes.len()..].copy_from_slice(bytes);
    key
}

/// A map that nobody needs after loading. It stays in `ebpf`: programs that are loaded later
/// refer to it.
pub(super) fn borrow<'a, M>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<M, SensorError>
where
    M: TryFrom<&'a mut Map, Error = MapError>,
{
    let map = ebpf.map_mut(name).ok_or_else(|| SensorError::Object {
        detail: format!("map {name} is not in it"),
    })?;
    M::try_from(map).map_err(|error| SensorError::Object {
        detail: format!("map {name}: {}", chain(&error)),
    })
}

pub(super) fn take<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, SensorError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or_else(|| SensorError::Object {
        detail: format!("map {name} is not in it"),
    })?;
    M::try_from(map).map_err(|error| SensorError::Object {
        detail: format!("map {name}: {}", chain(&error)),
    })
}

/// Sets the first entries of an array that nobody changes after loading.
pub(super) fn set_array<V: aya::Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
    values: impl IntoIterator<Item = V>,
) -> Result<(), SensorError> {
    let mut array: Array<&mut MapData, V> = borrow(ebpf, name)?;
    for (index, value) in (0..).zip(values) {
        array
            .set(index, value, 0)
            .map_err(|error| map_error(name, &error))?;
    }
    Ok(())
}

pub(super) fn clear<K: aya::Pod, V: aya::Pod>(map: &mut HashMap<MapData, K, V>) {
    let keys: Vec<K> = map.keys().filter_map(Result::ok).collect();
    for key in keys {
        // Already gone is just as good.
        let _ = map.remove(&key);
    }
}

pub(super) fn map_error(map: &'static str, error: &MapError) -> SensorError {
    SensorError::Map {
        map,
        detail: chain(error),
    }
}

fn refused_or_broken(error: EbpfError) -> SensorError {
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(current) = cause {
        if let Some(io_error) = current.downcast_ref::<io::Error>()
            && io_error.kind() == io::ErrorKind::PermissionDenied
        {
            let source = io::Error::from(io_error.kind());
            return SensorError::Refused { source };
        }
        cause = current.source();
    }
    SensorError::Object {
        detail: chain(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_aligned_to_the_end_and_lose_their_dot() {
        let key = suffix_key(".gguf");
        assert_eq!(&key[12..], b"gguf");
        assert_eq!(&key[..12], &[0; 12]);
        assert_eq!(suffix_key("gguf"), key);
    }
}
