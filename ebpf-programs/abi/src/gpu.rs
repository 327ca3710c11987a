//! Driver calls by command: what names a command, and the latency histogram from which the agent
//! takes the baseline of each; and what is remembered of a call until its return.

use bytemuck::{Pod, Zeroable};

/// Stands for every command with which no call has succeeded yet: whoever tries out command words
/// must not fill the tables with them.
pub const UNKNOWN_COMMAND: u16 = u16::MAX;
/// Buckets of a [`LatencyHistogram`]: one below 256 ns, then four an octave; the last one holds
/// everything from 3.2 s on.
pub const LATENCY_BUCKETS: usize = 96;
/// Threads at most whose [`InFlight`] stays between their calls. The map has as much room again
/// for calls of others.
pub const MAX_RESIDENT: u32 = 8192;
/// Binary logarithm of the first octave's lower end, nanoseconds.
const FIRST_OCTAVE: u32 = 8;

/// Width of a command's number where the driver goes by the 8 bits of `_IOC_NR` alone, whatever
/// else the word says: nvidia.ko, KFD, DRM.
pub const ENCODED_COMMAND_BITS: u32 = 8;
/// Width elsewhere: raw numbers (nvidia-uvm.ko), or a type and a number. Direction and size are
/// left out.
pub const COMMAND_BITS: u32 = 16;

/// The command of an ioctl's command word: its low `bits`, [`ENCODED_COMMAND_BITS`] or
/// [`COMMAND_BITS`]. Which one is the driver's to say, never the caller's word: drivers that look
/// at eight bits accept any others, and each would be a command of its own.
#[inline(always)]
pub const fn command_of(word: u32, bits: u32) -> u16 {
    if bits == ENCODED_COMMAND_BITS {
        word as u16 & 0xff
    } else {
        word as u16
    }
}

/// A (device class, command) as one key. Classes are fewer than 64.
pub const fn command_key(class: u32, command: u16) -> u32 {
    class << 16 | command as u32
}

/// The bucket of a latency.
#[inline(always)]
pub const fn latency_bucket(latency_ns: u64) -> usize {
    if latency_ns >> FIRST_OCTAVE == 0 {
        return 0;
    }
    let octave = 63 - latency_ns.leading_zeros();
    let quarter = (latency_ns >> (octave - 2)) as usize & 3;
    let bucket = 1 + 4 * (octave - FIRST_OCTAVE) as usize + quarter;
    if bucket < LATENCY_BUCKETS {
        bucket
    } else {
        LATENCY_BUCKETS - 1
    }
}

/// Where a bucket begins, nanoseconds; it ends where the next one begins.
pub const fn latency_bucket_start(bucket: usize) -> u64 {
    if bucket == 0 {
        return 0;
    }
    let octave = (bucket - 1) / 4 + FIRST_OCTAVE as usize;
    (4 + (bucket as u64 - 1) % 4) << (octave - 2)
}

/// Free-running counters of the latencies of one (device class, command), over all processes of
/// the host and shared between CPUs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct LatencyHistogram {
    /// One counter a bucket.
    pub counts: [u64; LATENCY_BUCKETS],
}

/// The driver call of a thread that is under way, or was last; keyed by the address of its
/// `task_struct`. All but the first member outlive the call: the thread's next one needs them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct InFlight {
    /// Entry, `CLOCK_BOOTTIME` nanoseconds; 0: no call is under way.
    pub entered_ns: u64,
    /// Workload of the caller at entry, watched or not.
    pub workload: u64,
    /// Start of its process, `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
    /// See [`crate::DeviceRule::slow_ns`].
    pub slow_ns: u64,
    /// Baseline of the command, nanoseconds; `u64::MAX` if it has none.
    pub baseline_ns: u64,
    /// When the baselines were renewed before this one was looked up.
    pub baselines_at: u64,
    /// Its process.
    pub pid: u32,
    /// 1 if the caller is watched.
    pub watched: u32,
    /// [`crate::Config::generation`] under which that was found.
    pub generation: u32,
    /// File descriptor as given.
    pub fd: u32,
    /// The ioctl's command word.
    pub command: u32,
    /// Device number, kernel `dev_t`.
    pub device: u32,
    /// Device class.
    pub class: u32,
    /// See [`crate::DeviceRule::command_bits`].
    pub command_bits: u32,
    /// The [`command_key`] whose baseline it is.
    pub baseline_of: u32,
    /// 1: the entry stays until the thread's end; 0: it goes with the call's return.
    pub resident: u32,
    /// The thread.
    pub tid: u32,
    /// Explicit padding.
    pub pad: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_apart_by_what_their_words_encode() {
        for (word, bits, command) in [
            (0xc020_462a, ENCODED_COMMAND_BITS, 0x2a), // NVIDIA's RM_CONTROL, _IOWR
            (0x462a, ENCODED_COMMAND_BITS, 0x2a),      // the same for the driver
            (0x5413, COMMAND_BITS, 0x5413),            // TIOCGWINSZ, not encoded
            (0x8004_5430, COMMAND_BITS, 0x5430),       // TIOCGPTN, encoded
            (25, COMMAND_BITS, 25),                    // UVM
            (0x3000_0001, COMMAND_BITS, 1),            // UVM_INITIALIZE
        ] {
            assert_eq!(command_of(word, bits), command, "{word:#x}");
        }
        assert_eq!(command_key(2, 0x2a), 0x2_002a);
    }

    #[test]
    fn every_latency_lies_in_its_bucket_and_buckets_are_a_quarter_octave() {
        for shift in 0..64 {
            for offset in [0, 1, 2, 3] {
                let latency = (1_u64 << shift).saturating_add(offset << shift >> 2);
                let bucket = latency_bucket(latency);
                assert!(latency_bucket_start(bucket) <= latency);
                if bucket + 1 < LATENCY_BUCKETS {
                    assert!(latency < latency_bucket_start(bucket + 1), "{latency}");
                }
            }
        }
        for bucket in 1..LATENCY_BUCKETS {
            let start = latency_bucket_start(bucket);
            assert_eq!(latency_bucket(start), bucket);
            assert_eq!(latency_bucket(start - 1), bucket - 1);
        }
        assert_eq!(latency_bucket(u64::MAX), LATENCY_BUCKETS - 1);
    }
}
