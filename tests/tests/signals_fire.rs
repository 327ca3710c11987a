//! Loads that a metric is there for: each is shown by `palisade top` within its stated time, and a quiet workload
//! beside it, which was seen as well, is not.
//!
//! Invariant: nothing is put under load but one CPU and cgroups of these tests' own; the CPUs' nodes are told to one
//! agent alone, in a mount namespace of its own.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, unshare};
use palisade_tests::{Agent, PATIENCE, TestCgroup, Ward, live_or_skip, value, within};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

/// A second whose numbers show it, that in which the load begins, and the answer; the rest is for a busy machine.
const STORM_SHOWN_WITHIN: Duration = Duration::from_secs(6);
/// As above; a client has five answers, the fewest that count, within three seconds.
const SLOW_SHOWN_WITHIN: Duration = Duration::from_secs(8);
/// As for the storm.
const MOVES_SHOWN_WITHIN: Duration = Duration::from_secs(6);
/// The leak reaches its limit after two seconds; then as above.
const VICTIM_SHOWN_WITHIN: Duration = Duration::from_secs(10);

/// An agent that watches these cgroups. The first look is over: all that the metrics need is attached.
fn watching(cgroups: &[&TestCgroup]) -> Agent {
    let paths: Vec<&str> = cgroups.iter().map(|cgroup| cgroup.path()).collect();
    let agent = Agent::start(&format!("[watch]\ncgroups = {paths:?}\n")).unwrap();
    agent.look().unwrap();
    agent
}

/// Whether a metric cannot be had on this kernel, after a word on standard error. In a guest of `./x vm`, where these
/// tests run by name only, all of them can.
fn lacks(agent: &Agent, test: &str, metric: &str) -> bool {
    let top = agent.look().unwrap();
    let absent = top["absent"].as_array().unwrap().iter();
    let mut because =
        absent.filter(|it| it["metrics"].as_array().unwrap().contains(&metric.into()));
    let Some(why) = because.next() else {
        return false;
    };
    assert!(std::env::var_os("PALISADE_VM").is_none(), "{why}");
    eprintln!("SKIPPED {test}: no {metric}: {why}");
    true
}

/// Looks until an answer shows a load, which it must within the stated time from when the load began; that answer.
fn shown(
    agent: &Agent,
    what: &str,
    (begun, stated): (Instant, Duration),
    shows: impl Fn(&Value) -> bool,
) -> Value {
    let top = loop {
        let top = agent.look().unwrap();
        if shows(&top) {
            break top;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} is not shown: {top}");
    };
    within(&format!("{what} was shown"), begun.elapsed(), stated);
    top
}

/// The CPUs that this process may use.
fn own_cpus() -> Vec<usize> {
    let set = sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    (0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu) == Ok(true))
        .collect()
}

#[test]
fn more_spinners_than_cpus_are_shown_as_preempted_and_kept_waiting() {
    const NAME: &str = "more_spinners_than_cpus_are_shown_as_preempted_and_kept_waiting";
    const EACH: usize = 6;
    live_or_skip!("more_spinners_than_cpus_are_shown_as_preempted_and_kept_waiting");
    let (storm, quiet) = (
        TestCgroup::new("storm").unwrap(),
        TestCgroup::new("sleepers").unwrap(),
    );
    let agent = watching(&[&storm, &quiet]);
    if lacks(&agent, NAME, "switches_involuntary") || lacks(&agent, NAME, "runq_p99") {
        return;
    }
    // All of them on one CPU: as many as that, whatever the machine, and no more of it than that.
    let cpu = own_cpus()[0].to_string();
    let sleeper = ["poller", "--every-ms", "25", "--device", "/dev/ptmx"];
    let _sleepers: Vec<_> = (0..EACH)
        .map(|_| {
            quiet
                .start(&[&sleeper[..], &["--cpu", &cpu]].concat())
                .unwrap()
        })
        .collect();
    let begun = Instant::now();
    let _spinners: Vec<_> = (0..EACH)
        .map(|_| storm.start(&["burn", "--cpu", &cpu]).unwrap())
        .collect();
    // Time slices are milliseconds long, and five others have theirs before it is one's turn again.
    let top = shown(&agent, "the storm", (begun, STORM_SHOWN_WITHIN), |top| {
        value(top, &storm, "switches_involuntary") > Some(40.0)
            && value(top, &storm, "runq_p99") > Some(0.004)
    });
    let preempted = value(&top, &storm, "switches_involuntary").unwrap();
    // They slept and woke up beside it.
    assert!(
        value(&top, &quiet, "switches_voluntary") > Some(20.0),
        "{top}"
    );
    assert!(
        value(&top, &quiet, "switches_involuntary") < Some(preempted / 10.0),
        "{top}"
    );
}

