//! TCP: traffic, requests on server sockets, segments sent again.

use super::{Hook, Rung};
use crate::sensors::offsets::Group;
use palisade_abi::Kind;

/// Kinds for which sockets are remembered.
pub(in crate::sensors) const SOCKETS: u64 =
    Kind::SampleInference.bit() | Kind::SampleCompleted.bit() | Kind::SampleFirstByte.bit();
/// Kinds that follow sends and receives.
pub(in crate::sensors) const TRANSFERS: u64 = Kind::SampleNet.bit() | SOCKETS;

/// The end of a socket comes first: whoever is remembered is also forgotten.
pub(super) const HOOKS: &[Hook] = &[
    super::sched!(
        "TCP socket state",
        SOCKETS,
        &[Group::Sockets, Group::Ports],
        "net_state",
        "net_state_raw",
        "inet_sock_set_state"
    ),
    super::sched!(
        "TCP segment sent again",
        Kind::SampleInference.bit(),
        &[Group::Segments],
        "net_retransmit",
        "net_retransmit_raw",
        "tcp_retransmit_skb"
    ),
    Hook {
        name: "TCP send",
        kinds: TRANSFERS,
        groups: &[Group::Sockets],
        rungs: &[
            Rung::Btf {
                program: "net_send",
                point: "sock_send_length",
            },
            Rung::Raw {
                program: "net_send_raw",
                point: "sock_send_length",
            },
            Rung::Fexit {
                program: "net_send_exit",
                function: "tcp_sendmsg",
            },
            Rung::Kretprobe {
                entry: "net_send_enter",
                program: "net_send_return",
                function: "tcp_sendmsg",
            },
        ],
        optional: false,
        missed: None,
    },
    Hook {
        name: "TCP receive",
        kinds: TRANSFERS,
        groups: &[Group::Sockets],
        rungs: &[
            Rung::Btf {
                program: "net_receive",
                point: "sock_recv_length",
            },
            Rung::Raw {
                program: "net_receive_raw",
                point: "sock_recv_length",
            },
            Rung::Fexit {
                program: "net_receive_exit",
                function: "tcp_recvmsg",
            },
            Rung::Kretprobe {
                entry: "net_receive_enter",
                program: "net_receive_return",
                function: "tcp_recvmsg",
            },
        ],
        optional: false,
        missed: None,
    },
];
