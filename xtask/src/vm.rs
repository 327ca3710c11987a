//! `./x vm`: the live tests on stock Debian kernels, in QEMU.
//!
//! Invariants: a kernel that cannot be had, a guest that does not come up, hangs or panics is an error, never a
//! pass; the host is changed only below `target/vm` (and by installing QEMU, where that is missing); the
//! guest sees the host's files read-only.

mod apt;
mod guest;
mod initramfs;
mod kernel;
mod module;
mod selection;

use crate::build::{Profile, build};
use crate::process::root;
use crate::setup;
use crate::test::Tally;
use anyhow::{Result, bail};
use guest::{Accelerator, Job};
use kernel::{KERNELS, Kernel};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "\
./x vm [KERNEL…] [--ci] [--timeout SECONDS] [--update] [-- WORD…]

Boots stock Debian kernels in QEMU and runs the live tests in them.

  KERNEL             6.1, 6.12, newest or all; without one: all
  --ci               only the tests that a change must pass; without a KERNEL: 6.1 and 6.12; a kernel that
                     fails under emulation is booted once more
  --timeout SECONDS  kills a guest that is not done by then (1200; with --ci 900)
  --update           looks for newer packages of the kernels
  WORD               name of a test binary (sensors_live), or a filter of test names
";

/// A guest that takes longer than that hangs. The whole selection takes minutes where KVM cannot be used.
const TIMEOUT: Duration = Duration::from_mins(20);
/// The same for `--ci`, whose tests took 9 minutes where two guests shared a slow machine.
const CI_TIMEOUT: Duration = Duration::from_mins(15);
/// What `--ci` boots. The newest is not among them: it is another one every few days, and it may skip programs
/// (see docs/kernels.md), which makes exact counts a matter of luck.
const CI_KERNELS: &[&str] = &["6.1", "6.12"];

/// Files that need not be made again.
fn folder() -> PathBuf {
    root().join("target/vm")
}

#[derive(Debug, PartialEq, Eq)]
struct Options {
    kernels: Vec<&'static Kernel>,
    ci: bool,
    update: bool,
    timeout: Duration,
    words: Vec<String>,
}

impl Options {
    /// What is wrong with the arguments, in words.
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self {
            kernels: Vec::new(),
            ci: false,
            update: false,
            timeout: TIMEOUT,
            words: Vec::new(),
        };
        let mut timeout = None;
        let mut names: Vec<&str> = Vec::new();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--ci" => options.ci = true,
                "--update" => options.update = true,
                "--timeout" => {
                    let seconds = arguments.next().and_then(|text| text.parse().ok());
                    let seconds = seconds.ok_or("--timeout wants a number of seconds")?;
                    timeout = Some(Duration::from_secs(seconds));
                }
                "--" => options.words = arguments.by_ref().cloned().collect(),
                "all" => names.extend(KERNELS.iter().map(|kernel| kernel.name)),
                name => names.push(name),
            }
        }
        options.timeout = timeout.unwrap_or(if options.ci { CI_TIMEOUT } else { TIMEOUT });
        if names.is_empty() && options.ci {
            names.extend(CI_KERNELS);
        } else if names.is_empty() {
            names.extend(KERNELS.iter().map(|kernel| kernel.name));
        }
        for name in names {
            let kernel = KERNELS.iter().find(|kernel| kernel.name == name);
            options
                .kernels
                .push(kernel.ok_or_else(|| format!("there is no kernel '{name}'"))?);
        }
        Ok(options)
    }
}

