//! `./x bench`: figures as ratios within one run, on whatever machine this is.
//!
//! Nothing here is asserted: a benchmark reports, with the reason for a miss of its aim.

use event_rate::EventRate;
use palisade::batch::Batch;
use palisade::policy::{
    Compiled, Engine, EngineOptions, EngineShared, Events, Instance, Limits, NoLookup,
    PolicySource, Setting,
};
use palisade_abi::{GpuCall, Header, Record, kind};
use palisade_core::{
    Core, CoreConfig, Grant, Input, Mode, PolicyOutput, Power, ProtectList, TargetFacts,
};
use palisade_policy_sdk::testing::Harness;
use palisade_tests::{Agent, TestCgroup, binaries, cannot_run_live, policy, soak};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Records given to each side at each batch size.
const RECORDS: usize = 2_000_000;
/// Processes that the records come from.
const PROCESSES: u32 = 64;
/// Interleaved rounds; the median is reported.
const ROUNDS: usize = 5;
/// Largest limit of the policy: it never speaks, so that only its counting is measured.
const NEVER: i64 = 1_000_000_000;

/// Batches that the pipeline's producer is ahead, at most; half of the queue's bound.
const QUEUED: u64 = 512;

fn main() {
    println!(
        "machine: {} CPUs, kernel {}\n",
        std::thread::available_parallelism().map_or(0, usize::from),
        palisade::sensors::kernel_release()
    );
    wasm_against_native();
    pipeline();
    reaction();
}

fn records(count: usize) -> Vec<Record> {
    (0..count)
        .map(|n| {
            let pid = (n as u32).wrapping_mul(2_654_435_761) % PROCESSES + 1000;
            let header = Header {
                time_ns: n as u64,
                workload: 1,
                start_ns: u64::from(pid) * 1000,
                pid,
                tid: pid,
                kind: kind::GPU_EXIT,
                flags: 0,
                cpu: 0,
            };
            Record::new(
                header,
                GpuCall {
                    latency_ns: 1000,
                    hold_ns: 500,
                    device: 195 << 20,
                    command: 0x2a,
                },
            )
        })
        .collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn wasm_against_native() {
    println!(
        "policy evaluation, a counter per process ({PROCESSES} processes), WASM against the same code native"
    );
    println!(
        "{:>8} {:>16} {:>16} {:>10} {:>24}",
        "batch", "WASM ns/record", "native ns/record", "ratio", "WASM, no table, ns/record"
    );
    let shared = EngineShared::new(Arc::new(NoLookup)).expect("engine");
    let limits = Limits::default();
    let instance = |name: &str, setting: &str| {
        let compiled = Compiled::load(&shared, &policy(name), limits.file_bytes)
            .expect("a policy: run ./x build");
        let settings = [(setting.to_owned(), Setting::Integer(NEVER))];
        Instance::new(&shared, "ratios", &compiled, &settings, &limits).expect("instance")
    };
    for size in [64, 256, 512, 1024] {
        let batch = records(size);
        let mut wasm = instance("event-rate", "max-per-second");
        // Looks at each record and keeps one number: what a call and its copy cost.
        let mut plain = instance("guests/counter", "report_every");
        let mut native =
            Harness::<EventRate>::with(&[("max-per-second", NEVER.into())]).expect("native policy");
        let (mut in_wasm, mut in_native, mut in_plain) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            in_wasm.push(per_record(&batch, |now| guest(&mut wasm, now, &batch)));
            in_native.push(per_record(&batch, |now| {
                std::hint::black_box(native.deliver_raw(now, &batch));
            }));
            in_plain.push(per_record(&batch, |now| guest(&mut plain, now, &batch)));
        }
        let (wasm, native, plain) = (median(in_wasm), median(in_native), median(in_plain));
        println!(
            "{size:>8} {wasm:>16.2} {native:>16.2} {:>10.2} {plain:>24.2}",
            wasm / native
        );
    }
    println!("aim: ratio ≤ 2 at 512\n");
}

/// A batch over the limit of one call is split, as the agent does.
fn guest(instance: &mut Instance, now: u64, batch: &[Record]) {
    for part in batch.chunks(palisade::policy::MAX_RECORDS_PER_CALL) {
        instance.on_batch(now, part).expect("no strike");
    }
}

/// Nanoseconds a record, over as many calls as make [`RECORDS`].
fn per_record(batch: &[Record], mut call: impl FnMut(u64)) -> f64 {
    let calls = RECORDS / batch.len();
    let start = Instant::now();
    for now in 0..calls as u64 {
        call(now);
    }
    start.elapsed().as_nanos() as f64 / (calls * batch.len()) as f64
}

