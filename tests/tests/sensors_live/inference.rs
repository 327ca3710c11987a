//! Requests on server sockets: each is counted once, for the process that answers, and nobody
//! else has any.
//!
//! Times have only bounds that hold on a slow machine: a sleep takes at least its time, and what
//! the server took the client waited for.

use crate::support::*;
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
    unistd::Pid,
};
use palisade_abi::{Histogram, Kind, SampleCompleted, SampleInference, kind};
use std::{
    io::{Read, Result, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    thread::sleep,
    time::{Duration, Instant},
};

const REQUEST: usize = 64;
const ANSWER: usize = 512;
const KINDS: [Kind; 3] = [
    Kind::SampleInference,
    Kind::SampleCompleted,
    Kind::SampleFirstByte,
];

/// What was told of one process.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    requests: u64,
    first_byte_ns: u64,
    whole_ns: u64,
    completed: u64,
    completed_ns: u64,
    retransmits: u64,
    /// First bytes by bucket.
    buckets: Vec<(usize, u64)>,
}

impl Seen {
    fn told(&self, pid: Pid) -> Told {
        let mut told = Told::default();
        let mut counts = [0_u64; palisade_abi::HISTOGRAM_BUCKETS];
        for record in &self.records {
            if record.header.pid != pid.as_raw() as u32 {
                continue;
            }
            if let Some(sample) = record.get::<SampleCompleted>() {
                told.completed += sample.requests;
                told.completed_ns += sample.whole_ns;
            } else if let Some(sample) = record.get::<SampleInference>() {
                told.requests += u64::from(sample.requests);
                told.first_byte_ns += sample.first_byte_ns;
                told.whole_ns += sample.whole_ns;
                told.retransmits += u64::from(sample.retransmits);
            }
            if record.header.kind == kind::SAMPLE_FIRST_BYTE
                && let Some(part) = record.get::<Histogram>()
            {
                let first = usize::from(record.header.flags);
                for (bucket, count) in counts[first..].iter_mut().zip(part.counts) {
                    *bucket += u64::from(count);
                }
            }
        }
        let counts = counts.into_iter().enumerate();
        told.buckets = counts.filter(|(_, count)| *count != 0).collect();
        told
    }
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("address");
    (listener, address)
}

/// A child that serves so many connections, one after the other.
fn server(
    listener: TcpListener,
    connections: usize,
    serve: impl Fn(&mut TcpStream) -> Result<()>,
) -> Child {
    Child::new(move || {
        let each = || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            serve(&mut stream)
        };
        i32::from((0..connections).any(|_| each().is_err()))
    })
}

/// A server that works and is watched.
struct Watched {
    watch: Watch,
    server: Child,
    _cgroup: Cgroup,
}

impl Watched {
    fn start(object: &[u8], server: Child) -> Self {
        let cgroup = Cgroup::new();
        cgroup.take(server.pid);
        let watch = Watch::new(object, options(&[&cgroup], &KINDS));
        server.start();
        Self {
            watch,
            server,
            _cgroup: cgroup,
        }
    }

    /// What was told of it, once it has done its work.
    fn told(self) -> Told {
        let Self { watch, server, .. } = self;
        let pid = server.pid;
        server.wait_done();
        watch.settle();
        assert_eq!(server.finish(), 0);
        let seen = watch.stop();
        seen.assert_none_lost();
        seen.told(pid)
    }
}

/// Answers until the client closes.
fn answer_each(stream: &mut TcpStream) -> Result<()> {
    let mut request = [0; REQUEST];
    while stream.read_exact(&mut request).is_ok() {
        stream.write_all(&[1; ANSWER])?;
    }
    Ok(())
}

fn ask(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&[2; REQUEST])?;
    stream.read_exact(&mut [0; ANSWER])
}

