//! Driver calls: `ioctl` on a watched character device.
//!
//! The time that a call *holds* the driver is taken as in a queue with one server: from the later
//! of its own entry and the class's previous return, to its return. For that, the returns of all
//! processes on the host count, watched or not; otherwise a holder out of sight would be charged
//! to whoever waits for it. Returns that need not have been served do not count: see [`serves`].

use crate::{
    emit::{BPF_NOEXIST, add, bucket, lost, now, record, slot},
    filter::{self, Who, config, wanted},
    gpu_commands,
    kernel::{File, Task, syscall_word},
    pids,
    quotas::shared_within,
    registers::Registers,
    tables::{
        DEVICES, GPU_COUNTERS, GPU_LATENCIES, IN_FLIGHT, LAST_RETURN, MAJORS, MISSED_RETURNS,
        RESIDENTS, offset,
    },
    typed::{Memory, Typed, watched, workload},
};
use aya_ebpf::{
    macros::{fentry, fexit, tracepoint},
    programs::{FEntryContext, FExitContext, TracePointContext},
};
use palisade_abi::{
    ANY_MINOR, Config, DeviceKey, DeviceRule, GpuCall, GpuCountersKey, HISTOGRAM_BUCKETS, InFlight,
    Kind, LOSS_STATE_MAP, MAX_MAJORS, MAX_RESIDENT, QUOTA_HISTOGRAMS, kind,
};

/// Highest errno that a system call hands back as a negative number.
const MAX_ERRNO: i64 = 4095;
/// A call that was shorter does not count as served. Between the two programs on tracepoints the
/// cheapest calls take 0.84 µs (`TIOCGWINSZ`, nine in ten under 1.1 µs) or 0.93 µs (refused),
/// measured on Linux 6.18; whoever waited for one is charged 2 µs too much at most, for each.
const SERVED_NS: u64 = 2_000;

/// The kernel's function for `ioctl`, its entry: (registers)
#[fentry(function = "__x64_sys_ioctl")]
pub fn gpu_call(_ctx: FEntryContext) -> i32 {
    let _ = entered();
    0
}

/// The kernel's function for `ioctl`, its return: (registers), result
#[fexit(function = "__x64_sys_ioctl")]
pub fn gpu_return(ctx: FExitContext) -> i32 {
    let _ = returned(ctx.arg(1));
    0
}

/// `sys_enter_ioctl`
#[tracepoint]
pub fn gpu_enter(ctx: TracePointContext) -> u32 {
    let _ = enter(syscall_word(&ctx, 0) as u32, syscall_word(&ctx, 1) as u32);
    0
}

/// `sys_exit_ioctl`
#[tracepoint]
pub fn gpu_exit(ctx: TracePointContext) -> u32 {
    let _ = returned(syscall_word(&ctx, 0) as i64);
    0
}

#[inline(always)]
fn entered() -> Option<()> {
    let registers = Registers::current();
    enter(
        registers.argument::<0>()? as u32,
        registers.argument::<1>()? as u32,
    )
}

#[inline(always)]
fn enter(fd: u32, command: u32) -> Option<()> {
    let inode = File::of_current(fd)?.inode()?;
    let device = inode.device()?;
    if !is_of_watched_major(device) || !inode.is_char_device() {
        return None;
    }
    let task = Typed::current();
    let key = task.address().0;
    let call = match IN_FLIGHT.get_ptr_mut(key) {
        Some(call) => call,
        None => {
            rule_of(device)?;
            make(task, key)?
        }
    };
    // SAFETY: only this thread's calls touch its entry, and it is in one; the agent, which reads
    // it at any time, asks for no more than a snapshot.
    let call = unsafe { &mut *call };
    if call.entered_ns != 0 {
        // The kernel skipped our program at that call's return.
        forget_call(call);
    }
    if call.device != device {
        let rule = rule_of(device)?;
        call.device = device;
        call.class = rule.class;
        call.command_bits = rule.command_bits;
        call.slow_ns = rule.slow_ns;
    }
    let config = config()?;
    identify(config, task, call)?;
    call.tid = task.read(offset!(task_pid))?;
    call.fd = fd;
    call.command = command;
    let time_ns = now();
    set_entered(call, time_ns);
    if call.watched != 0 && wanted(config, Kind::GpuEnter) {
        let body = GpuCall {
            latency_ns: 0,
            hold_ns: 0,
            device,
            command,
        };
        record(&caller(call), time_ns, kind::GPU_ENTER, 0, body);
    }
    Some(())
}

/// Whose call it is. A thread that is watched as before, in the same cgroup, costs no look-up.
#[inline(always)]
fn identify(config: &Config, task: Typed, call: &mut InFlight) -> Option<()> {
    let pid: u32 = task.read(offset!(task_tgid))?;
    let start_ns: u64 = task
        .follow(offset!(task_leader))?
        .read(offset!(task_start))?;
    let workload = workload(task)?;
    let generation = generation(config);
    if call.watched != 0
        && call.workload == workload
        && call.generation == generation
        && call.start_ns == start_ns
        && call.pid == pid
    {
        return Some(());
    }
    let who = watched(config, task).or_else(|| {
        pids::uses_gpu(config, Task(task.address()))?;
        watched(config, task)
    });
    call.pid = pid;
    call.start_ns = start_ns;
    call.workload = workload;
    call.generation = generation;
    call.watched = who.is_some() as u32;
    Some(())
}

