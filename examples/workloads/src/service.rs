//! A well-behaved service: each request takes some CPU time and one call on the device.
//!
//! Must stay small and even: what its latency shows is what its neighbours do. A request counts
//! from when it was due, not from when the service got round to it: a CPU that others keep from
//! us is latency too.

use crate::cpu::{End, burn};
use crate::stats::Window;
use crate::{device, place};
use anyhow::Result;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Args, Debug)]
pub(crate) struct ServiceArgs {
    /// The device, a terminal (/dev/pts/N)
    #[arg(long)]
    device: PathBuf,
    /// CPU time of a request, microseconds
    #[arg(long, default_value_t = 1000)]
    work_us: u64,
    /// Pause between two requests, microseconds
    #[arg(long, default_value_t = 2000)]
    pause_us: u64,
    /// Time between two lines of output, milliseconds
    #[arg(long, default_value_t = 500)]
    report_ms: u64,
}

/// Serves requests, one after the other, until the end.
pub(crate) fn run(args: &ServiceArgs, end: End) -> Result<()> {
    let device = device::open(&args.device)?;
    let begin = Instant::now();
    place::emit(&json!({ "event": "started", "pid": std::process::id() }))?;
    let (mut requests, mut calls) = (Window::default(), Window::default());
    let mut report = begin + Duration::from_millis(args.report_ms);
    let mut due = begin;
    while !end.reached() {
        burn(Duration::from_micros(args.work_us), end);
        let call = Instant::now();
        device::ask(&device)?;
        let done = Instant::now();
        calls.add(done - call);
        requests.add(done - due);
        if done >= report {
            let count = requests.len();
            let [p50, p99, max] = requests.take([50, 99, 100]);
            let [call_p99] = calls.take([99]);
            place::emit(&json!({
                "event": "latency",
                "t_ms": (done - begin).as_millis() as u64,
                "requests": count,
                "p50_us": p50,
                "p99_us": p99,
                "max_us": max,
                "device_p99_us": call_p99,
            }))?;
            report = done + Duration::from_millis(args.report_ms);
        }
        due = Instant::now() + Duration::from_micros(args.pause_us);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}
