//! Driver calls on a real character device with a GPU's numbers.
//!
//! Invariant: the device is `fake-gpu`'s, 195:0 `/dev/nvidia0`, with delays that the test chose: what is asserted of a
//! time is a lower bound, which the driver's own sleep makes true.

use super::object_in_guest;
use crate::{pairs::one_after_the_other, support::*};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use palisade::sensors::{SensorOptions, WatchedDevice};
use palisade_abi::{
    ENCODED_COMMAND_BITS, GpuCall, Kind, LOSS_COUNTER_MAP, Lost, Record, SampleGpu,
    SampleGpuCommand, kind,
};
use palisade_tests::{Agent, TestCgroup, Ward, binaries, policy};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The resource manager's commands: src/nvidia/arch/nvalloc/unix/include/nv_escape.h of NVIDIA's open modules.
const RM_FREE: u8 = 0x29;
const RM_CONTROL: u8 = 0x2A;
const RM_ALLOC: u8 = 0x2B;

/// Kinds of the calls themselves.
const KINDS: &[Kind] = &[Kind::GpuEnter, Kind::GpuExit, Kind::SampleGpu];
const SLOW: Duration = Duration::from_millis(30);
/// What the fake driver answers to `RM_FREE`.
const REFUSAL: i32 = nix::libc::EIO;
/// Kernel `dev_t`.
const NVIDIA0: u32 = 195 << 20;
/// The whole driver, as the preset `nvidia`.
const NVIDIA: WatchedDevice = WatchedDevice {
    class: 0,
    major: 195,
    minor: None,
    slow: Duration::ZERO,
    command_bits: ENCODED_COMMAND_BITS,
};

/// The driver; its device goes with it.
struct FakeGpu(Ward);

impl FakeGpu {
    fn new() -> Self {
        let mut command = Command::new(binaries().join("fake-gpu"));
        command
            .args(["nvidia0", "195:0", "0x2a=0"])
            .arg(format!("{RM_ALLOC:#x}={}", SLOW.as_millis()))
            .arg(format!("{RM_FREE:#x}=0:{REFUSAL}"))
            .stdout(Stdio::piped());
        let mut ward = Ward::start(&mut command).expect("fake-gpu");
        let mut line = String::new();
        let output = ward.0.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n", "is the module cuse loaded?");
        let device = std::fs::metadata("/dev/nvidia0").expect("/dev/nvidia0");
        assert!(device.file_type().is_char_device());
        assert_eq!(
            (
                nix::libc::major(device.rdev()),
                nix::libc::minor(device.rdev())
            ),
            (195, 0)
        );
        Self(ward)
    }
}