/// The caller as [`identify`] found it.
#[inline(always)]
fn caller(call: &InFlight) -> Who {
    Who {
        workload: call.workload,
        start_ns: call.start_ns,
        pid: call.pid,
        tid: call.tid,
    }
}

#[inline(always)]
fn generation(config: &Config) -> u32 {
    // SAFETY: an aligned word of a map value, which the agent may change at any time.
    unsafe { core::ptr::read_volatile(&raw const config.generation) }
}

/// Begins a call, or with 0 ends it. The last write of a call's beginning.
#[inline(always)]
fn set_entered(call: &mut InFlight, time_ns: u64) {
    // SAFETY: an aligned word; volatile, so that it comes after the members that go with it.
    unsafe { core::ptr::write_volatile(&raw mut call.entered_ns, time_ns) };
}

/// An entry for a thread that has none.
#[inline(always)]
fn make(task: Typed, key: u64) -> Option<*mut InFlight> {
    let residents = RESIDENTS.get_ptr_mut(0)?;
    // SAFETY: an aligned word of a map value, which others change with one instruction. Signed:
    // the agent sets it to 0 when it clears the map, and threads may end meanwhile.
    let made = unsafe { core::ptr::read_volatile(residents) };
    // SAFETY: as above; only the agent writes this one.
    let swept = unsafe { core::ptr::read_volatile(RESIDENTS.get_ptr(1)?) };
    let resident = (made.wrapping_sub(swept) as i64) < MAX_RESIDENT as i64;
    let call = InFlight {
        baseline_ns: u64::MAX,
        resident: resident as u32,
        ..InFlight::default()
    };
    if IN_FLIGHT.insert(key, call, BPF_NOEXIST).is_err() {
        lost(watched(config()?, task)?.workload, LOSS_STATE_MAP);
        return None;
    }
    if resident {
        add(residents, 1);
    }
    IN_FLIGHT.get_ptr_mut(key)
}

/// A thread ends: so does whatever call it is in.
#[inline(always)]
pub fn forget(task: Task) {
    let key = task.0.0;
    // SAFETY: the thread is here, and in no call of its own.
    let Some(call) = (unsafe { IN_FLIGHT.get(key) }) else {
        return;
    };
    let resident = call.resident != 0;
    if IN_FLIGHT.remove(key).is_ok()
        && resident
        && let Some(residents) = RESIDENTS.get_ptr_mut(0)
    {
        add(residents, u64::MAX);
    }
}

/// Ends a call whose return was not seen: some later return of the thread would end it, with
/// minutes of hold that never were. A watched caller's counts as a run that the kernel skipped:
/// mostly it has counted that itself, but not where another tracer came to the function meanwhile.
#[inline(always)]
fn forget_call(call: &mut InFlight) {
    if call.watched != 0
        && let Some(missed) = MISSED_RETURNS.get_ptr_mut(0)
    {
        add(missed, 1);
    }
    set_entered(call, 0);
}

#[inline(always)]
fn returned(result: i64) -> Option<()> {
    let task = Typed::current();
    let key = task.address().0;
    // SAFETY: as in `enter`.
    let call = unsafe { &mut *IN_FLIGHT.get_ptr_mut(key)? };
    if call.entered_ns == 0 {
        return None;
    }
    let told = if is_of(call) == Some(true) {
        let told = count(task, call, result);
        set_entered(call, 0);
        told
    } else {
        forget_call(call);
        None
    };
    if call.resident == 0 {
        let _ = IN_FLIGHT.remove(key);
    }
    told
}

/// Whether the call that returns is the remembered one, and not a later one on some other device.
#[inline(always)]
fn is_of(call: &InFlight) -> Option<bool> {
    let registers = Registers::current();
    let (fd, command) = (registers.argument::<0>()?, registers.argument::<1>()?);
    Some(fd as u32 == call.fd && command as u32 == call.command)
}

#[inline(always)]
fn count(task: Typed, call: &mut InFlight, result: i64) -> Option<()> {
    let time_ns = now();
    let config = config()?;
    // Before anything that the verifier would follow several times.
    renew(config, task, call);
    let latency_ns = time_ns.saturating_sub(call.entered_ns);
    let errno = errno(result);
    let previous = if serves(latency_ns, errno) {
        swap_last_return(call.class, time_ns)?
    } else {
        last_return(call.class)?
    };
    let hold_ns = time_ns.saturating_sub(call.entered_ns.max(previous));
    let by_command = wanted(config, Kind::SampleGpuCommand);
    let command = if by_command {
        gpu_commands::learn(call, latency_ns, errno)
    } else {
        0
    };
    if call.watched == 0 {
        return None;
    }
    let who = caller(call);
    if wanted(config, Kind::SampleGpu)
        && let Some(counters) = slot(&GPU_COUNTERS, &key(&who, call.class), who.workload)
    {
        counters.calls += 1;
        counters.latency_ns += latency_ns;
        counters.hold_ns += hold_ns;
    }
    if wanted(config, Kind::SampleGpuLatency) {
        count_latency(&who, call.class, latency_ns);
    }
    if by_command {
        gpu_commands::count(&who, call, command, latency_ns);
    }
    if wanted(config, Kind::GpuExit) && latency_ns >= call.slow_ns {
        let body = GpuCall {
            latency_ns,
            hold_ns,
            device: call.device,
            command: call.command,
        };
        record(&who, time_ns, kind::GPU_EXIT, errno, body);
    }
    Some(())
}

