//! What the live tests aim at: mostly a process that makes driver calls on a watched device (/dev/ptmx).
//!
//! - `target burn MS`: burns CPU; makes a driver call every 50 ms for the first MS milliseconds; ends with its parent.
//! - `target threads any|leader`: starts eight threads and ends with code 5, at any thread's hand or at the first one's.
//! - `target serve MS`: prints a port of loopback and answers each message that comes there, after MS milliseconds.
//! - `target reaction`: blocks SIGTERM, makes one driver call, waits for SIGTERM, and prints the nanoseconds in between.

use rustix::fs::{Mode, OFlags};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["burn", ms] => ms
            .parse()
            .map_err(|error| format!("{ms}: {error}"))
            .and_then(burn),
        ["threads", who] => threads(who == "any"),
        ["reaction"] => reaction(),
        ["serve", ms] => ms
            .parse()
            .map_err(|error| format!("{ms}: {error}"))
            .and_then(|ms| {
                serve(Duration::from_millis(ms)).map_err(|error| format!("serve: {error}"))
            }),
        _ => Err(
            "usage: target burn MS | target threads any|leader | target reaction | target serve MS"
                .to_owned(),
        ),
    };
    if let Err(error) = done {
        eprintln!("target: {error}");
        std::process::exit(1);
    }
}

fn device() -> Result<std::os::fd::OwnedFd, String> {
    rustix::fs::open(
        "/dev/ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| format!("/dev/ptmx: {error}"))
}

fn burn(call_for_ms: u64) -> Result<(), String> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| error.to_string())?;
    let device = device()?;
    let (start, mut next) = (Instant::now(), Duration::ZERO);
    loop {
        let now = start.elapsed();
        if now >= next && now < Duration::from_millis(call_for_ms) {
            rustix::termios::tcgetwinsize(&device).map_err(|error| error.to_string())?;
            next = now + Duration::from_millis(50);
        }
        std::hint::spin_loop();
    }
}

fn threads(any: bool) -> Result<(), String> {
    let threads: Vec<_> = (0..8)
        .map(|_| std::thread::spawn(|| std::thread::sleep(Duration::from_millis(2))))
        .collect();
    if any {
        std::thread::spawn(|| std::process::exit(5));
        std::thread::sleep(Duration::from_mins(1));
    }
    for thread in threads {
        thread.join().map_err(|_| "a thread failed".to_owned())?;
    }
    std::process::exit(5);
}

fn reaction() -> Result<(), String> {
    use nix::sys::signal::{SigSet, Signal};
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.thread_block().map_err(|error| error.to_string())?;
    let device = device()?;
    let start = Instant::now();
    rustix::termios::tcgetwinsize(&device).map_err(|error| error.to_string())?;
    set.wait().map_err(|error| error.to_string())?;
    println!("{}", start.elapsed().as_nanos());
    Ok(())
}

fn serve(delay: Duration) -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    println!("{}", listener.local_addr()?.port());
    for connection in listener.incoming() {
        let mut connection = connection?;
        std::thread::spawn(move || {
            let mut message = [0; 4096];
            // Ends with the client.
            while connection.read(&mut message).is_ok_and(|bytes| bytes > 0) {
                std::thread::sleep(delay);
                if connection.write_all(b"answer").is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}
