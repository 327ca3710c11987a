//! One guest: QEMU, its console, and how it ended.
//!
//! Invariant: a guest is good only if it told so itself on its console. QEMU ends with this program.

use super::kernel::Image;
use super::{folder, initramfs};
use crate::setup::{Missing, find_program};
use anyhow::{Context, Result};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What is needed, each with the Debian package that has it.
pub const TOOLS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("dpkg-deb", "dpkg"),
    ("apt-get", "apt"),
    ("make", "make"),
];

/// Memory of a guest, half of it on each node, MiB.
const MEMORY: u32 = 1024;
/// A guest with KVM comes up in a few seconds, or never.
const KVM_TRIAL: Duration = Duration::from_secs(30);
/// After so long without a line it is told where the guest is.
const SILENCE: Duration = Duration::from_mins(1);
/// What spares an emulated machine time: no mitigations, no waiting for grace periods or for devices that are not there.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 panic=-1 quiet mitigations=off nokaslr audit=0 tsc=reliable \
    no_timer_check cryptomgr.notests 8250.nr_uarts=1 rcupdate.rcu_expedited=1 nowatchdog";

/// How a guest ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Names of the failed tests.
    pub failures: Vec<String>,
    /// Why the guest is not to be believed, if it is not.
    pub fault: Option<String>,
}

impl Outcome {
    /// Every program ran to its end and none failed.
    pub fn is_good(&self) -> bool {
        self.fault.is_none() && self.failures.is_empty()
    }
}

/// What runs a guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// Software.
    Emulation,
}

impl Accelerator {
    /// KVM if a guest comes up with it: nested, it may be there and yet hang or fail.
    pub fn find(image: &Image, busybox: &Path) -> Result<Self> {
        if fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
        {
            return Ok(Self::Emulation);
        }
        let trial = Job {
            image,
            busybox,
            accelerator: Self::Kvm,
            script: "exit 0\n",
        };
        let outcome = trial.run(KVM_TRIAL, |_| {})?;
        Ok(if outcome.is_good() {
            Self::Kvm
        } else {
            Self::Emulation
        })
    }
}

/// What a guest is to do.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Kernel and modules.
    pub image: &'a Image,
    /// A static busybox.
    pub busybox: &'a Path,
    /// What runs it.
    pub accelerator: Accelerator,
    /// A shell script; its exit code is the guest's.
    pub script: &'a str,
}

impl Job<'_> {
    /// Runs the guest; its lines are given to `see`.
    pub fn run(self, timeout: Duration, mut see: impl FnMut(&str)) -> Result<Outcome> {
        let initramfs = folder().join(format!("initramfs-{}.cpio", std::process::id()));
        initramfs::write(self.image, self.script, self.busybox, &initramfs)?;
        let started = Instant::now();
        let mut guest = Guest(
            self.qemu(&initramfs)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(self.errors())
                .spawn()
                .context("cannot start QEMU")?,
            initramfs,
        );
        let console = lines_of(guest.0.stdout.take().context("QEMU has no output")?);
        let mut watcher = Watcher::default();
        let mut silent_since = started;
        loop {
            let left = timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                let fault = format!("killed after {} s {}", timeout.as_secs(), watcher.place());
                return Ok(watcher.end(Some(fault)));
            }
            match console.recv_timeout(left.min(SILENCE)) {
                Ok(Text::Line(line)) => {
                    silent_since = Instant::now();
                    watcher.see(&line);
                    see(&line);
                }
                Ok(Text::Begun(text)) => watcher.begun(&text),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    if silent_since.elapsed() >= SILENCE {
                        silent_since = Instant::now();
                        eprintln!("  … {} s, {}", started.elapsed().as_secs(), watcher.place());
                    }
                }
            }
        }
        guest.0.wait().context("QEMU")?;
        Ok(watcher.end(None))
    }
    /// What QEMU has to say; of a trial nobody needs to hear it.
    fn errors(self) -> Stdio {
        match self.accelerator {
            Accelerator::Kvm => Stdio::null(),
            Accelerator::Emulation => Stdio::inherit(),
        }
    }

    /// Two CPUs on two nodes, the host's files over 9p, and nothing else.
    fn qemu(self, initramfs: &Path) -> Command {
        // So that QEMU ends with this program, however that ends.
        let mut command = match find_program("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
                command
            }
            None => Command::new("qemu-system-x86_64"),
        };
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        command.args(["-machine", "q35", "-cpu", "max", "-smp", "2"]);
        command.arg("-accel").arg(match self.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Emulation => "tcg,thread=single,tb-size=256",
        });
        command.arg("-m").arg(MEMORY.to_string());
        for node in 0..2 {
            command
                .arg("-object")
                .arg(format!(
                    "memory-backend-ram,id=node{node},size={}M",
                    MEMORY / 2
                ))
                .arg("-numa")
                .arg(format!("node,nodeid={node},cpus={node},memdev=node{node}"));
        }
        command.args(["-serial", "stdio"]);
        command.args([
            "-fsdev",
            "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
        ]);
        command.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
        command.arg("-kernel").arg(&self.image.vmlinux);
        command.arg("-initrd").arg(initramfs);
        command.arg("-append").arg(KERNEL_ARGUMENTS);
        command
    }
}

/// QEMU and its initramfs; both go when it is dropped.
struct Guest(Child, PathBuf);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = fs::remove_file(&self.1);
    }
}

