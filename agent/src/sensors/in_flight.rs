//! Who is inside a driver call right now.

use super::pod::Plain;
use aya::maps::{HashMap, MapData};
use palisade_abi::InFlight;
use palisade_core::WorkloadId;
use std::sync::Arc;

/// Entries looked at per question. The map holds 16,384; entries that come and go during the walk
/// make the kernel start over, which this bounds.
const MAX_LOOKS: usize = 32_768;

/// A view of the driver calls under way on the whole host. Cheap to clone.
#[derive(Clone, Debug)]
pub struct InFlightView {
    map: Arc<HashMap<MapData, u64, Plain<InFlight>>>,
}

impl InFlightView {
    pub(super) fn new(map: HashMap<MapData, u64, Plain<InFlight>>) -> Self {
        Self { map: Arc::new(map) }
    }

    /// Whether a thread of that workload (the cgroup itself, not those below) is inside a call on
    /// a watched device. A snapshot: it may enter or leave at any time. `false` while the driver
    /// hooks are not attached.
    pub fn in_call(&self, workload: WorkloadId) -> bool {
        self.calls().any(|call| call.workload == workload.0)
    }

    /// The calls under way, in no order.
    pub fn calls(&self) -> impl Iterator<Item = InFlight> + '_ {
        self.map
            .iter()
            .take(MAX_LOOKS)
            .filter_map(Result::ok)
            .map(|(_, call)| call.0)
    }
}
