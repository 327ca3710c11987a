//! The loads of the benchmarks. Each says `ready`; for each line `go [SECONDS]` it works, then says what it made as
//! JSON; it ends when standard input ends, or with its parent.
//!
//! - `load calls PER_SECOND SECONDS [CPU]`: driver calls on /dev/ptmx; 0 a second: as many as possible, timed.
//! - `load switches PAIRS SECONDS [CPU]`: pairs of threads that hand a byte to and fro over pipes, timed.
//! - `load connections PAIRS SECONDS`: the same over TCP on loopback.
//! - `load requests BYTES SECONDS PORT@CPU…`: HTTP requests on loopback, two connections a port, their threads on
//!   that CPU, timed.
//! - `load churn PER_SECOND SECONDS`: processes that execute /bin/true.
//! - `load burn PERMILLE SECONDS CPU`: uses that part of the CPU's time, in portions of a hundredth of a second.

use anyhow::{Context, Result, bail};
use palisade_tests::bench::histogram::Histogram;
use palisade_tests::bench::loads::Made;
use palisade_tests::bench::yardstick::{InYardsticks, Yardstick};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Connections to each server: one request is served while the next one waits.
const CONNECTIONS: usize = 2;
/// Threads that start processes: one start waits for the kernel most of its time.
const STARTERS: u64 = 4;
/// Work that is due is done in portions of this length.
const PORTION: Duration = Duration::from_millis(1);
/// CPU time that is to be used is used so often.
const BURN_PORTION: Duration = Duration::from_millis(10);

fn main() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["calls", rate, seconds] => calls(rate.parse()?, length(seconds)?),
        ["calls", rate, seconds, cpu] => {
            pin(cpu.parse()?)?;
            calls(rate.parse()?, length(seconds)?)
        }
        ["switches", pairs, seconds] => switches(pairs.parse()?, length(seconds)?),
        ["switches", pairs, seconds, cpu] => {
            pin(cpu.parse()?)?;
            switches(pairs.parse()?, length(seconds)?)
        }
        ["connections", pairs, seconds] => connections(pairs.parse()?, length(seconds)?),
        ["requests", bytes, seconds, ref ports @ ..] if !ports.is_empty() => {
            requests(bytes.parse()?, length(seconds)?, ports)
        }
        ["churn", rate, seconds] => churn(rate.parse()?, length(seconds)?),
        ["burn", permille, seconds, cpu] => {
            pin(cpu.parse()?)?;
            burn(permille.parse()?, length(seconds)?)
        }
        _ => {
            bail!(
                "usage: load calls|switches|connections|requests|churn|burn NUMBER SECONDS [CPU | PORT@CPU…]"
            )
        }
    }
}

fn length(seconds: &str) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(seconds.parse()?)?)
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// What was done in one go.
#[derive(Default)]
struct Work {
    made: u64,
    times: Histogram,
    /// What a request cost in yardsticks, where a server tells it.
    yardsticks: InYardsticks,
}

impl From<(u64, Option<Histogram>)> for Work {
    fn from((made, times): (u64, Option<Histogram>)) -> Self {
        Self {
            made,
            times: times.unwrap_or_default(),
            yardsticks: InYardsticks::default(),
        }
    }
}

/// Between `ready` and the end: runs `work` whenever told, and says what it made.
fn serve<W: Into<Work>>(
    length: Duration,
    mut work: impl FnMut(Duration) -> Result<W>,
) -> Result<()> {
    println!("ready");
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line)? > 0 {
        let length = match line.trim().strip_prefix("go ") {
            Some(seconds) => self::length(seconds)?,
            None => length,
        };
        let start = Instant::now();
        let done: Work = work(length)?.into();
        let made = Made {
            made: done.made,
            seconds: start.elapsed().as_secs_f64(),
            p50_ns: done.times.quantile(0.5),
            p99_ns: done.times.quantile(0.99),
            yardsticks: done.yardsticks,
        };
        println!("{}", serde_json::to_string(&made)?);
        line.clear();
    }
    Ok(())
}