#[test]
fn requests_are_counted_once_for_the_process_that_answers() {
    const KEPT: usize = 30;
    const FRESH: usize = 20;
    let Some(object) = object("requests_are_counted_once_for_the_process_that_answers") else {
        return;
    };
    let (inside, outside) = (Cgroup::new(), Cgroup::new());
    let start = |cgroup: &Cgroup| {
        let (listener, address) = listen();
        let server = server(listener, 1 + FRESH, answer_each);
        cgroup.take(server.pid);
        (server, address)
    };
    let (watched, address) = start(&inside);
    let (unwatched, other_address) = start(&outside);
    let client = Child::new(|| {
        let talk = |address| -> Result<()> {
            let mut kept = TcpStream::connect(address)?;
            for _ in 0..KEPT {
                ask(&mut kept)?;
            }
            drop(kept);
            (0..FRESH).try_for_each(|_| ask(&mut TcpStream::connect(address)?))
        };
        i32::from(talk(address).and_then(|()| talk(other_address)).is_err())
    });
    inside.take(client.pid);
    let (server_pid, client_pid) = (watched.pid, client.pid);
    let watch = Watch::new(object, options(&[&inside], &KINDS));
    watched.start();
    unwatched.start();
    let began = Instant::now();
    client.start();
    for child in [&client, &watched, &unwatched] {
        child.wait_done();
    }
    let took = began.elapsed().as_nanos() as u64;
    watch.settle();
    tell_costs(&watch.handle);
    for child in [client, watched, unwatched] {
        assert_eq!(child.finish(), 0);
    }
    let seen = watch.stop();
    seen.assert_none_lost();
    let told = seen.told(server_pid);
    let requests = (KEPT + FRESH) as u64;
    assert_eq!((told.requests, told.completed), (requests, requests));
    assert_eq!(told.completed_ns, told.whole_ns);
    assert_eq!(
        told.buckets.iter().map(|(_, count)| count).sum::<u64>(),
        requests
    );
    assert!(told.first_byte_ns > 0 && told.first_byte_ns <= told.whole_ns);
    assert!(told.whole_ns <= took, "{told:?} in {took} ns");
    assert_eq!(seen.told(client_pid).requests, 0);
    assert_eq!(seen.told(client_pid).buckets, []);
    let others = seen.records.iter().filter(|record| {
        let pid = record.header.pid as i32;
        pid != server_pid.as_raw() && pid != client_pid.as_raw()
    });
    assert_eq!(others.count(), 0);
}

#[test]
fn a_streamed_answer_is_one_request_and_lasts_to_its_last_part() {
    const PARTS: u32 = 10;
    const PAUSE: Duration = Duration::from_millis(5);
    let Some(object) = object("a_streamed_answer_is_one_request_and_lasts_to_its_last_part") else {
        return;
    };
    let (listener, address) = listen();
    // The second answer is ended by the connection's end, the first one by the second request.
    let server = server(listener, 1, |stream| {
        for _ in 0..2 {
            stream.read_exact(&mut [0; REQUEST])?;
            for _ in 0..PARTS {
                sleep(PAUSE);
                stream.write_all(&[3; 100])?;
            }
        }
        Ok(())
    });
    let server = Watched::start(object, server);
    let mut stream = TcpStream::connect(address).expect("connected");
    let began = Instant::now();
    for _ in 0..2 {
        // In two parts: the first byte is late by the last part, the whole one began at the first.
        stream.write_all(&[2; REQUEST / 2]).expect("sent");
        sleep(PAUSE);
        stream.write_all(&[2; REQUEST / 2]).expect("sent");
        stream
            .read_exact(&mut [0; 100 * PARTS as usize])
            .expect("answered");
    }
    let took = began.elapsed();
    let told = server.told();
    assert_eq!((told.requests, told.completed), (2, 2));
    assert_eq!(told.completed_ns, told.whole_ns);
    let (first, whole) = (2 * PAUSE.as_nanos() as u64, told.whole_ns);
    assert!(told.first_byte_ns >= first, "{told:?}");
    assert!(told.first_byte_ns < whole, "{told:?}");
    assert!(whole >= (2 * PARTS * PAUSE).as_nanos() as u64, "{told:?}");
    assert!(whole <= took.as_nanos() as u64, "{told:?} in {took:?}");
}

