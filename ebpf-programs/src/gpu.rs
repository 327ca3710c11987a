//! Driver calls: `ioctl` on a watched character device.
//!
//! The time that a call *holds* the driver is taken as in a queue with one server: from the later
//! of its own entry and the class's previous return, to its return. For that, the returns of all
//! processes on the host count, watched or not; otherwise a holder out of sight would be charged
//! to whoever waits for it. Returns that need not have been served do not count: see [`serves`].

use crate::{
    emit::{lost, now, record, slot},
    filter::{Who, config, wanted, watched},
    gpu_commands,
    kernel::{File, Task, syscall_word},
    pids,
    tables::{DEVICES, GPU_COUNTERS, IN_FLIGHT, LAST_RETURN},
};
use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid, macros::tracepoint, programs::TracePointContext,
};
use palisade_abi::{
    ANY_MINOR, DeviceKey, DeviceRule, GpuCall, GpuCounters, GpuCountersKey, InFlight, Kind,
    LOSS_STATE_MAP, kind,
};

/// Highest errno that a system call hands back as a negative number.
const MAX_ERRNO: i64 = 4095;
/// A call that was shorter does not count as served. Between these two programs the cheapest
/// calls take 0.84 µs (`TIOCGWINSZ`, nine in ten under 1.1 µs) or 0.93 µs (refused), measured on
/// Linux 6.18; whoever waited for one is charged 2 µs too much at most, for each.
const SERVED_NS: u64 = 2_000;

/// `sys_enter_ioctl`
#[tracepoint]
pub fn gpu_enter(ctx: TracePointContext) -> u32 {
    let _ = enter(&ctx);
    0
}

/// `sys_exit_ioctl`
#[tracepoint]
pub fn gpu_exit(ctx: TracePointContext) -> u32 {
    let _ = exit(&ctx);
    0
}

#[inline(always)]
fn enter(ctx: &TracePointContext) -> Option<()> {
    forget_missed();
    let task = Task::current();
    let device = File::of(task, syscall_word(ctx, 0) as u32)?
        .inode()?
        .char_device()?;
    let rule = rule_of(device)?;
    let config = config()?;
    let who = watched(config, task).or_else(|| {
        pids::uses_gpu(config, task)?;
        watched(config, task)
    });
    let time_ns = now();
    let call = InFlight {
        entered_ns: time_ns,
        workload: match &who {
            Some(who) => who.workload,
            None => crate::kernel::cgroup_id(task.css()?)?,
        },
        device,
        command: syscall_word(ctx, 1) as u32,
        class: rule.class,
        watched: who.is_some() as u32,
        slow_ns: rule.slow_ns,
    };
    if IN_FLIGHT
        .insert(bpf_get_current_pid_tgid(), call, 0)
        .is_err()
    {
        lost(call.workload, LOSS_STATE_MAP);
        return None;
    }
    if let Some(who) = who
        && wanted(config, Kind::GpuEnter)
    {
        let body = GpuCall {
            latency_ns: 0,
            hold_ns: 0,
            device,
            command: call.command,
        };
        record(&who, time_ns, kind::GPU_ENTER, 0, body);
    }
    Some(())
}

#[inline(always)]
fn exit(ctx: &TracePointContext) -> Option<()> {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: only this thread writes and removes its entry, and it is here.
    let call = *unsafe { IN_FLIGHT.get(thread) }?;
    let _ = IN_FLIGHT.remove(thread);

    let time_ns = now();
    let latency_ns = time_ns.saturating_sub(call.entered_ns);
    let errno = errno(syscall_word(ctx, 0) as i64);
    let previous = if serves(latency_ns, errno) {
        swap_last_return(call.class, time_ns)?
    } else {
        last_return(call.class)?
    };
    let hold_ns = time_ns.saturating_sub(call.entered_ns.max(previous));
    let config = config()?;
    let by_command = wanted(config, Kind::SampleGpuCommand);
    let command = if by_command {
        gpu_commands::learn(&call, latency_ns, errno)
    } else {
        0
    };
    if call.watched == 0 {
        return None;
    }
    let who = watched(config, Task::current())?;
    if wanted(config, Kind::SampleGpu)
        && let Some(counters) = counters(&who, call.class)
    {
        counters.calls += 1;
        counters.latency_ns += latency_ns;
        counters.hold_ns += hold_ns;
    }
    if by_command {
        gpu_commands::count(&who, call.class, command, latency_ns);
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

/// Drops the thread's entry of an earlier call. One that is still there at the next entry means
/// that the kernel skipped our program at the call's return; left where it is, some later return
/// of the thread would end it, with minutes of hold that never were.
#[inline(always)]
fn forget_missed() {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: only this thread writes and removes its entry, and it is here.
    if let Some(call) = unsafe { IN_FLIGHT.get(thread) } {
        lost(call.workload, LOSS_STATE_MAP);
        let _ = IN_FLIGHT.remove(thread);
    }
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

/// The rule for a device: its own number first, then every minor of its major.
#[inline(always)]
fn rule_of(device: u32) -> Option<DeviceRule> {
    let (major, minor) = (device >> 20, device & 0xf_ffff);
    // SAFETY (both): rules are written by the agent before the programs are attached; an entry
    // replaced later differs in `slow_ns` at most.
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
fn counters(who: &Who, class: u32) -> Option<&'static mut GpuCounters> {
    let key = GpuCountersKey {
        start_ns: who.start_ns,
        workload: who.workload,
        pid: who.pid,
        class,
    };
    slot(&GPU_COUNTERS, &key, who.workload)
}
