//! The kernel's own tracing as a second witness: how often a tracepoint was passed, and when.
//!
//! Invariants: a buffer of the test's own, of one thread's events; it goes away on drop. A buffer that overran
//! fails the test.

use nix::unistd::Pid;
use std::{
    fs, io,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

const INSTANCES: &str = "/sys/kernel/tracing/instances";

/// A buffer of one thread's events.
pub struct Trace {
    dir: PathBuf,
    events: Vec<&'static str>,
}

impl Trace {
    /// `events`: `vmscan/mm_vmscan_direct_reclaim_begin`.
    pub fn new(thread: Pid, events: &[&'static str]) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("palisade-test-{}-{number}", std::process::id());
        let dir = PathBuf::from(INSTANCES).join(name);
        fs::create_dir(&dir)?;
        let this = Self {
            dir,
            events: events.to_vec(),
        };
        fs::write(this.dir.join("trace_clock"), "boot")?;
        for event in events {
            let event = this.dir.join("events").join(event);
            fs::write(event.join("filter"), format!("common_pid == {thread}"))?;
            fs::write(event.join("enable"), "1")?;
        }
        Ok(this)
    }

    /// When each of the events happened, nanoseconds (to a microsecond), by their order in [`Trace::new`].
    pub fn times(&self) -> Vec<Vec<u64>> {
        let text = fs::read_to_string(self.dir.join("trace")).expect("trace");
        let counts = text
            .lines()
            .find_map(|line| line.split_once("entries-in-buffer/entries-written: "))
            .and_then(|(_, counts)| counts.split_whitespace().next()?.split_once('/'))
            .expect("counts");
        assert_eq!(counts.0, counts.1, "the buffer overran");
        let times = |event: &&str| {
            let name = event.rsplit('/').next().unwrap_or_default();
            let mark = format!(": {name}: ");
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines
                .filter_map(|line| {
                    let (before, _) = line.split_once(&mark)?;
                    let (seconds, micros) = before.rsplit(' ').next()?.split_once('.')?;
                    let seconds: u64 = seconds.parse().ok()?;
                    Some(seconds * 1_000_000_000 + micros.parse::<u64>().ok()? * 1000)
                })
                .collect()
        };
        self.events.iter().map(times).collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        for event in &self.events {
            let _ = fs::write(self.dir.join("events").join(event).join("enable"), "0");
        }
        let _ = fs::remove_dir(&self.dir);
    }
}
