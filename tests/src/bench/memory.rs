//! Kernel memory of eBPF maps: as the kernel reports it, and computed for another host.
//!
//! The formulas are those by which the kernel itself answers (`*_map_mem_usage` in kernel/bpf, Linux 6.4 and
//! later), which it shows as `memlock` in /proc/PID/fdinfo. Sizes of its structures are for 64-bit kernels;
//! fixed parts of under a kilobyte a map are left out.

use std::collections::BTreeMap;
use std::fs;

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_HASH: u32 = 5;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const LRU_PERCPU_HASH: u32 = 10;
const RINGBUF: u32 = 27;
/// `BPF_F_NO_PREALLOC`: memory is taken for entries that exist.
const ON_DEMAND: u32 = 1;

/// `struct htab_elem` without key and value.
const ELEMENT: u64 = 48;
/// `struct bucket`
const BUCKET: u64 = 16;
/// `struct llist_node` and the pointer that the allocator keeps with each object.
const NODE: u64 = 8;
/// `HASHTAB_MAP_LOCK_COUNT` counters of four bytes for each CPU.
const LOCKS: u64 = 8 * 4;
const POINTER: u64 = 8;
const PAGE: u64 = 4096;

/// A map as it is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// `enum bpf_map_type`
    pub kind: u32,
    /// Bytes of a key.
    pub key: u64,
    /// Bytes of a value (of one CPU).
    pub value: u64,
    /// Entries at most; a ring buffer's bytes.
    pub entries: u64,
    /// `BPF_F_*`
    pub flags: u32,
    /// What the kernel says it takes, bytes.
    pub reported: u64,
}

impl Map {
    /// Whether values exist once for each CPU.
    pub fn per_cpu(&self) -> bool {
        matches!(self.kind, PERCPU_HASH | PERCPU_ARRAY | LRU_PERCPU_HASH)
    }

    /// Whether memory is taken for entries that exist only.
    pub fn on_demand(&self) -> bool {
        self.flags & ON_DEMAND != 0
    }

    /// Bytes that it takes with `cpus` possible CPUs and `used` entries in it; `used` does not matter to a map
    /// whose entries are allocated beforehand.
    pub fn bytes(&self, cpus: u64, used: u64) -> u64 {
        let value = self.value.next_multiple_of(8);
        match self.kind {
            RINGBUF => self.entries + 3 * PAGE + (self.entries * 2 / PAGE + 3) * POINTER,
            ARRAY => value * self.entries,
            PERCPU_ARRAY => self.entries * (POINTER + value * cpus),
            HASH | PERCPU_HASH | LRU_HASH | LRU_PERCPU_HASH => {
                let lru = matches!(self.kind, LRU_HASH | LRU_PERCPU_HASH);
                let per_cpu = self.per_cpu();
                let element =
                    ELEMENT + self.key.next_multiple_of(8) + if per_cpu { POINTER } else { value };
                let table = BUCKET * self.entries.next_power_of_two() + LOCKS * cpus;
                if self.on_demand() {
                    let mut entry = element + NODE;
                    if per_cpu {
                        entry += NODE + POINTER + value * cpus;
                    }
                    return table + entry * used.min(self.entries);
                }
                let spare = if per_cpu || lru { 0 } else { cpus };
                let mut bytes = table + element * (self.entries + spare);
                if per_cpu {
                    bytes += value * cpus * self.entries;
                } else if !lru {
                    bytes += POINTER * cpus;
                }
                bytes
            }
            _ => self.reported,
        }
    }
}

/// What a process holds of eBPF, by descriptor.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Maps by id.
    pub maps: BTreeMap<u64, Map>,
    /// Bytes of loaded programs by id.
    pub programs: BTreeMap<u64, u64>,
}

impl Held {
    /// Of a process. Descriptors that vanish meanwhile are passed over.
    pub fn by(pid: u32) -> Self {
        let mut held = Self::default();
        let entries = fs::read_dir(format!("/proc/{pid}/fdinfo"))
            .into_iter()
            .flatten()
            .flatten();
        for entry in entries {
            held.take(&fs::read_to_string(entry.path()).unwrap_or_default());
        }
        held
    }

    fn take(&mut self, text: &str) {
        let field = |name: &str| {
            text.lines().find_map(|line| {
                let value = line.strip_prefix(name)?.strip_prefix(':')?.trim();
                match value.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16).ok(),
                    None => value.parse().ok(),
                }
            })
        };
        let reported = field("memlock").unwrap_or(0);
        if let (Some(id), Some(kind)) = (field("map_id"), field("map_type")) {
            let map = Map {
                kind: kind as u32,
                key: field("key_size").unwrap_or(0),
                value: field("value_size").unwrap_or(0),
                entries: field("max_entries").unwrap_or(0),
                flags: field("map_flags").unwrap_or(0) as u32,
                reported,
            };
            self.maps.insert(id, map);
        } else if let (Some(id), Some(_)) = (field("prog_id"), field("prog_type")) {
            self.programs.insert(id, reported);
        }
    }

    /// Bytes of all maps, as the kernel reports them.
    pub fn reported(&self) -> u64 {
        self.maps.values().map(|map| map.reported).sum()
    }

    /// Bytes of all programs.
    pub fn program_bytes(&self) -> u64 {
        self.programs.values().sum()
    }

    /// Bytes of all maps on a host with `cpus` possible CPUs and `used` entries in each map that grows.
    pub fn computed(&self, cpus: u64, used: u64) -> u64 {
        self.maps.values().map(|map| map.bytes(cpus, used)).sum()
    }
}

