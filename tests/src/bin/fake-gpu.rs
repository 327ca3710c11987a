//! A character device whose driver is this program: what a GPU is to the sensors, without one.
//!
//! `fake-gpu NAME MAJOR:MINOR [COMMAND=MILLISECONDS[:ERRNO]]…` makes `/dev/NAME` by way of CUSE and prints `ready`. A
//! driver call takes as long as is said for the low byte of its command, and fails with the errno, if there is one;
//! other commands succeed at once. Calls are served one at a time, in order of arrival, as under a driver's lock.
//!
//! Invariants: the caller's memory is neither read nor written; the device goes when this program ends, and this
//! program ends with its parent.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::time::Duration;

/// Structures and numbers of include/uapi/linux/fuse.h.
mod fuse {
    pub const CUSE_INIT: u32 = 4096;
    pub const OPEN: u32 = 14;
    pub const RELEASE: u32 = 18;
    pub const INTERRUPT: u32 = 36;
    pub const IOCTL: u32 = 39;
    /// `struct fuse_in_header`: length, opcode, unique, …
    pub const IN_HEADER: usize = 40;
    /// `struct fuse_ioctl_in`: file handle, flags, command, …
    pub const IOCTL_COMMAND: usize = IN_HEADER + 12;
    /// The protocol that `cuse_init_out` has had since its beginning.
    pub const VERSION: [u32; 2] = [7, 31];
    pub const UNRESTRICTED_IOCTL: u32 = 1;
    /// Largest read or write; the buffer for requests is larger than the kernel's minimum.
    pub const TRANSFER: u32 = 1 << 16;
}

/// How a command is answered.
#[derive(Clone, Copy, Debug, Default)]
struct Answer {
    delay: Duration,
    errno: i32,
}

/// The device and its answers.
#[derive(Debug)]
struct Device {
    name: String,
    major: u32,
    minor: u32,
    answers: BTreeMap<u8, Answer>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = parse(&arguments)
        .ok_or_else(|| {
            "usage: fake-gpu NAME MAJOR:MINOR [COMMAND=MILLISECONDS[:ERRNO]]…".to_owned()
        })
        .and_then(|device| serve(&device).map_err(|error| error.to_string()));
    if let Err(error) = done {
        eprintln!("fake-gpu: {error}");
        std::process::exit(1);
    }
}

fn parse(arguments: &[String]) -> Option<Device> {
    let [name, number, answers @ ..] = arguments else {
        return None;
    };
    let (major, minor) = number.split_once(':')?;
    let answers = answers.iter().map(|text| {
        let (command, answer) = text.split_once('=')?;
        let (delay, errno) = answer.split_once(':').unwrap_or((answer, "0"));
        let command = u8::from_str_radix(command.strip_prefix("0x")?, 16).ok()?;
        let delay = Duration::from_millis(delay.parse().ok()?);
        Some((
            command,
            Answer {
                delay,
                errno: errno.parse().ok()?,
            },
        ))
    });
    Some(Device {
        name: name.clone(),
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        answers: answers.collect::<Option<_>>()?,
    })
}

fn serve(device: &Device) -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let mut cuse = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/cuse")?;
    let mut request = vec![0; fuse::TRANSFER as usize + 4096];
    loop {
        let length = cuse.read(&mut request)?;
        let request = &request[..length];
        let (Some(opcode), Some(unique)) = (word(request, 4), request.get(8..16)) else {
            continue;
        };
        match opcode {
            fuse::CUSE_INIT => {
                reply(&mut cuse, unique, 0, &device.introduction())?;
                // The kernel made the device while it took the answer.
                println!("ready");
            }
            // A file handle, its flags and a word of padding; all of them 0.
            fuse::OPEN => reply(&mut cuse, unique, 0, &[0; 16])?,
            fuse::RELEASE => reply(&mut cuse, unique, 0, &[])?,
            fuse::IOCTL => {
                let command = word(request, fuse::IOCTL_COMMAND).unwrap_or(0);
                let answer = device.answers.get(&(command as u8)).copied();
                let Answer { delay, errno } = answer.unwrap_or_default();
                std::thread::sleep(delay);
                // Result, flags and two counts of what is to be fetched; all of them 0.
                let body: &[u8] = if errno == 0 { &[0; 16] } else { &[] };
                reply(&mut cuse, unique, -errno, body)?;
            }
            // The call goes on; an interrupt wants no answer.
            fuse::INTERRUPT => {}
            _ => reply(&mut cuse, unique, -nix::libc::ENOSYS, &[])?,
        }
    }
}

impl Device {
    /// `struct cuse_init_out` and the name.
    fn introduction(&self) -> Vec<u8> {
        let [major, minor] = fuse::VERSION;
        let words = [
            major,
            minor,
            0,
            fuse::UNRESTRICTED_IOCTL,
            fuse::TRANSFER,
            fuse::TRANSFER,
            self.major,
            self.minor,
        ];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend([0; 10 * 4]);
        bytes.extend(format!("DEVNAME={}\0", self.name).bytes());
        bytes
    }
}

/// `struct fuse_out_header` and a body, in one write.
fn reply(cuse: &mut File, unique: &[u8], error: i32, body: &[u8]) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(16 + body.len());
    bytes.extend((16 + body.len() as u32).to_ne_bytes());
    bytes.extend(error.to_ne_bytes());
    bytes.extend(unique);
    bytes.extend(body);
    match cuse.write_all(&bytes) {
        // The caller was killed meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
