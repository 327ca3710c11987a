//! Offsets for the TCP and driver-error programs.

use super::{
    btf::Btf,
    offsets::{Group, Missing, Reader},
};
use palisade_abi::{NetOffsets, PciOffsets};

/// Offsets for the TCP programs, and the members that are missing.
pub(super) fn resolve_net(btf: &Btf) -> (NetOffsets, Vec<Missing>) {
    use Group::{Ports, Segments, Sockets};
    let mut read = Reader::new(btf);
    let receive_arguments = btf.function_arguments("tcp_recvmsg").unwrap_or(0);
    // The third argument came after Linux 6.12.
    let retransmit_has_error = btf
        .tracepoint_arguments("tcp_retransmit_skb")
        .is_some_and(|arguments| arguments >= 3);
    let offsets = NetOffsets {
        sk_family: read.member(Sockets, "sock", "__sk_common.skc_family"),
        sk_protocol: read.member(Sockets, "sock", "sk_protocol"),
        bind_hash: read.member(Ports, "inet_connection_sock", "icsk_bind_hash"),
        fastreuse: read.member(Ports, "inet_bind_bucket", "fastreuse"),
        skb_segments: read.member(Segments, "sk_buff", "cb")
            + read.member(Segments, "tcp_skb_cb", "tcp_gso_segs"),
        retransmit_has_error: u32::from(retransmit_has_error),
        receive_arguments,
        pad: 0,
    };
    (offsets, read.missing)
}

/// Offsets for the driver-error program, and the members that are missing.
pub(super) fn resolve_pci(btf: &Btf) -> (PciOffsets, Vec<Missing>) {
    use Group::Pci;
    let mut read = Reader::new(btf);
    // x86 keeps the domain behind `sysdata`.
    let own_domain = btf.member("pci_bus", "domain_nr");
    let offsets = PciOffsets {
        dev_bus: read.member(Pci, "pci_dev", "bus"),
        dev_devfn: read.member(Pci, "pci_dev", "devfn"),
        bus_number: read.member(Pci, "pci_bus", "number"),
        bus_domain: match own_domain {
            Some(offset) => offset,
            None => read.member(Pci, "pci_bus", "sysdata"),
        },
        domain_is_behind: u32::from(own_domain.is_none()),
        sysdata_domain: match own_domain {
            Some(_) => 0,
            None => read.member(Pci, "pci_sysdata", "domain"),
        },
    };
    (offsets, read.missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernels_types_have_every_member() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("SKIPPED this_kernels_types_have_every_member: no BTF on this kernel");
            return;
        };
        let btf = Btf::parse(data).expect("the kernel's own BTF parses");
        let (net, missing) = resolve_net(&btf);
        assert_eq!(missing, []);
        assert!((4..=6).contains(&net.receive_arguments));
        assert_eq!(resolve_pci(&btf).1, []);
    }
}
