//! Stalls in reclaim agree with the kernel's own tracing: those of a cgroup at its limit, and those of a machine
//! that is short of memory.
//!
//! Invariants: a cgroup's limit is that of a cgroup that the test made; only a guest of `./x vm` is made short of
//! memory, and what it keeps free is set back on drop.

use crate::{
    memory::{Limited, fresh, limit, touch},
    support::*,
    tracing::Trace,
};
use palisade_abi::{Kind, SampleReclaim, kind};
use std::{
    fs,
    io::{Read as _, Write as _},
    path::Path,
};

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

/// Stalls and their time as they were sampled.
fn sampled(seen: &Seen, of: fn(&SampleReclaim) -> (u32, u64)) -> (u64, u64) {
    let samples: Vec<SampleReclaim> = seen.bodies(kind::SAMPLE_RECLAIM);
    samples.iter().map(of).fold((0, 0), |sum, (stalls, ns)| {
        (sum.0 + u64::from(stalls), sum.1 + ns)
    })
}

/// How far apart the program and the trace may look at the clock at a stall's two ends together, on average. One
/// comes after the other, with an interrupt between them now and then; on an emulated processor the tracing
/// itself takes as long as a short stall does.
fn apart_ns() -> u64 {
    if std::env::var_os("PALISADE_VM").is_none() {
        100_000
    } else {
        250_000
    }
}

/// The sampled stalls are those between the traced begins and ends.
fn assert_as_traced(sampled: (u64, u64), trace: &Trace, skipped: u64) {
    let times = trace.times();
    let [begins, ends] = &times[..] else {
        panic!("two events were asked for");
    };
    assert_eq!(begins.len(), ends.len());
    let stalls = begins.len() as u64;
    let ns: u64 = begins
        .iter()
        .zip(ends)
        .map(|(begin, end)| end - begin)
        .sum();
    println!("stalls: {sampled:?} sampled, {:?} traced", (stalls, ns));
    assert!(stalls > 0, "there was no stall");
    assert!(sampled.0 <= stalls && sampled.0 + skipped >= stalls);
    assert!(sampled.1 > 0);
    if skipped == 0 {
        assert!(sampled.1.abs_diff(ns) <= ns / 20 + stalls * apart_ns());
    }
}

#[test]
fn a_cgroup_at_its_limit_stalls_those_who_need_memory() {
    const LIMIT: usize = 8 * MIB;
    let name = "a_cgroup_at_its_limit_stalls_those_who_need_memory";
    let Some(object) = object(name) else {
        return;
    };
    let Some(limited) = Limited::new("memory.high", LIMIT as u64) else {
        eprintln!("SKIPPED {name}: no memory controller");
        return;
    };
    let inside = Cgroup::new();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("palisade-test-{}-cache", std::process::id()));
    let (file, soft) = (path.clone(), limited.0.join("memory.high").exists());
    let child = Child::new(move || {
        if soft {
            // A little over a limit that nobody is killed for.
            let pages = (LIMIT + MIB) / PAGE;
            touch(fresh(pages), pages);
            return 0;
        }
        // Three times the limit in the page cache, which can be given up, but only by whoever needs
        // more.
        let chunk = vec![1_u8; MIB];
        let written = fs::File::create(&file).and_then(|mut file| {
            (0..3 * LIMIT / chunk.len()).try_for_each(|_| {
                file.write_all(&chunk)?;
                file.sync_data()
            })
        });
        i32::from(written.is_err())
    });
    let workload = limit(&inside, &limited, child.pid);
    let mut options = options(&[&inside], &[Kind::SampleReclaim]);
    options.scope = palisade::sensors::Scope::Cgroups(vec![palisade_core::WorkloadId(workload)]);
    let watch = Watch::new(object, options);
    let events = [
        "vmscan/mm_vmscan_memcg_reclaim_begin",
        "vmscan/mm_vmscan_memcg_reclaim_end",
    ];
    let trace = Trace::new(child.pid, &events).expect("tracing");
    child.start();
    child.wait_done();
    let pid = child.pid;
    let handle = watch.handle.clone();
    let seen = watch.stop();
    tell_costs(&handle);
    let code = child.finish();
    let _ = fs::remove_file(&path);
    assert_eq!(code, 0);
    let skipped = seen.assert_none_lost_but_skipped(&[Kind::SampleReclaim]);
    seen.assert_from(pid, workload);
    assert_as_traced(sampled(&seen, |s| (s.memcg, s.memcg_ns)), &trace, skipped);
}

