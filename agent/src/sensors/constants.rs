//! What the programs must be told about this host once: the NUMA node of each CPU, and which system
//! calls wait.

use super::{SensorError, load::set_array};
use aya::Ebpf;
use nix::libc;
use palisade_abi::{MAX_CPUS, MAX_SYSCALLS};
use std::{fs, path::Path};

const NODES_DIR: &str = "/sys/devices/system/node";

/// Calls that wait or yield. Architectures whose table is younger lack the older forms.
const WAITING: &[libc::c_long] = &[
    libc::SYS_sched_yield,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
];

/// Fills the maps. `nodes`: the NUMA node of each CPU, by number; read from sysfs if absent.
pub(super) fn fill(ebpf: &mut Ebpf, nodes: Option<&[u32]>) -> Result<(), SensorError> {
    let read;
    let nodes = if let Some(nodes) = nodes {
        nodes
    } else {
        read = nodes_in(Path::new(NODES_DIR));
        &read
    };
    set_array(ebpf, "NODES", nodes.iter().copied().take(MAX_CPUS as usize))?;
    set_array(ebpf, "WAITING_CALLS", waiting_calls())
}

/// A bit a call.
fn waiting_calls() -> [u64; MAX_SYSCALLS as usize / 64] {
    let mut words = [0; MAX_SYSCALLS as usize / 64];
    for number in WAITING {
        let number = *number as usize;
        if let Some(word) = words.get_mut(number / 64) {
            *word |= 1 << (number % 64);
        }
    }
    words
}

/// The node of each CPU. A host without the folder has one node.
fn nodes_in(dir: &Path) -> Vec<u32> {
    let mut nodes = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(node) = name
            .to_str()
            .and_then(|name| name.strip_prefix("node")?.parse::<u32>().ok())
        else {
            continue;
        };
        let list = fs::read_to_string(entry.path().join("cpulist")).unwrap_or_default();
        for cpu in cpus(&list) {
            if nodes.len() <= cpu {
                nodes.resize(cpu + 1, 0);
            }
            nodes[cpu] = node;
        }
    }
    nodes
}

/// The numbers of a list such as `0-3,8`; what makes no sense is left out.
fn cpus(list: &str) -> impl Iterator<Item = usize> {
    list.trim().split(',').flat_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = first.parse::<usize>().ok().zip(last.parse::<usize>().ok());
        let (first, last) = range.unwrap_or((1, 0));
        first..(last + 1).min(MAX_CPUS as usize)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nodes_are_read_from_their_lists_of_cpus() {
        let dir = tempfile::tempdir().unwrap();
        for (node, list) in [
            ("node0", "0-1,4\n"),
            ("node1", "2-3\n"),
            ("possible", "0-1\n"),
        ] {
            fs::create_dir(dir.path().join(node)).unwrap();
            fs::write(dir.path().join(node).join("cpulist"), list).unwrap();
        }
        assert_eq!(nodes_in(dir.path()), [0, 0, 1, 1, 0]);
        assert_eq!(nodes_in(Path::new("/nowhere")), [0; 0]);
        assert_eq!(cpus("nonsense,7,5-").collect::<Vec<_>>(), [7]);
        assert_eq!(cpus("\n").count(), 0);
    }

    #[test]
    fn waiting_calls_have_their_bits() {
        let words = waiting_calls();
        let set: u32 = words.iter().map(|word| word.count_ones()).sum();
        assert_eq!(set as usize, WAITING.len());
        let number = libc::SYS_futex as usize;
        assert_eq!(words[number / 64] >> (number % 64) & 1, 1);
    }
}
