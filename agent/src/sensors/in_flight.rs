//! Who is inside a driver call right now.
//!
//! Invariant: an entry whose entry time is 0 is of a thread that is in no call.

use super::{
    SensorError,
    attach::chain,
    map_batch::{Batch, Unsupported},
    pod::Plain,
};
use aya::maps::{HashMap, IterableMap as _, Map, MapData};
use palisade_abi::{InFlight, MAX_RESIDENT};
use palisade_core::WorkloadId;
use std::{os::fd::AsFd, sync::Arc};

/// Entries looked at per question where the kernel cannot hand over many at once. Twice what the
/// map holds: entries that come and go during the walk make the kernel start over, which this
/// bounds.
const MAX_LOOKS: usize = 4 * MAX_RESIDENT as usize;

/// Driver calls by thread, those under way and the last ones.
pub(super) type InFlightMap = HashMap<MapData, u64, Plain<InFlight>>;

/// A view of the driver calls under way on the whole host. Cheap to clone.
#[derive(Clone, Debug)]
pub struct InFlightView {
    map: Arc<InFlightMap>,
}

impl InFlightView {
    /// A second handle on the sensor thread's map. Its descriptor is duplicated: opening a map by
    /// its number takes `CAP_SYS_ADMIN`, more than sensing needs.
    pub(super) fn new(map: &InFlightMap) -> Result<Self, SensorError> {
        let broken = |error: &dyn std::error::Error| SensorError::Map {
            map: "IN_FLIGHT",
            detail: chain(error),
        };
        let fd = map.map().fd().as_fd().try_clone_to_owned();
        let data = MapData::from_fd(fd.map_err(|e| broken(&e))?).map_err(|e| broken(&e))?;
        let map = HashMap::try_from(Map::HashMap(data)).map_err(|e| broken(&e))?;
        Ok(Self { map: Arc::new(map) })
    }

    /// Whether a thread of that workload (the cgroup itself, not those below) is inside a call on
    /// a watched device. A snapshot: it may enter or leave at any time. `false` while the driver
    /// hooks are not attached.
    pub fn in_call(&self, workload: WorkloadId) -> bool {
        self.calls().any(|call| call.workload == workload.0)
    }

    /// The calls under way, in no order.
    pub fn calls(&self) -> impl Iterator<Item = InFlight> + '_ {
        let mut calls = Vec::new();
        let mut look = |call: InFlight| {
            if call.entered_ns != 0 {
                calls.push(call);
            }
        };
        let fd = self.map.map().fd();
        let batched = Batch::new(1).read(fd, |_: &u64, call| look(call[0]));
        if let Err(Unsupported) = batched {
            for (_, call) in self.map.iter().take(MAX_LOOKS).filter_map(Result::ok) {
                look(call.0);
            }
        }
        calls.into_iter()
    }
}