fn pipeline() {
    println!("records through publisher thread → policy thread (WASM) → core");
    let (events, inbox) = mpsc::channel();
    let engine = Engine::new(
        EngineOptions::default(),
        Arc::new(NoLookup),
        Events::new(move |event| {
            let _ = events.send(event);
        }),
    )
    .expect("engine");
    let settings =
        toml::Table::from_iter([("max-per-second".to_owned(), toml::Value::Integer(NEVER))]);
    let running = engine
        .load(PolicySource {
            name: "event-rate".into(),
            path: policy("event-rate"),
            settings,
            max_power: Power::Alert,
            limits: Limits::default(),
        })
        .expect("policy");
    let publisher = engine.publisher();
    let batch: Arc<[Record]> = records(512).into();
    let total = if soak() { 100_000_000 } else { 20_000_000 } / 512;
    let start = Instant::now();
    let progress = || engine.status().first().map_or(0, |status| status.batches);
    let mut done = 0;
    for seq in 1..=total as u64 {
        // Stay below the queue's bound: this measures speed, not loss.
        while seq - done > QUEUED {
            std::thread::yield_now();
            done = progress();
        }
        let batch = Batch {
            seq,
            now_ns: seq,
            records: Arc::clone(&batch),
            window_end: false,
        };
        publisher.publish(&batch, |_, _| {});
    }
    while progress() < total as u64 {
        std::thread::sleep(Duration::from_micros(200));
    }
    let elapsed = start.elapsed();
    let status = engine.status().into_iter().next().expect("one policy");
    let count = status.records;
    println!(
        "  {:.2} million records/s by the clock; {:.2} million/s of the policy's own time; lost {}",
        count as f64 / elapsed.as_secs_f64() / 1e6,
        count as f64 / (status.call_ns_total as f64 / 1e9) / 1e6,
        status.lost
    );
    println!("  aim: ≥ 5 million records a second through one policy on one core");
    drop(inbox);

    let grant = Grant {
        mode: Mode::Observe,
        max_power: Power::Kill,
        cooldown_ms: 0,
        actions_per_minute: u32::MAX,
        max_lease_ms: 60_000,
        min_quota_permille: 1,
    };
    let config = CoreConfig {
        host_actions_per_minute: u32::MAX,
        loss_window_ms: 0,
        max_leases: 64,
        disarmed: false,
    };
    let mut core = Core::new(config, ProtectList::default(), 1);
    core.step(0, Input::Policies(vec![(running.clone(), grant)]));
    let requests = 100_000_u64;
    let start = Instant::now();
    for n in 1..=requests {
        let request = palisade_core::Request {
            target: palisade_core::Target::Workload(palisade_core::WorkloadId(n % 50 + 2)),
            action: palisade_core::Action::CpuQuota(100),
            lease_ms: 1000,
            severity: palisade_core::Severity::Warning,
            reason: "benchmark".into(),
            evidence: Vec::new(),
        };
        let facts = TargetFacts {
            alive: true,
            watched: true,
            workload: Some(palisade_core::WorkloadId(n % 50 + 2)),
            cgroup: Some("/a/b".into()),
            ..TargetFacts::default()
        };
        std::hint::black_box(core.step(
            n * 1_000_000,
            Input::Requests(PolicyOutput {
                policy: running.clone(),
                batch: n,
                requests: vec![(request, facts)],
            }),
        ));
    }
    println!(
        "  core: {:.1} µs a request\n",
        start.elapsed().as_secs_f64() * 1e6 / requests as f64
    );
    engine.shutdown();
}

fn reaction() {
    println!("reaction: from the driver call to SIGTERM's arrival, measured by the target");
    if let Some(why) = cannot_run_live() {
        println!("  SKIPPED reaction: {why}");
        return;
    }
    let rounds = if soak() { 2000 } else { 200 };
    let cgroup = TestCgroup::new("reaction").expect("cgroup");
    let config = format!(
        "[watch]\ncgroups = [{:?}]\n[[devices]]\nname = \"ptmx\"\npath = \"/dev/ptmx\"\nslow = \"0ms\"\n[budget]\nactions-per-minute = 10000\n\
         [policies.react]\npath = {:?}\nmode = \"enforce\"\npower = \"signal\"\ncooldown = \"0s\"\nactions-per-minute = 10000\n",
        cgroup.path(),
        policy("guests/react"),
    );
    let agent = Agent::start(&config).expect("agent");
    let mut times = Vec::new();
    for _ in 0..rounds {
        let mut command = Command::new(binaries().join("target"));
        cgroup.enter(command.arg("reaction").stdout(Stdio::piped()));
        let output = command.output().expect("target");
        if let Ok(ns) = String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse::<u64>()
        {
            times.push(ns as f64 / 1e6);
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |part: f64| {
        times
            .get(((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1)))
            .copied()
            .unwrap_or(f64::NAN)
    };
    println!(
        "  {} of {rounds} rounds: median {:.2} ms, 99th percentile {:.2} ms, longest {:.2} ms (SCHED_OTHER; the intent is on disk first: includes one fdatasync)",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0),
    );
    println!("  aim: ≤ 5 ms at the 99th percentile");
    drop(agent);
}