/// Limits the cgroup's memory; why it cannot be, if so.
fn limit_memory(cgroup: &TestCgroup, bytes: u64) -> Result<(), String> {
    let has = |name: &str| {
        let files = cgroup.dirs().into_iter().map(|dir| dir.join(name));
        files.into_iter().find(|file| file.exists())
    };
    let file = has("memory.max").or_else(|| has("memory.limit_in_bytes"));
    let file = file.ok_or("no memory controller for a cgroup at the root")?;
    // Else the excess would go to swap, where there is some.
    for (name, none) in [("memory.swap.max", "0"), ("memory.swappiness", "0")] {
        if let Some(swap) = has(name) {
            let _ = std::fs::write(swap, none);
        }
    }
    std::fs::write(&file, bytes.to_string()).map_err(|error| format!("{}: {error}", file.display()))
}

#[test]
fn a_slow_leak_into_its_limit_is_shown_as_a_victim() {
    const NAME: &str = "a_slow_leak_into_its_limit_is_shown_as_a_victim";
    const LIMIT: u64 = 48 << 20;
    live_or_skip!("a_slow_leak_into_its_limit_is_shown_as_a_victim");
    let (leaks, rests) = (
        TestCgroup::new("leaks").unwrap(),
        TestCgroup::new("rests").unwrap(),
    );
    for cgroup in [&leaks, &rests] {
        if let Err(why) = limit_memory(cgroup, LIMIT) {
            eprintln!("SKIPPED {NAME}: {why}");
            return;
        }
    }
    let agent = watching(&[&leaks, &rests]);
    if lacks(&agent, NAME, "oom_victims") {
        return;
    }
    // Under the same limit, as fast, but it stops at a third of it.
    let mut sated = rests
        .start(&["leak", "--mib-per-s", "24", "--at-most-mib", "16"])
        .unwrap();
    let begun = Instant::now();
    let mut victim = leaks
        .start(&["leak", "--mib-per-s", "24", "--at-most-mib", "96"])
        .unwrap();
    let top = shown(&agent, "the victim", (begun, VICTIM_SHOWN_WITHIN), |top| {
        value(top, &leaks, "oom_victims") >= Some(1.0)
    });
    assert_eq!(value(&top, &leaks, "oom_victims"), Some(1.0), "{top}");
    assert_eq!(victim.0.wait().unwrap().signal(), Some(9));
    assert_eq!(value(&top, &rests, "oom_victims"), Some(0.0), "{top}");
    assert!(value(&top, &rests, "page_faults") > Some(0.0), "{top}");
    assert!(sated.0.try_wait().unwrap().is_none(), "it is still there");
}

/// A streaming server in the cgroup, and its port.
fn streaming(cgroup: &TestCgroup, first_ms: &str) -> (Ward, u16) {
    let mut command = cgroup.workload(&["stream", "--first-ms", first_ms]);
    let mut server = Ward::start(command.stdout(Stdio::piped())).unwrap();
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let said: Value = serde_json::from_str(&line).unwrap();
    (server, said["port"].as_u64().unwrap() as u16)
}

/// Asks and reads the whole answer, over and over, until the server is gone.
fn ask(port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    loop {
        stream.write_all(b"question")?;
        stream.read_exact(&mut [0; 8 * b"token\n".len()])?;
    }
}