impl Drop for FakeGpu {
    fn drop(&mut self) {
        let _ = self.0.0.kill();
        let _ = self.0.0.wait();
        // The next test's device wants the same name.
        let end = Instant::now() + PATIENCE;
        while std::fs::exists("/dev/nvidia0").unwrap_or(false) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn nvidia0() -> OwnedFd {
    open(
        "/dev/nvidia0",
        OFlag::O_RDWR | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .expect("/dev/nvidia0")
}

/// `_IOWR('F', number, size)`, as the driver's users build it.
const fn command(number: u8, size: u32) -> u32 {
    3 << 30 | size << 16 | (b'F' as u32) << 8 | number as u32
}

/// Makes the call; 0, or the errno.
fn call(device: &OwnedFd, command: u32) -> i32 {
    let mut argument = [0_u64; 32];
    // SAFETY: the raw call is what is counted; the fake driver does not look at the argument.
    let result =
        unsafe { nix::libc::ioctl(device.as_raw_fd(), command.into(), argument.as_mut_ptr()) };
    if result == 0 {
        0
    } else {
        nix::errno::Errno::last_raw()
    }
}

fn watched(inside: &Cgroup, slow: Duration) -> SensorOptions {
    SensorOptions {
        devices: vec![WatchedDevice { slow, ..NVIDIA }],
        ..options(&[inside], KINDS)
    }
}

#[test]
fn calls_on_a_real_device_are_found_with_number_command_and_errno() {
    let name = "calls_on_a_real_device_are_found_with_number_command_and_errno";
    let Some(object) = object_in_guest(name) else {
        return;
    };
    let _driver = FakeGpu::new();
    // Command word and errno of each call, in order.
    let plan: Vec<(u32, i32)> = (0..120)
        .map(|round| match round % 12 {
            11 => (command(RM_ALLOC, 48), 0),
            5 => (command(RM_FREE, 16), REFUSAL),
            _ => (command(RM_CONTROL, 32), 0),
        })
        .collect();
    let inside = Cgroup::new();
    let calls = plan.clone();
    let child = Child::new(move || {
        let (device, other) = (nvidia0(), ptmx());
        for (command, errno) in calls {
            if call(&device, command) != errno || ask_window_size(&other) != 0 {
                return 1;
            }
        }
        0
    });
    inside.take(child.pid);
    let pid = child.pid;
    let watch = Watch::new(object, watched(&inside, Duration::ZERO));
    child.start();
    child.wait_done();
    let seen = watch.stop();
    assert_eq!(child.finish(), 0);

    let skipped = seen.assert_none_lost_but_skipped(KINDS);
    seen.assert_from(pid, inside.id());
    let made: Vec<(u32, i32)> = seen
        .of(kind::GPU_EXIT)
        .map(|record| {
            let call: GpuCall = record.get().expect("a driver call");
            (call.command, i32::from(record.header.flags))
        })
        .collect();
    // The calls in their order, without those that were counted as lost: none on most kernels.
    let mut rest = plan.iter();
    assert!(
        made.iter().all(|call| rest.any(|planned| planned == call)),
        "{made:?}"
    );
    assert!((made.len() as u64 + skipped) >= plan.len() as u64);
    assert!((seen.count(kind::GPU_ENTER) as u64 + skipped) >= plan.len() as u64);
    let calls: Vec<GpuCall> = seen.bodies(kind::GPU_EXIT);
    assert!(calls.iter().all(|call| call.device == NVIDIA0));
    assert!(calls.iter().all(|call| call.hold_ns <= call.latency_ns));
    let slow = u64::try_from(SLOW.as_nanos()).expect("a short time");
    assert!(
        calls
            .iter()
            .filter(|call| call.command == command(RM_ALLOC, 48))
            .all(|call| call.latency_ns >= slow)
    );
    let samples: Vec<SampleGpu> = seen.bodies(kind::SAMPLE_GPU);
    let sum = |field: fn(&SampleGpu) -> u64| samples.iter().map(field).sum::<u64>();
    assert_eq!(sum(|sample| sample.calls.into()), made.len() as u64);
    assert_eq!(
        sum(|sample| sample.latency_ns),
        calls.iter().map(|call| call.latency_ns).sum::<u64>()
    );
}

#[test]
fn slow_calls_of_a_real_device_pass_the_threshold() {
    const ROUNDS: usize = 20;
    let Some(object) = object_in_guest("slow_calls_of_a_real_device_pass_the_threshold") else {
        return;
    };
    let _driver = FakeGpu::new();
    let inside = Cgroup::new();
    let child = Child::new(|| {
        let device = nvidia0();
        let round =
            || call(&device, command(RM_CONTROL, 32)) + call(&device, command(RM_ALLOC, 48));
        (0..ROUNDS).map(|_| round()).sum()
    });
    inside.take(child.pid);
    let watch = Watch::new(object, watched(&inside, SLOW));
    assert_eq!(child.run(), 0);
    let seen = watch.stop();
    let skipped = seen.assert_none_lost_but_skipped(KINDS);
    // An emulated machine may be slow at any call: those that the driver itself slept in are the ones
    // that must be there.
    let calls: Vec<GpuCall> = seen.bodies(kind::GPU_EXIT);
    let slow = calls
        .iter()
        .filter(|call| call.command == command(RM_ALLOC, 48));
    assert!(slow.count() as u64 + skipped >= ROUNDS as u64);
    assert!(
        calls
            .iter()
            .all(|call| u128::from(call.latency_ns) >= SLOW.as_nanos())
    );
    let samples: Vec<SampleGpu> = seen.bodies(kind::SAMPLE_GPU);
    let calls = samples.iter().map(|sample| u64::from(sample.calls));
    assert!((0..=skipped).contains(&(2 * ROUNDS as u64 - calls.sum::<u64>())));
}

#[test]
fn of_a_real_devices_users_the_one_that_holds_it_is_told() {
    const ROUNDS: usize = 20;
    const WAITERS: usize = 3;
    let Some(object) = object_in_guest("of_a_real_devices_users_the_one_that_holds_it_is_told")
    else {
        return;
    };
    let _driver = FakeGpu::new();
    let (inside, device) = (Cgroup::new(), nvidia0());
    let user = |number: u8| {
        let child = Child::new(|| {
            (0..ROUNDS)
                .map(|_| call(&device, command(number, 32)))
                .sum()
        });
        inside.take(child.pid);
        child
    };
    let holder = user(RM_ALLOC);
    let waiters: Vec<Child> = (0..WAITERS).map(|_| user(RM_CONTROL)).collect();
    let watch = Watch::new(object, watched(&inside, Duration::ZERO));
    for child in waiters.iter().chain([&holder]) {
        child.start();
    }
    for child in waiters.iter().chain([&holder]) {
        child.wait_done();
    }
    let seen = watch.stop();
    seen.assert_none_lost_but_skipped(KINDS);
    let held = |child: &Child| {
        let of_child = |r: &&Record| r.header.pid == child.pid.as_raw() as u32;
        let calls = seen.of(kind::GPU_EXIT).filter(of_child);
        calls
            .filter_map(Record::get::<GpuCall>)
            .map(|call| call.hold_ns)
            .sum::<u64>()
    };
    // The holder's own sleeps, less what a wait for another's quick call took of them.
    assert!(u128::from(held(&holder)) >= SLOW.as_nanos() * ROUNDS as u128 / 2);
    for waiter in &waiters {
        assert!(
            held(waiter) < held(&holder),
            "{} {}",
            held(waiter),
            held(&holder)
        );
    }
    for child in waiters.into_iter().chain([holder]) {
        assert_eq!(child.finish(), 0);
    }
}

#[test]
fn a_driver_that_is_loaded_later_is_watched_by_its_name() {
    if object_in_guest("a_driver_that_is_loaded_later_is_watched_by_its_name").is_none() {
        return;
    }
    let cgroup = TestCgroup::new("later").expect("cgroup");
    let config = format!(
        "[watch]\ncgroups = [{:?}]\n[[devices]]\nname = \"nvidia\"\nslow = \"10ms\"\n\
         [limits]\npolicy-deadline = \"10s\"\n[policies.react]\npath = {:?}\nmode = \"observe\"\npower = \"signal\"\n\
         settings = {{ action = \"quota\" }}\n",
        cgroup.path(),
        policy("guests/react"),
    );
    let agent = Agent::start(&config).expect("agent");
    let _driver = FakeGpu::new();
    let child = Child::new(|| call(&nvidia0(), command(RM_ALLOC, 48)));
    for dir in cgroup.dirs() {
        std::fs::write(dir.join("cgroup.procs"), child.pid.to_string()).expect("moved");
    }
    assert_eq!(child.run(), 0);
    let decision = agent.wait_for("a decision", |record| record["kind"] == "decision");
    let evidence = decision.expect("a decision").to_string();
    assert!(evidence.contains("A driver call was made"), "{evidence}");
}

#[test]
fn made_up_commands_are_one_by_number_and_cost_whoever_makes_them_up() {
    const KINDS: u32 = 8;
    /// A number that only the modest one uses.
    const OWN: u8 = 0xf0;
    /// A sixteenth of four entries for each of 256 processes.
    const QUOTA: usize = 64;
    let Some(object) =
        object_in_guest("made_up_commands_are_one_by_number_and_cost_whoever_makes_them_up")
    else {
        return;
    };
    let _driver = FakeGpu::new();
    // Words that a driver takes for calls number 0 to 199, whatever else is in them.
    let hog = || {
        let device = nvidia0();
        let words = (0..KINDS).flat_map(|kind| (0..200).map(move |number| kind << 8 | number));
        let words = words.filter(|word| *word as u8 != RM_FREE && *word as u8 != RM_ALLOC);
        words.map(|word| call(&device, word)).fold(0, i32::max)
    };
    let other = || {
        let device = nvidia0();
        (0..10).map(|_| call(&device, command(OWN, 8))).sum()
    };
    let options = SensorOptions {
        devices: vec![NVIDIA],
        ..options(&[], &[Kind::SampleGpuCommand])
    };
    let (seen, [greedy, modest], failed) = one_after_the_other(object, options, [&hog, &other]);
    assert_eq!(failed, [0, 0]);

    let skipped = u32::try_from(seen.skipped(&[Kind::SampleGpuCommand])).expect("a few");
    let of = |workload| seen.bodies_of::<SampleGpuCommand>(kind::SAMPLE_GPU_COMMAND, workload);
    let commands: BTreeSet<u16> = of(greedy).iter().map(|it| it.command).collect();
    assert!(commands.len() <= QUOTA, "{commands:?}");
    assert!(commands.iter().all(|command| *command < 200));
    let told = of(modest);
    let calls: u32 = told.iter().map(|it| it.calls).sum();
    assert!(calls + skipped >= 10 && told.iter().all(|it| it.command == u16::from(OWN)));
    let full = |workload| {
        let lost = seen.bodies_of::<Lost>(kind::LOST, workload).into_iter();
        lost.filter(|it| it.source == LOSS_COUNTER_MAP)
            .map(|it| it.count)
            .sum::<u64>()
    };
    assert!(full(greedy) > 0);
    assert_eq!(full(modest), 0);
}
