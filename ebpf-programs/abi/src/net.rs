//! Maps and globals of the TCP sensors.

use bytemuck::{Pod, Zeroable};

/// Offsets of kernel structure members in bytes for the TCP programs; see [`crate::Offsets`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NetOffsets {
    /// `sock.__sk_common` + `sock_common.skc_family`
    pub sk_family: u32,
    /// `sock.sk_protocol`
    pub sk_protocol: u32,
    /// `inet_connection_sock.icsk_bind_hash`
    pub bind_hash: u32,
    /// `inet_bind_bucket.fastreuse`
    pub fastreuse: u32,
    /// `sk_buff.cb` + `tcp_skb_cb.tcp_gso_segs`
    pub skb_segments: u32,
    /// 1 if the tracepoint `tcp_retransmit_skb` hands over an error as its third argument.
    pub retransmit_has_error: u32,
    /// Number of arguments of the function `tcp_recvmsg`.
    pub receive_arguments: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// What is known about one TCP socket, keyed by its address, from its first transfer to its end.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Socket {
    /// Workload of the process that used it last.
    pub workload: u64,
    /// Start of that process, `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
    /// When the first bytes of the request under way were received, `CLOCK_BOOTTIME` nanoseconds.
    pub first_received_ns: u64,
    /// The same of its last bytes so far.
    pub last_received_ns: u64,
    /// When bytes were last sent, `CLOCK_BOOTTIME` nanoseconds.
    pub last_sent_ns: u64,
    /// That process.
    pub pid: u32,
    /// One of [`SOCKET_IDLE`], [`SOCKET_RECEIVING`], [`SOCKET_ANSWERING`]; [`SOCKET_CLIENT`] for
    /// ever on a client's socket.
    pub phase: u32,
}

/// [`Socket::phase`]: a server's socket without a request.
pub const SOCKET_IDLE: u32 = 0;
/// [`Socket::phase`]: a request came, nothing was sent since.
pub const SOCKET_RECEIVING: u32 = 1;
/// [`Socket::phase`]: the answer has begun.
pub const SOCKET_ANSWERING: u32 = 2;
/// [`Socket::phase`]: not a server's socket.
pub const SOCKET_CLIENT: u32 = 3;

/// A `tcp_sendmsg` or `tcp_recvmsg` under way, keyed by `pid << 32 | tid`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NetCall {
    /// Address of the socket.
    pub socket: u64,
    /// `MSG_*` flags.
    pub flags: u64,
}
