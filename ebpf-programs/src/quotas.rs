//! What one process may take of the tables that are keyed finer than by process: by command, by
//! file, by kind and cgroup. Whoever is over its quota has the loss itself, and others find room.
//!
//! Invariant: entries that are there cost nothing here; a quota is only looked at where one is made.

use crate::{
    emit::{BPF_NOEXIST, add, added, lost, nothing, value_or_loss},
    filter::Who,
    tables::ON_DEMAND,
};
use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuHashMap},
};
use palisade_abi::{CounterFamily, LOSS_COUNTER_MAP, QUOTA_TABLES, QuotaKey, QuotaTaken};

/// Entries that processes made, by process and table. The agent forgets those of ended processes.
#[map]
static QUOTAS: HashMap<QuotaKey, QuotaTaken> = HashMap::with_max_entries(16_384, ON_DEMAND);

/// Entries that a process may make in each table. Written by the agent.
#[map]
static QUOTA_LIMITS: Array<u64> = Array::with_max_entries(QUOTA_TABLES, 0);

/// Room for one more entry of a process.
pub struct Room(*mut u64);

impl Room {
    /// If the process has not used up its quota of that table.
    #[inline(always)]
    pub fn of(pid: u32, start_ns: u64, table: u32) -> Option<Self> {
        let limit = *QUOTA_LIMITS.get(table)?;
        let key = QuotaKey {
            start_ns,
            pid,
            table,
        };
        let made = QUOTAS.get_ptr_mut(key).or_else(|| {
            if QUOTAS
                .insert(key, nothing::<QuotaTaken>()?, BPF_NOEXIST)
                .is_ok()
            {
                added::<QuotaTaken>();
            }
            QUOTAS.get_ptr_mut(key)
        })?;
        // SAFETY: the only member of a map value.
        let made = unsafe { &raw mut (*made).entries };
        // SAFETY: an aligned word of a map value. Threads that race for the last entry may get
        // one each, so there are never more of these than threads.
        if unsafe { core::ptr::read_volatile(made) } < limit {
            Some(Self(made))
        } else {
            None
        }
    }

    /// The entry was made.
    #[inline(always)]
    pub fn take(self) {
        add(self.0, 1);
    }
}

/// [`crate::emit::slot`] within the process's quota of a table.
#[inline(always)]
pub fn slot_within<K, V: CounterFamily>(
    map: &PerCpuHashMap<K, V>,
    key: &K,
    who: &Who,
    table: u32,
) -> Option<&'static mut V> {
    let found = map.get_ptr_mut(key).or_else(|| {
        let room = Room::of(who.pid, who.start_ns, table)?;
        if map.insert(key, nothing::<V>()?, BPF_NOEXIST).is_ok() {
            room.take();
            added::<V>();
        }
        map.get_ptr_mut(key)
    });
    value_or_loss(found, who.workload)
}

/// The same of a map whose values all CPUs share: what is in one is only added to with [`add`].
#[inline(always)]
pub fn shared_within<K, V: CounterFamily>(
    map: &HashMap<K, V>,
    key: &K,
    who: &Who,
    table: u32,
) -> Option<*mut V> {
    let found = map.get_ptr_mut(key).or_else(|| {
        let room = Room::of(who.pid, who.start_ns, table)?;
        if map.insert(key, nothing::<V>()?, BPF_NOEXIST).is_ok() {
            room.take();
            added::<V>();
        }
        map.get_ptr_mut(key)
    });
    if found.is_none() {
        lost(who.workload, LOSS_COUNTER_MAP);
    }
    found
}