/// Calls `one` so often that `per_second` is kept for that long; what was late is made up for.
fn paced(per_second: u64, length: Duration, mut one: impl FnMut() -> Result<()>) -> Result<u64> {
    let (start, mut made) = (Instant::now(), 0);
    loop {
        let now = start.elapsed();
        let due = (per_second as f64 * now.min(length).as_secs_f64()) as u64;
        while made < due {
            one()?;
            made += 1;
        }
        if now >= length {
            return Ok(made);
        }
        thread::sleep(PORTION);
    }
}

fn calls(per_second: u64, length: Duration) -> Result<()> {
    let device: OwnedFd = rustix::fs::open(
        "/dev/ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context("/dev/ptmx")?;
    let call = || -> Result<()> { Ok(rustix::termios::tcgetwinsize(&device).map(drop)?) };
    serve(length, |length| {
        if per_second > 0 {
            return Ok((paced(per_second, length, call)?, None));
        }
        let mut times = Histogram::default();
        let start = Instant::now();
        let mut before = start;
        while before - start < length {
            call()?;
            let now = Instant::now();
            times.add((now - before).as_nanos() as u64);
            before = now;
        }
        Ok((times.total(), Some(times)))
    })
}

fn switches(pairs: usize, length: Duration) -> Result<()> {
    to_and_fro(pairs, length, || {
        let ((there_read, there), (back_read, back)) = (std::io::pipe()?, std::io::pipe()?);
        Ok([(back_read, there), (there_read, back)])
    })
}

fn connections(pairs: usize, length: Duration) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    to_and_fro(pairs, length, || {
        let ends = [
            TcpStream::connect(listener.local_addr()?)?,
            listener.accept()?.0,
        ];
        let [near, far] = ends.map(|end| -> Result<_> {
            end.set_nodelay(true)?;
            Ok((end.try_clone()?, end))
        });
        Ok([near?, far?])
    })
}

/// Pairs of threads that hand a byte to and fro; `pair` makes the two ends, each to read from and to write to.
fn to_and_fro<R: Read + Send, W: Write + Send>(
    pairs: usize,
    length: Duration,
    pair: impl Fn() -> Result<[(R, W); 2]>,
) -> Result<()> {
    serve(length, |length| {
        let end = AtomicBool::new(false);
        let mut times = Histogram::default();
        thread::scope(|scope| {
            let mut askers = Vec::new();
            for _ in 0..pairs {
                let [(back_read, there), (there_read, back)] = pair()?;
                // Ends when the asker drops its end.
                scope.spawn(move || echo(there_read, back));
                let end = &end;
                askers.push(scope.spawn(move || ask(there, back_read, end)));
            }
            thread::sleep(length);
            end.store(true, Ordering::Relaxed);
            gather(askers, &mut times)
        })?;
        Ok((times.total(), Some(times)))
    })
}

/// Adds up what threads measured.
fn gather(
    threads: Vec<thread::ScopedJoinHandle<'_, Result<Histogram>>>,
    times: &mut Histogram,
) -> Result<()> {
    for thread in threads {
        times.merge(&joined(thread)?);
    }
    Ok(())
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(found) => found,
        Err(_) => bail!("a thread failed"),
    }
}

fn echo(mut from: impl Read, mut to: impl Write) {
    let mut byte = [0];
    while from.read_exact(&mut byte).is_ok() && to.write_all(&byte).is_ok() {}
}

fn ask(mut to: impl Write, mut from: impl Read, end: &AtomicBool) -> Result<Histogram> {
    let (mut times, mut byte) = (Histogram::default(), [0]);
    while !end.load(Ordering::Relaxed) {
        let start = Instant::now();
        to.write_all(&byte)?;
        from.read_exact(&mut byte)?;
        times.add(start.elapsed().as_nanos() as u64);
    }
    Ok(times)
}