#[test]
fn a_pipelining_client_s_requests_count_as_the_server_reads_them() {
    const TIMES: usize = 8;
    let Some(object) = object("a_pipelining_client_s_requests_count_as_the_server_reads_them")
    else {
        return;
    };
    let (listener, address) = listen();
    // The first connection's requests are read one by one, the second one's all at once.
    let server = Child::new(move || {
        let serve = || -> Result<()> {
            answer_each(&mut listener.accept()?.0)?;
            let (mut stream, _) = listener.accept()?;
            stream.read_exact(&mut [0; TIMES * REQUEST])?;
            (0..TIMES).try_for_each(|_| stream.write_all(&[1; ANSWER]))
        };
        i32::from(serve().is_err())
    });
    let server = Watched::start(object, server);
    for _ in 0..2 {
        let mut stream = TcpStream::connect(address).expect("connected");
        stream.write_all(&[2; TIMES * REQUEST]).expect("sent");
        stream
            .read_exact(&mut [0; TIMES * ANSWER])
            .expect("answered");
    }
    assert_eq!(server.told().requests, TIMES as u64 + 1);
}

#[test]
fn a_greeting_is_no_answer_and_a_client_that_bound_its_port_no_server() {
    const TIMES: usize = 5;
    let Some(object) = object("a_greeting_is_no_answer_and_a_client_that_bound_its_port_no_server")
    else {
        return;
    };
    let (listener, address) = listen();
    let server = server(listener, 1, |stream| {
        stream.write_all(&[9; ANSWER])?;
        answer_each(stream)
    });
    let client = Child::new(move || {
        let talk = || -> Result<()> {
            let mut stream = connect_bound(address)?;
            stream.read_exact(&mut [0; ANSWER])?;
            (0..TIMES).try_for_each(|_| ask(&mut stream))
        };
        i32::from(talk().is_err())
    });
    let inside = Cgroup::new();
    inside.take(server.pid);
    inside.take(client.pid);
    let (server_pid, client_pid) = (server.pid, client.pid);
    let watch = Watch::new(object, options(&[&inside], &KINDS));
    server.start();
    client.start();
    client.wait_done();
    server.wait_done();
    watch.settle();
    assert_eq!((client.finish(), server.finish()), (0, 0));
    let seen = watch.stop();
    seen.assert_none_lost();
    assert_eq!(seen.told(server_pid).requests, TIMES as u64);
    let told = seen.told(client_pid);
    assert_eq!((told.requests, told.buckets), (0, Vec::new()));
}

/// Connects from a port that was bound before.
fn connect_bound(to: SocketAddr) -> Result<TcpStream> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    for (port, call) in [(0, libc::bind as Call), (to.port(), libc::connect)] {
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr {
                s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be(),
            },
            sin_zero: [0; 8],
        };
        // SAFETY: the descriptor is open, and the address is of the length that is told.
        if unsafe { call(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(TcpStream::from(socket))
}

type Call = unsafe extern "C" fn(i32, *const libc::sockaddr, libc::socklen_t) -> i32;

#[test]
fn a_slow_first_byte_is_found_in_its_bucket() {
    const TIMES: u32 = 5;
    const THINKS: Duration = Duration::from_millis(20);
    let Some(object) = object("a_slow_first_byte_is_found_in_its_bucket") else {
        return;
    };
    let (listener, address) = listen();
    let server = server(listener, 1, |stream| {
        for _ in 0..TIMES {
            stream.read_exact(&mut [0; REQUEST])?;
            sleep(THINKS);
            stream.write_all(&[1; ANSWER])?;
        }
        Ok(())
    });
    let server = Watched::start(object, server);
    let mut stream = TcpStream::connect(address).expect("connected");
    let waited: Vec<Duration> = (0..TIMES)
        .map(|_| {
            let began = Instant::now();
            ask(&mut stream).expect("answered");
            began.elapsed()
        })
        .collect();
    let told = server.told();
    // 2^14 to 2^15 µs; later only where the client, too, waited longer than that.
    let bucket = |time: Duration| 1 + time.as_micros().ilog2() as usize;
    let latest = waited.iter().max().copied().map_or(0, bucket);
    assert_eq!(bucket(THINKS), 15);
    assert!(
        told.buckets
            .iter()
            .all(|(bucket, _)| (15..=latest).contains(bucket)),
        "{told:?}, waited {waited:?}"
    );
    assert_eq!(
        told.buckets.iter().map(|(_, count)| count).sum::<u64>(),
        u64::from(TIMES)
    );
    let waited: Duration = waited.iter().sum();
    assert!(told.first_byte_ns >= (TIMES * THINKS).as_nanos() as u64);
    assert!(told.first_byte_ns <= waited.as_nanos() as u64);
    eprintln!("MEASURED first bytes after 20 ms: {told:?}; the client waited {waited:?}");
}