/// Resident memory of a process without the pages of eBPF maps that it has mapped: they are the maps' own, and a ring
/// buffer's are mapped twice. Bytes; `None` if it is gone.
pub fn resident(pid: u32) -> Option<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    (!smaps.is_empty()).then(|| without_maps(&smaps))
}

fn without_maps(smaps: &str) -> u64 {
    let (mut bytes, mut counts) = (0, true);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Rss:") if counts => {
                bytes += words.next().and_then(|kib| kib.parse().ok()).unwrap_or(0) * 1024;
            }
            // `7efea64f9000-7efea6cfa000 r--s 00000000 00:0f 1061 anon_inode:bpf-map`
            Some(word) if !word.ends_with(':') => counts = !line.ends_with(" anon_inode:bpf-map"),
            _ => {}
        }
    }
    bytes
}

/// CPUs for which the kernel makes room, 1 if it does not say.
pub fn possible_cpus() -> u64 {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    // `0-1`, or `0`.
    let last = text.trim().rsplit(['-', ',']).next().unwrap_or_default();
    last.parse::<u64>().map_or(1, |last| last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1061\nmap_type:\t5\nkey_size:\t24\nvalue_size:\t72\n\
                        max_entries:\t4096\nmap_flags:\t0x0\nmap_extra:\t0x0\nmemlock:\t1049088\nmap_id:\t7\nfrozen:\t0\n";

    #[test]
    fn a_descriptor_s_lines_are_read_once_a_map() {
        let mut held = Held::default();
        held.take(INFO);
        held.take(INFO);
        held.take("prog_type:\t5\nprog_jited:\t1\nprog_tag:\tab\nmemlock:\t4096\nprog_id:\t3\n");
        held.take("pos:\t0\nflags:\t02\n");
        let map = held.maps[&7];
        assert_eq!(
            (map.kind, map.key, map.value, map.entries),
            (PERCPU_HASH, 24, 72, 4096)
        );
        assert_eq!((held.reported(), held.program_bytes()), (1_049_088, 4096));
    }

    #[test]
    fn pages_of_maps_do_not_count_as_resident() {
        let smaps = "55d0-55e0 r-xp 00000000 fe:00 9 /usr/bin/palisade\nSize: 64 kB\nRss: 40 kB\nVmFlags: rd ex\n\
                     7e00-7f00 r--s 00000000 00:0f 1061 anon_inode:bpf-map\nSize: 80 kB\nRss: 80 kB\n\
                     7f00-7f10 rw-p 00000000 00:00 0\nRss: 8 kB\n7f10-7f20 rw-p 00000000 00:00 0 [heap]\nRss: 2 kB\n";
        assert_eq!(without_maps(smaps), 50 * 1024);
        assert!(resident(std::process::id()).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(resident(u32::MAX), None);
    }

    #[test]
    fn sizes_by_hand() {
        let map = |kind, flags| Map {
            kind,
            key: 24,
            value: 20,
            entries: 1000,
            flags,
            reported: 5,
        };
        // 1024 buckets of 16; two CPUs' lock counters.
        let table = 16_384 + 64;
        assert_eq!(map(HASH, 0).bytes(2, 9), table + 96 * 1002 + 16);
        assert_eq!(map(LRU_HASH, 0).bytes(2, 9), table + 96 * 1000);
        assert_eq!(
            map(PERCPU_HASH, 0).bytes(2, 9),
            table + 80 * 1000 + 24 * 2 * 1000
        );
        assert_eq!(
            map(PERCPU_HASH, ON_DEMAND).bytes(2, 9),
            table + 9 * (80 + 8 + 16 + 48)
        );
        assert_eq!(map(ARRAY, 0).bytes(2, 9), 24 * 1000);
        assert_eq!(map(99, 0).bytes(2, 9), 5, "what is unknown is as reported");
    }

    #[test]
    fn only_values_for_each_cpu_grow_with_the_cpus() {
        let map = Map {
            kind: PERCPU_HASH,
            key: 24,
            value: 72,
            entries: 4096,
            ..Map::default()
        };
        assert_eq!(
            map.bytes(128, 0) - map.bytes(64, 0),
            64 * (72 * 4096 + LOCKS)
        );
    }
}