#[test]
fn a_slow_streaming_server_is_shown_by_its_time_to_the_first_byte() {
    const NAME: &str = "a_slow_streaming_server_is_shown_by_its_time_to_the_first_byte";
    live_or_skip!("a_slow_streaming_server_is_shown_by_its_time_to_the_first_byte");
    let (slow, quick) = (
        TestCgroup::new("slow-stream").unwrap(),
        TestCgroup::new("quick-stream").unwrap(),
    );
    let agent = watching(&[&slow, &quick]);
    if lacks(&agent, NAME, "first_byte_p99") {
        return;
    }
    // 450 ms lie in the bucket from 262 to 524 ms. Both stream for 140 ms after their first token.
    let (_slow, slow_port) = streaming(&slow, "450");
    let (_quick, quick_port) = streaming(&quick, "2");
    let begun = Instant::now();
    for port in [slow_port, quick_port].repeat(3) {
        // Ends with its server, which is a ward of the test.
        thread::spawn(move || ask(port));
    }
    let counted = |top: &Value, cgroup| value(top, cgroup, "first_byte_p99").is_some();
    let top = shown(
        &agent,
        "the slow server",
        (begun, SLOW_SHOWN_WITHIN),
        |top| value(top, &slow, "first_byte_p99") > Some(0.25) && counted(top, &quick),
    );
    // The quick one's answers take a multiple of that in all.
    assert!(value(&top, &quick, "first_byte_p50") < Some(0.07), "{top}");
    assert!(
        value(&top, &quick, "first_byte_p99") < value(&top, &slow, "first_byte_p50"),
        "{top}"
    );
}

/// A folder as the kernel's of NUMA nodes: the first CPU on a node of its own, all others on another.
fn two_nodes(folder: &Path, first: usize) {
    let last = CpuSet::count() - 1;
    let others = match first {
        0 => format!("1-{last}"),
        first => format!("0-{},{}-{last}", first - 1, first + 1),
    };
    for (node, cpus) in [("node0", first.to_string()), ("node1", others)] {
        std::fs::create_dir(folder.join(node)).unwrap();
        std::fs::write(folder.join(node).join("cpulist"), cpus).unwrap();
    }
}

/// An agent that finds that folder in the place of the kernel's, in a mount namespace that ends with it; or why
/// that cannot be.
fn agent_on(nodes: &Path, config: &str) -> Result<Agent, String> {
    const PLACE: &str = "/sys/devices/system/node";
    let (from, nothing) = (Some(nodes), None::<&str>);
    // A namespace is a thread's: that of the test stays where it is.
    thread::scope(|scope| {
        let started = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(nothing, "/", nothing, private, nothing)?;
            mount(from, PLACE, nothing, MsFlags::MS_BIND, nothing)?;
            Ok(Agent::start(config).unwrap())
        });
        let started: nix::Result<Agent> = started.join().unwrap();
        started.map_err(|error| format!("other nodes at {PLACE}: {error}"))
    })
}

#[test]
fn moves_between_nodes_are_shown_and_staying_is_not() {
    const NAME: &str = "moves_between_nodes_are_shown_and_staying_is_not";
    live_or_skip!("moves_between_nodes_are_shown_and_staying_is_not");
    let cpus = own_cpus();
    if cpus.len() < 2 {
        eprintln!("SKIPPED {NAME}: one CPU");
        return;
    }
    let nodes = tempfile::tempdir().unwrap();
    two_nodes(nodes.path(), cpus[0]);
    let (hops, stays) = (
        TestCgroup::new("hops").unwrap(),
        TestCgroup::new("stays").unwrap(),
    );
    let config = format!(
        "[watch]\ncgroups = [{:?}, {:?}]\n",
        hops.path(),
        stays.path()
    );
    let agent = match agent_on(nodes.path(), &config) {
        Ok(agent) => agent,
        Err(why) => {
            assert!(std::env::var_os("PALISADE_VM").is_none(), "{why}");
            eprintln!("SKIPPED {NAME}: {why}");
            return;
        }
    };
    if lacks(&agent, NAME, "migrations_cross_node") {
        return;
    }
    let _stays = stays
        .start(&["burn", "--cpu", &cpus[0].to_string()])
        .unwrap();
    // Of 200 moves in a second of CPU time at least two of as many as there are CPUs cross.
    let begun = Instant::now();
    let _hops = hops.start(&["hop", "--every-ms", "5"]).unwrap();
    let least = 200.0 * 2.0 / cpus.len() as f64 / 2.0;
    let metric = "migrations_cross_node";
    let top = shown(&agent, "moving", (begun, MOVES_SHOWN_WITHIN), |top| {
        value(top, &hops, metric) > Some(least) && value(top, &stays, metric).is_some()
    });
    // At most the one move to where it stays.
    let stayed = value(&top, &stays, metric);
    assert!(stayed < Some(least / 10.0), "{top}");
    assert!(value(&top, &stays, "cpu") > Some(0.0), "{top}");
}
