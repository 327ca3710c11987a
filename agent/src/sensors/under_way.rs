//! What the programs remember of calls, waits and connections until their end.
//!
//! Invariant: nothing is remembered of a time in which nobody would have seen its end.

use super::{
    SensorError, hooks,
    in_flight::{InFlightMap, InFlightView, another},
    load::{clear, map_error, take},
    pod::Plain,
    sweep::Sweeper,
};
use aya::{
    Ebpf,
    maps::{Array, HashMap, IterableMap as _, Map, MapData},
};
use palisade_abi::{CudaCall, NetCall, Socket, Turn};

/// The agent's ends of those maps.
#[allow(missing_debug_implementations)] // aya's maps have none
pub(super) struct UnderWay {
    pub in_flight: InFlightMap,
    /// How many entries of it stay between calls, and how many of these were swept out.
    residents: Array<MapData, u64>,
    turns: HashMap<MapData, u64, Plain<Turn>>,
    reclaiming: HashMap<MapData, u64, u64>,
    sockets: HashMap<MapData, u64, Plain<Socket>>,
    net_calls: HashMap<MapData, u64, Plain<NetCall>>,
    cuda_calls: HashMap<MapData, u64, Plain<CudaCall>>,
}

impl UnderWay {
    /// Takes the maps out of the object.
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, SensorError> {
        Ok(Self {
            in_flight: take(ebpf, "IN_FLIGHT")?,
            residents: take(ebpf, "RESIDENTS")?,
            turns: take(ebpf, "TURNS")?,
            reclaiming: take(ebpf, "RECLAIMING")?,
            sockets: take(ebpf, "SOCKETS")?,
            net_calls: take(ebpf, "NET_CALLS")?,
            cuda_calls: take(ebpf, "CUDA_CALLS")?,
        })
    }

    /// What removes the driver calls of processes whose end was not seen.
    pub(super) fn sweeper(&self) -> Result<Sweeper, SensorError> {
        let residents = Map::Array(another(self.residents.map(), "RESIDENTS")?);
        let residents = Array::try_from(residents);
        Ok(Sweeper::new(
            InFlightView::new(&self.in_flight)?,
            residents.map_err(|error| map_error("RESIDENTS", &error))?,
        ))
    }

    /// Forgets the calls and waits under way whose hooks come or go between two sets of kinds:
    /// nobody sees them end, and they must not be taken for the beginning of later ones. Those
    /// whose hooks stay are kept.
    pub(super) fn forget_between(&mut self, old: u64, new: u64) -> Result<(), SensorError> {
        let changes = |family: u64| (old & family == 0) != (new & family == 0);
        if changes(hooks::GPU) {
            clear(&mut self.in_flight);
            for word in 0..2 {
                self.residents
                    .set(word, 0, 0)
                    .map_err(|error| map_error("RESIDENTS", &error))?;
            }
        }
        if changes(hooks::SCHED) {
            clear(&mut self.turns);
        }
        if changes(hooks::RECLAIM) {
            clear(&mut self.reclaiming);
        }
        if changes(hooks::SOCKETS) {
            clear(&mut self.sockets);
        }
        if changes(hooks::TRANSFERS) {
            clear(&mut self.net_calls);
        }
        if changes(hooks::CUDA) {
            clear(&mut self.cuda_calls);
        }
        Ok(())
    }

    /// Forgets turns on a CPU and sockets after somebody stopped being watched: they go on unseen.
    pub(super) fn forget_unwatched(&mut self) {
        clear(&mut self.turns);
        clear(&mut self.sockets);
    }
}