/// busybox, if it runs without libraries.
pub fn busybox() -> Result<PathBuf> {
    find_program("busybox")
        .filter(|program| fs::read(program).is_ok_and(|elf| is_static(&elf)))
        .ok_or_else(|| {
            Missing::new(
                "a static busybox is missing: install it as root (apt-get install busybox-static), \
                 then run ./x vm again"
                    .to_owned(),
            )
            .into()
        })
}

/// Whether no program header of a 64-bit ELF file names a loader (`PT_INTERP`).
fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: [u8; 4] = [3, 0, 0, 0];
    let short = |at: usize| {
        Some(usize::from(u16::from_le_bytes([
            *elf.get(at)?,
            *elf.get(at + 1)?,
        ])))
    };
    // The header's own words: where the program headers are, how large each, how many.
    let headers = || Some((short(0x20)?, short(0x36)?, short(0x38)?));
    headers().is_some_and(|(start, size, count)| {
        (0..count).all(|number| {
            elf.get(start + number * size..)
                .is_some_and(|header| !header.starts_with(&PT_INTERP))
        })
    })
}

/// What a console prints.
enum Text {
    Line(String),
    /// A line that has not ended yet: libtest names a test before it runs it.
    Begun(String),
}

fn lines_of(mut console: impl Read + Send + 'static) -> Receiver<Text> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let (mut pending, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(length @ 1..) = console.read(&mut buffer) {
            pending.extend(
                buffer[..length]
                    .iter()
                    .filter(|byte| !matches!(byte, b'\r' | 0)),
            );
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).take(end).collect();
                let line = String::from_utf8_lossy(&line).into_owned();
                if sender.send(Text::Line(line)).is_err() {
                    return;
                }
            }
            let begun = String::from_utf8_lossy(&pending).into_owned();
            if sender.send(Text::Begun(begun)).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Knows from the console where the guest is.
#[derive(Default)]
struct Watcher {
    program: Option<String>,
    test: Option<String>,
    exit: Option<i32>,
    /// In a list of failed tests.
    listing: bool,
    outcome: Outcome,
}

impl Watcher {
    fn see(&mut self, line: &str) {
        self.begun(line);
        if let Some(name) = line.strip_prefix("GUEST runs ") {
            (self.program, self.test) = (Some(name.to_owned()), None);
        } else if let Some(rest) = line.strip_prefix("GUEST exit ") {
            self.exit = rest
                .split_whitespace()
                .next()
                .and_then(|code| code.parse().ok());
        } else if line.starts_with("test result: ") {
            self.test = None;
        }
        // libtest closes with the names of what failed, indented.
        match line.strip_prefix("    ") {
            Some(name) if self.listing && !name.contains(' ') => {
                let program = self.program.as_deref().unwrap_or_default();
                let name = format!("{program}: {name}");
                if !self.outcome.failures.contains(&name) {
                    self.outcome.failures.push(name);
                }
            }
            _ => self.listing = line == "failures:" || (self.listing && line.is_empty()),
        }
    }

    fn begun(&mut self, text: &str) {
        if let Some(rest) = text.strip_prefix("test ")
            && let Some((name, _)) = rest.split_once(" ... ")
        {
            self.test = Some(name.to_owned());
        }
    }

    fn place(&self) -> String {
        match (&self.program, &self.test) {
            (Some(program), Some(test)) => format!("in {program}: {test}"),
            (Some(program), None) => format!("in {program}"),
            (None, _) => "while it started".to_owned(),
        }
    }

    fn end(mut self, fault: Option<String>) -> Outcome {
        self.outcome.fault = fault.or_else(|| match self.exit {
            Some(0) => None,
            Some(1) if !self.outcome.failures.is_empty() => None,
            Some(code) => Some(format!("a test program ended badly (exit code {code})")),
            None => Some(format!(
                "the guest ended {} (see its console above)",
                self.place()
            )),
        });
        self.outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lines: &str) -> Watcher {
        let mut watcher = Watcher::default();
        lines.lines().for_each(|line| watcher.see(line));
        watcher
    }

    #[test]
    fn a_good_guest_says_so() {
        let text = "GUEST runs a_live\ntest one ... ok\n\ntest result: ok. 1 passed; 0 failed;\nGUEST exit 0 (at 9 s)";
        assert!(after(text).end(None).is_good());
    }

    #[test]
    fn failed_tests_are_named_once() {
        let text = "GUEST runs a_live\ntest m::one ... thread 'm::one' panicked at x:\nFAILED\n\nfailures:\n\n\
                    failures:\n    m::one\n    two\n\ntest result: FAILED. 0 passed; 2 failed;\n    not\nGUEST exit 1 (at 9 s)";
        let outcome = after(text).end(None);
        assert_eq!(outcome.failures, ["a_live: m::one", "a_live: two"]);
        assert_eq!(outcome.fault, None);
        assert!(!outcome.is_good());
    }

    #[test]
    fn a_guest_that_ends_or_hangs_is_told_with_its_test() {
        let mut watcher = after("GUEST booted Linux 6.1\nGUEST runs a_live\ntest one ... ok");
        watcher.begun("test m::two ... ");
        assert_eq!(watcher.place(), "in a_live: m::two");
        let fault = watcher.end(None).fault.unwrap_or_default();
        assert!(
            fault.starts_with("the guest ended in a_live: m::two"),
            "{fault}"
        );
        assert!(!after("GUEST exit 90 (at 3 s)").end(None).is_good());
        assert!(!after("").end(None).is_good());
    }
}