/// What the machine keeps free; set back at the end.
struct KeptFree(String);

impl KeptFree {
    const FILE: &str = "/proc/sys/vm/min_free_kbytes";

    fn set(kib: u64) -> Self {
        let before = fs::read_to_string(Self::FILE).expect("min_free_kbytes");
        fs::write(Self::FILE, kib.to_string()).expect("min_free_kbytes");
        Self(before)
    }
}

impl Drop for KeptFree {
    fn drop(&mut self) {
        let _ = fs::write(Self::FILE, &self.0);
    }
}

/// Direct reclaims of the whole machine. One that starts over counts twice.
fn direct_reclaims() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").expect("vmstat");
    let counts = text.lines().filter_map(|line| {
        let (name, count) = line.split_once(' ')?;
        name.starts_with("allocstall")
            .then(|| count.parse::<u64>().ok())?
    });
    counts.sum()
}

fn free_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("meminfo");
    let free = text.lines().find_map(|line| line.strip_prefix("MemFree:"));
    let free = free.and_then(|text| text.trim().strip_suffix(" kB")?.parse().ok());
    free.expect("MemFree")
}

/// Has the kernel keep so much of this folder's files in memory, which it can give up again.
fn cache(folder: &Path, mut bytes: usize) {
    let mut buffer = vec![0; MIB];
    for entry in fs::read_dir(folder).expect("folder").flatten() {
        let Ok(mut file) = fs::File::open(entry.path()) else {
            continue;
        };
        while let Ok(length @ 1..) = file.read(&mut buffer) {
            bytes = bytes.saturating_sub(length);
            if bytes == 0 {
                return;
            }
        }
    }
}

#[test]
fn a_machine_short_of_memory_stalls_those_who_need_it() {
    const NAME: &str = "a_machine_short_of_memory_stalls_those_who_need_it";
    /// Stalls are enough, and so much memory must have brought them about.
    const STALLS: u64 = 20;
    const MOST: usize = 400 * MIB;
    let Some(object) = object(NAME) else {
        return;
    };
    if std::env::var_os("PALISADE_VM").is_none() {
        eprintln!(
            "SKIPPED {NAME}: the whole machine is made short of memory, as only a guest may be (run ./x vm)"
        );
        return;
    }
    // After other tests the kernel may take back the programs that run, and read them again for minutes.
    if !std::env::args().any(|word| word.contains("reclaim")) {
        eprintln!(
            "SKIPPED {NAME}: by name only, in a guest of its own (./x vm 6.1 -- sensors_live reclaim::)"
        );
        return;
    }
    cache(&palisade_tests::binaries().join("deps"), 256 * MIB);
    let inside = Cgroup::new();
    let child = Child::new(|| {
        let before = direct_reclaims();
        let at = fresh(MOST / PAGE);
        for piece in 0..MOST / MIB {
            // SAFETY: within what `fresh` mapped.
            touch(unsafe { at.add(piece * MIB) }, MIB / PAGE);
            if direct_reclaims() >= before + STALLS {
                return 0;
            }
        }
        1
    });
    inside.take(child.pid);
    let watch = Watch::new(object, options(&[&inside], &[Kind::SampleReclaim]));
    let events = [
        "vmscan/mm_vmscan_direct_reclaim_begin",
        "vmscan/mm_vmscan_direct_reclaim_end",
    ];
    let trace = Trace::new(child.pid, &events).expect("tracing");
    let before = direct_reclaims();
    let kept = KeptFree::set(free_kib() - 16 * 1024);
    child.start();
    child.wait_done();
    drop(kept);
    let counted = direct_reclaims() - before;
    let (pid, workload) = (child.pid, inside.id());
    let seen = watch.stop();
    assert_eq!(child.finish(), 0);
    let skipped = seen.assert_none_lost_but_skipped(&[Kind::SampleReclaim]);
    seen.assert_from(pid, workload);
    let sampled = sampled(&seen, |s| (s.direct, s.direct_ns));
    assert_as_traced(sampled, &trace, skipped);
    // The machine's own count is of everybody.
    assert!(sampled.0 <= counted, "{sampled:?} of {counted}");
}