/// Runs the live tests on each kernel and sums them up.
pub fn vm(arguments: &[String]) -> Result<ExitCode> {
    if arguments
        .iter()
        .any(|word| word == "--help" || word == "-h")
    {
        print!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    }
    let options = match Options::parse(arguments) {
        Ok(options) => options,
        Err(fault) => {
            eprintln!("x vm: {fault}\n\n{USAGE}");
            return Ok(ExitCode::from(2));
        }
    };
    if std::env::consts::ARCH != "x86_64" {
        return Err(setup::Missing::new(
            "./x vm boots x86_64 kernels, and this machine is not one".to_owned(),
        )
        .into());
    }
    if root().starts_with("/tmp") {
        bail!(
            "{} is below /tmp, of which guests have their own: move it elsewhere",
            root().display()
        );
    }
    setup::tools(guest::TOOLS)?;
    let busybox = guest::busybox()?;
    let images = options
        .kernels
        .iter()
        .map(|kernel| kernel.image(options.update))
        .collect::<Result<Vec<_>>>()?;
    build(Profile::Dev)?;
    let tests = selection::select(&selection::built()?, options.ci, &options.words);
    if tests.is_empty() {
        bail!("no test binary was chosen by {:?}", options.words);
    }
    let Some(first) = images.first() else {
        bail!("no kernel was chosen");
    };
    let accelerator = Accelerator::find(first, &busybox)?;
    println!(
        "{} programs on {} kernels, with {}",
        tests.len(),
        images.len(),
        match accelerator {
            Accelerator::Kvm => "KVM",
            Accelerator::Emulation => "software emulation (KVM cannot be used here): slow",
        }
    );
    let mut lines = Vec::new();
    let mut good = true;
    for (kernel, image) in options.kernels.iter().zip(&images) {
        let module = module::xid(image)?;
        let script = selection::job(kernel.name, module.as_deref(), &tests);
        let job = Job {
            image,
            busybox: &busybox,
            accelerator,
            script: &script,
        };
        let mut result = attempt(kernel, &job, options.timeout)?;
        lines.append(&mut result.lines);
        // Emulated processors do things that real ones do not, and their time runs away under load.
        if !result.good && accelerator == Accelerator::Emulation && options.ci {
            println!("\n{} under emulation: once more", kernel.name);
            result = attempt(kernel, &job, options.timeout)?;
            lines.push(format!("{:7} a second time, under emulation:", kernel.name));
            lines.append(&mut result.lines);
        }
        good &= result.good;
    }
    println!("\n{}", lines.join("\n"));
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What a guest showed.
struct Attempt {
    good: bool,
    /// For the summary.
    lines: Vec<String>,
}

/// Boots a guest and sums up what it showed.
fn attempt(kernel: &Kernel, job: &Job<'_>, timeout: Duration) -> Result<Attempt> {
    println!("\n── {} (Linux {}) ──", kernel.name, job.image.release);
    let started = Instant::now();
    let mut tally = Tally::default();
    let outcome = job.run(timeout, |line| {
        println!("{line}");
        tally.see(line);
    })?;
    let seconds = started.elapsed().as_secs();
    let passed = tally.passed();
    // Nothing that ran and nothing that failed would be no proof.
    let good = outcome.is_good() && tally.failed == 0 && passed > 0;
    let mut lines = vec![format!(
        "{:7} Linux {}: {passed} passed, {} failed, {} skipped, {seconds} s{}",
        kernel.name,
        job.image.release,
        tally.failed,
        tally.skipped(),
        outcome
            .fault
            .map_or_else(String::new, |fault| format!("; {fault}")),
    )];
    let failed = outcome.failures.iter();
    lines.extend(failed.map(|name| format!("          failed: {name}")));
    let skipped = tally.skips.iter();
    lines.extend(skipped.map(|skip| format!("          skipped: {skip}")));
    Ok(Attempt { good, lines })
}

#[cfg(test)]
mod tests {
    use super::Options;

    fn parse(words: &str) -> Result<Options, String> {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        Options::parse(&words)
    }

    fn kernels(words: &str) -> Vec<&'static str> {
        parse(words).map_or_else(
            |_| Vec::new(),
            |options| options.kernels.iter().map(|k| k.name).collect(),
        )
    }

    #[test]
    fn without_a_name_every_kernel_is_meant() {
        assert_eq!(kernels(""), ["6.1", "6.12", "newest"]);
        assert_eq!(kernels("all"), ["6.1", "6.12", "newest"]);
        assert_eq!(kernels("--ci"), ["6.1", "6.12"]);
        assert_eq!(kernels("--ci newest"), ["newest"]);
    }

    #[test]
    fn words_after_two_dashes_are_for_the_tests() {
        let options = parse("6.1 --timeout 60 -- act_live all").expect("good arguments");
        assert_eq!(options.words, ["act_live", "all"]);
        assert_eq!(options.timeout.as_secs(), 60);
    }

    #[test]
    fn faults_are_told() {
        assert!(parse("5.10").is_err_and(|fault| fault.contains("5.10")));
        assert!(parse("--timeout soon").is_err());
    }
}