/// Whether a watched call's caller still is, if the agent changed the scope meanwhile. By address: that comes seldom, and
/// it is typed loads that the verifier takes long for.
#[inline(always)]
fn renew(config: &Config, task: Typed, call: &mut InFlight) {
    let generation = generation(config);
    if call.watched == 0 || call.generation == generation {
        return;
    }
    match filter::watched(config, Task(task.address())) {
        Some(who) => {
            call.workload = who.workload;
            call.generation = generation;
        }
        None => call.watched = 0,
    }
}

#[inline(always)]
fn count_latency(who: &Who, class: u32, latency_ns: u64) {
    let key = key(who, class);
    let Some(histogram) = shared_within(&GPU_LATENCIES, &key, who, QUOTA_HISTOGRAMS) else {
        return;
    };
    let bucket = bucket(latency_ns);
    // It never is; Linux 6.1's verifier does not see that by itself.
    if bucket >= HISTOGRAM_BUCKETS {
        return;
    }
    // SAFETY: the bucket is below the number of buckets, as was just checked.
    let count = unsafe {
        (&raw mut (*histogram).histogram.counts)
            .cast::<u64>()
            .add(bucket)
    };
    add(count, 1);
}

/// What a system call's result says went wrong; 0 for nothing.
#[inline(always)]
fn errno(result: i64) -> u16 {
    if (-MAX_ERRNO..0).contains(&result) {
        -result as u16
    } else {
        0
    }
}

/// Whether a return counts as the driver having served that call: what others waited for until
/// then is no hold of theirs. Refused calls and very short ones may never have come to the lock,
/// and anyone who can open the device makes millions of them in a second; a holder beside them
/// would seem to hold nothing.
#[inline(always)]
fn serves(latency_ns: u64, errno: u16) -> bool {
    errno == 0 && latency_ns >= SERVED_NS
}

/// Whether a device may be watched, by its major number: most files are told apart here.
#[inline(always)]
fn is_of_watched_major(device: u32) -> bool {
    let major = device >> 20;
    device != 0
        && MAJORS
            .get(major / 64 & (MAX_MAJORS / 64 - 1))
            .is_some_and(|word| word >> (major % 64) & 1 == 1)
}

/// The rule for a device: its own number first, then every minor of its major.
#[inline(always)]
fn rule_of(device: u32) -> Option<DeviceRule> {
    let (major, minor) = (device >> 20, device & 0xf_ffff);
    // SAFETY (both): rules are written by the agent before the programs are loaded, and stay.
    if let Some(rule) = unsafe { DEVICES.get(DeviceKey { major, minor }) } {
        return Some(*rule);
    }
    let minor = ANY_MINOR;
    // SAFETY: as above.
    unsafe { DEVICES.get(DeviceKey { major, minor }) }.copied()
}

/// The class's last return.
#[inline(always)]
fn last_return(class: u32) -> Option<u64> {
    let slot = LAST_RETURN.get_ptr(class)?;
    // SAFETY: the slot is an aligned word that other CPUs change with one instruction.
    Some(unsafe { core::ptr::read_volatile(slot) })
}

/// Makes `time_ns` the class's last return unless a later one is there already; hands back the
/// one before.
#[inline(always)]
fn swap_last_return(class: u32, time_ns: u64) -> Option<u64> {
    let slot = LAST_RETURN.get_ptr_mut(class)?;
    let mut seen = last_return(class)?;
    // Each failed attempt means that another CPU's call returned at this very moment. After four
    // of them the slot holds a return that is nanoseconds away from ours.
    for _ in 0..4 {
        if seen >= time_ns {
            break;
        }
        let found = compare_exchange(slot, seen, time_ns);
        if found == seen {
            break;
        }
        seen = found;
    }
    Some(seen)
}

/// Stores `new` if the word is `old`; hands back what the word was.
#[inline(always)]
fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    let found: u64;
    // SAFETY: Rust offers no compare-and-swap for this target, Linux has the instruction since
    // 5.12. `word` points into a map value, which the verifier checks.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") old => found,
        );
    }
    found
}

#[inline(always)]
fn key(who: &Who, class: u32) -> GpuCountersKey {
    GpuCountersKey {
        start_ns: who.start_ns,
        workload: who.workload,
        pid: who.pid,
        class,
    }
}
