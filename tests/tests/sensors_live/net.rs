//! TCP: bytes and calls are counted exactly, whatever the kernel is asked with.
//!
//! The peer is the test itself, which nobody watches. Each way of attaching that this kernel
//! permits is tried.

use crate::support::*;
use nix::{
    libc,
    sys::socket::{MsgFlags, recv, send},
    unistd::{pipe, read, write},
};
use palisade::sensors::{SensorOptions, Sensors, Way};
use palisade_abi::{Kind, SampleInference, SampleNet, kind};
use std::{
    io::{IoSlice, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{fd::AsRawFd, unix::net::UnixStream},
    thread,
    time::Duration,
};

const ROUNDS: usize = 50;
const REQUEST: usize = 1000;
const ANSWER: usize = 3000;

/// Running sensors whose sends are seen at a place that begins like this; `None`, after a word on
/// standard error, where this kernel has none.
fn watch(object: &[u8], options: SensorOptions, place: &str, test: &str) -> Option<Watch> {
    let sensors = Sensors::load(object, options).unwrap_or_else(|error| panic!("{error}"));
    let report = sensors.report();
    let send = report.hooks.iter().find(|hook| hook.name == "TCP send");
    let send = send.expect("a hook for sends");
    if !send
        .attached
        .as_ref()
        .is_some_and(|it| it.starts_with(place))
    {
        // A stock kernel has all of them, but that the tracepoint came with Linux 6.3.
        let lacks = place.contains("sock_send_length") && !has_send_tracepoint();
        assert!(
            std::env::var_os("PALISADE_VM").is_none() || lacks,
            "{send:?}"
        );
        eprintln!(
            "SKIPPED {test} by {place}: {:?}, {:?}",
            send.attached, send.failed
        );
        return None;
    }
    assert_eq!(report.missing().count(), 0, "{report:?}");
    Some(Watch::of(sensors))
}

/// Whether this kernel has `sock:sock_send_length`, by the type that every tracepoint has.
fn has_send_tracepoint() -> bool {
    const TYPE: &[u8] = b"\0btf_trace_sock_send_length\0";
    let types = std::fs::read("/sys/kernel/btf/vmlinux").expect("BTF");
    types.windows(TYPE.len()).any(|bytes| bytes == TYPE)
}

/// A peer that answers each request and reads until the end; then it ends itself.
fn answering(listener: TcpListener) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let (mut peer, _) = listener.accept().expect("a connection");
        let mut request = [0; 2 * REQUEST];
        while peer.read_exact(&mut request).is_ok() {
            peer.write_all(&[7; ANSWER]).expect("answered");
        }
    })
}

/// Two sends (one of them in two parts) and two receives a round, with a peek, and calls that
/// move nothing.
fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    let fd = stream.as_raw_fd();
    let parts = [0; REQUEST / 2];
    let mut answer = [0; ANSWER / 2];
    for _ in 0..ROUNDS {
        stream.write_all(&[1; REQUEST])?;
        let sent = stream.write_vectored(&[IoSlice::new(&parts), IoSlice::new(&parts)])?;
        let _ = recv(fd, &mut answer, MsgFlags::MSG_PEEK)?;
        let first = recv(fd, &mut answer, MsgFlags::MSG_WAITALL)?;
        let second = recv(fd, &mut answer, MsgFlags::MSG_WAITALL)?;
        // Nothing is there any more, and nothing is asked for.
        let none = recv(fd, &mut answer, MsgFlags::MSG_DONTWAIT);
        let empty = send(fd, &[], MsgFlags::empty())?;
        if (sent, first, second, empty) != (REQUEST, ANSWER / 2, ANSWER / 2, 0) || none.is_ok() {
            return Err(std::io::ErrorKind::Other.into());
        }
    }
    // The end of the stream is no receive either.
    stream.shutdown(std::net::Shutdown::Write)?;
    let end = stream.read(&mut answer)?;
    (end == 0)
        .then_some(())
        .ok_or(std::io::ErrorKind::Other.into())
}

/// Traffic that is not TCP.
fn other_traffic() -> std::io::Result<()> {
    let (mut one, mut two) = UnixStream::pair()?;
    one.write_all(&[0; 100])?;
    two.read_exact(&mut [0; 100])?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.send_to(&[0; 100], socket.local_addr()?)?;
    socket.recv(&mut [0; 100]).map(|_| ())
}

fn counted(place: &str, avoid: &[Way]) {
    let name = "tcp_bytes_and_calls_are_counted_exactly";
    let Some(object) = object(name) else { return };
    let inside = Cgroup::new();
    let options = SensorOptions {
        avoid: avoid.to_vec(),
        ..options(&[&inside], &[Kind::SampleNet])
    };
    let listeners = ["127.0.0.1:0", "[::1]:0"].map(TcpListener::bind);
    if let [_, Err(error)] = &listeners {
        eprintln!("SKIPPED {name} over IPv6: {error}");
    }
    let listeners: Vec<TcpListener> = listeners.into_iter().flatten().collect();
    let to: Vec<SocketAddr> = listeners.iter().flat_map(TcpListener::local_addr).collect();
    let total = (listeners.len() * ROUNDS) as u64;
    let child = Child::new(move || {
        let talk = |to| exchange(&mut TcpStream::connect(to)?);
        let done = to.into_iter().try_for_each(talk);
        i32::from(done.and_then(|()| other_traffic()).is_err())
    });
    let (pid, workload) = (child.pid, inside.id());
    inside.take(child.pid);
    let Some(watch) = watch(object, options, place, name) else {
        return;
    };
    let peers: Vec<_> = listeners.into_iter().map(answering).collect();
    assert_eq!(child.run(), 0);
    for peer in peers {
        peer.join().expect("the peer");
    }
    watch.settle();
    tell_costs(&watch.handle);
    let seen = watch.stop();
    seen.assert_none_lost();
    seen.assert_from(pid, workload);
    let samples: Vec<SampleNet> = seen.bodies(kind::SAMPLE_NET);
    let sum = |count: fn(&SampleNet) -> u64| samples.iter().map(count).sum::<u64>();
    assert_eq!(sum(|it| it.sends.into()), 2 * total, "{place}");
    assert_eq!(sum(|it| it.receives.into()), 2 * total, "{place}");
    assert_eq!(sum(|it| it.sent_bytes), 2 * REQUEST as u64 * total);
    assert_eq!(sum(|it| it.received_bytes), ANSWER as u64 * total);
}

