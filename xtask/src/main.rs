//! The commands behind `./x`. Run `./x help`.

mod bpf;
mod build;
mod process;
mod setup;
mod test;
mod vm;
mod wasm;

use anyhow::Result;
use std::process::ExitCode;

const HELP: &str = "\
./x COMMAND [ARGUMENTS]

  setup          find or install what building needs (BPF and WASM toolchains)
  build [--dev]  build the kernel programs, the policies and the agent (release)
  demo           build, then show Palisade at work on this kernel (under a minute)
  test [FILTER]  run every test that this machine can run; what cannot run is counted as skipped
  soak           the same tests with larger numbers (PALISADE_SOAK=1)
  vm [KERNEL]    run the live tests in QEMU on stock kernels: 6.1, 6.12, newest, all (./x vm --help)
  lint           format, clippy with warnings denied
  bench [NAME]   print the benchmarks' ratios; or overhead, storm, footprint, hooks (docs/performance.md)
  help           this text

Exit codes: 0 done; 1 something failed; 2 unknown command; 5 something is missing on this machine.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &[][..]),
    };
    match dispatch(command, rest) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("x {command}: {error:#}");
            ExitCode::from(if error.is::<setup::Missing>() { 5 } else { 1 })
        }
    }
}

fn dispatch(command: &str, rest: &[String]) -> Result<ExitCode> {
    match command {
        "setup" => setup::setup().map(|_| ExitCode::SUCCESS),
        "build" => {
            let profile = if rest.iter().any(|word| word == "--dev") {
                build::Profile::Dev
            } else {
                build::Profile::Release
            };
            build::build(profile).map(|()| ExitCode::SUCCESS)
        }
        "demo" => build::demo(rest),
        "test" => test::test(rest, test::Size::Normal),
        "soak" => test::test(rest, test::Size::Soak),
        "vm" => vm::vm(rest),
        "lint" => test::lint().map(|()| ExitCode::SUCCESS),
        "bench" => build::bench(rest),
        "help" => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => {
            eprintln!("x: there is no command '{other}'\n\n{HELP}");
            Ok(ExitCode::from(2))
        }
    }
}