fn requests(bytes: usize, length: Duration, ports: &[&str]) -> Result<()> {
    let mut connections = Vec::new();
    for port in ports {
        let (port, cpu) = port.split_once('@').context("PORT@CPU")?;
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(("127.0.0.1", port.parse()?))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            connections.push((cpu.parse()?, stream.try_clone()?, BufReader::new(stream)));
        }
    }
    let mut request =
        format!("POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {bytes}\r\n\r\n")
            .into_bytes();
    request.extend((0..bytes).map(|at| at as u8));
    serve(length, |length| {
        let until = Instant::now() + length;
        let (mut times, mut told) = (Histogram::default(), BTreeMap::<usize, Vec<_>>::new());
        thread::scope(|scope| {
            let request = &request;
            let askers = connections.iter_mut().map(|(cpu, stream, answers)| {
                let cpu = *cpu;
                let asker = scope.spawn(move || {
                    pin(cpu)?;
                    client(stream, answers, request, until)
                });
                (cpu, asker)
            });
            let askers: Vec<_> = askers.collect();
            for (cpu, asker) in askers {
                let (found, yardsticks) = joined(asker)?;
                times.merge(&found);
                told.entry(cpu).or_default().extend(yardsticks);
            }
            anyhow::Ok(())
        })?;
        let servers = told.values().filter(|told| !told.is_empty());
        let servers = servers.map(|told| InYardsticks::of(told));
        Ok(Work {
            made: times.total(),
            times,
            yardsticks: InYardsticks::of_all(&servers.collect::<Vec<_>>()),
        })
    })
}

/// One connection that always has one request under way.
fn client(
    stream: &mut TcpStream,
    answers: &mut BufReader<TcpStream>,
    request: &[u8],
    until: Instant,
) -> Result<(Histogram, Vec<Yardstick>)> {
    let (mut times, mut yardsticks) = (Histogram::default(), Vec::new());
    let (mut line, mut body) = (String::new(), Vec::new());
    while Instant::now() < until {
        let start = Instant::now();
        stream.write_all(request)?;
        let mut length = 0;
        loop {
            line.clear();
            if answers.read_line(&mut line)? == 0 {
                bail!("the server closed the connection");
            }
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse()?;
            }
            if let Some(value) = line.strip_prefix("Yardsticks: ") {
                yardsticks.push(value.parse()?);
            }
            if line == "\r\n" {
                break;
            }
        }
        body.resize(length, 0);
        answers.read_exact(&mut body)?;
        times.add(start.elapsed().as_nanos() as u64);
    }
    Ok((times, yardsticks))
}

fn churn(per_second: u64, length: Duration) -> Result<()> {
    serve(length, |length| {
        let starters: Vec<_> = (0..STARTERS)
            .map(|_| {
                thread::spawn(move || {
                    paced(per_second / STARTERS, length, || {
                        let status = Command::new("/bin/true").status()?;
                        if status.success() {
                            Ok(())
                        } else {
                            bail!("/bin/true: {status}")
                        }
                    })
                })
            })
            .collect();
        let mut made = 0;
        for starter in starters {
            match starter.join() {
                Ok(count) => made += count?,
                Err(_) => bail!("a thread failed"),
            }
        }
        Ok((made, None))
    })
}

/// The thread's own clock decides when a portion is done, so that the time used is exact also where others want
/// the CPU.
fn burn(permille: u32, length: Duration) -> Result<()> {
    serve(length, |length| {
        let (start, before) = (Instant::now(), cpu_time());
        while start.elapsed() < length {
            let due = start.elapsed() * permille / 1000;
            while cpu_time().saturating_sub(before) < due {
                std::hint::spin_loop();
            }
            thread::sleep(BURN_PORTION);
        }
        Ok((cpu_time().saturating_sub(before).as_micros() as u64, None))
    })
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