#[test]
fn tcp_bytes_and_calls_are_counted_exactly() {
    let avoid = [Way::Btf, Way::Raw, Way::Fexit];
    counted("", &[]);
    counted("raw_tp:sock_send_length", &avoid[..1]);
    counted("fexit:tcp_sendmsg", &avoid[..2]);
    counted("kprobe:tcp_sendmsg", &avoid);
}

/// Makes the socket drop what it is sent, or no more.
fn drop_all(stream: &TcpStream, drop: bool) {
    // One instruction: accept 0 bytes.
    let mut all = libc::sock_filter {
        code: libc::BPF_RET as u16,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &raw mut all,
    };
    let option = if drop {
        libc::SO_ATTACH_FILTER
    } else {
        libc::SO_DETACH_FILTER
    };
    let length = size_of_val(&program) as libc::socklen_t;
    // SAFETY: the kernel copies the program, which lives until then.
    let result = unsafe {
        let value = (&raw const program).cast();
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, option, value, length)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Segments sent again, and those not acknowledged yet, as the kernel tells the socket's owner.
fn sent_again(stream: &TcpStream) -> (u32, u32) {
    // SAFETY: integers only; all zero is a valid value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` is as large as told.
    unsafe {
        let value = (&raw mut info).cast();
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_TCP,
            libc::TCP_INFO,
            value,
            &raw mut length,
        );
    }
    (info.tcpi_total_retrans, info.tcpi_unacked)
}

/// A child whose message is dropped until it was sent again twice. Its exit code is how often
/// that happened in all.
struct Unlucky {
    child: Child,
    listener: TcpListener,
    dropping: std::os::fd::OwnedFd,
    again: std::os::fd::OwnedFd,
}

impl Unlucky {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let to = listener.local_addr().expect("address");
        let (wait, dropping) = pipe().expect("pipe");
        let (again, tell) = pipe().expect("pipe");
        let child = Child::new(move || {
            let sent = || -> std::io::Result<u32> {
                let mut stream = TcpStream::connect(to)?;
                read(&wait, &mut [0])?;
                stream.write_all(&[5; REQUEST])?;
                while sent_again(&stream).0 < 2 {
                    thread::sleep(Duration::from_millis(5));
                }
                write(&tell, &[1])?;
                while sent_again(&stream).1 > 0 {
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(sent_again(&stream).0)
            };
            sent().map_or(255, |count| count as i32)
        });
        Self {
            child,
            listener,
            dropping,
            again,
        }
    }

    /// Lets it run to its end; how often the kernel told it that a segment was sent again.
    fn run(self) -> u64 {
        self.child.start();
        let (mut peer, _) = self.listener.accept().expect("a connection");
        drop_all(&peer, true);
        assert_eq!(write(&self.dropping, &[1]), Ok(1));
        assert_eq!(read(&self.again, &mut [0]), Ok(1));
        drop_all(&peer, false);
        peer.read_exact(&mut [0; REQUEST]).expect("arrived at last");
        self.child.wait_done();
        self.child.finish() as u64
    }
}

#[test]
fn segments_sent_again_are_counted_for_the_socket_s_owner() {
    const CONNECTIONS: usize = 40;
    let Some(object) = object("segments_sent_again_are_counted_for_the_socket_s_owner") else {
        return;
    };
    let (inside, outside) = (Cgroup::new(), Cgroup::new());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let to = listener.local_addr().expect("address");
    // Its sockets' addresses are free for the others when it is done.
    let earlier =
        Child::new(move || i32::from((0..CONNECTIONS).any(|_| TcpStream::connect(to).is_err())));
    let (unwatched, watched) = (Unlucky::new(), Unlucky::new());
    inside.take(earlier.pid);
    outside.take(unwatched.child.pid);
    inside.take(watched.child.pid);
    let pid = watched.child.pid;
    let watch = Watch::new(object, options(&[&inside], &[Kind::SampleInference]));
    earlier.start();
    for _ in 0..CONNECTIONS {
        listener.accept().expect("a connection");
    }
    earlier.wait_done();
    let others = unwatched.run();
    let own = watched.run();
    assert_eq!(earlier.finish(), 0);
    let seen = watch.stop();
    seen.assert_none_lost();
    assert!((2..255).contains(&own) && (2..255).contains(&others));
    let samples = seen.of(kind::SAMPLE_INFERENCE);
    let counted: Vec<(u32, SampleInference)> = samples
        .filter_map(|record| Some((record.header.pid, record.get()?)))
        .collect();
    assert!(
        counted.iter().all(|(by, _)| *by == pid.as_raw() as u32),
        "{counted:?}"
    );
    let again: u64 = counted
        .iter()
        .map(|(_, sample)| u64::from(sample.retransmits))
        .sum();
    assert_eq!(again, own);
}
