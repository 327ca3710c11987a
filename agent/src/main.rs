//! The `palisade` command: parse, run, and turn the result into an exit code.

use clap::Parser;
use palisade::act::keeper;
use palisade::cli::{self, Cli};
use palisade::exit;
use palisade::policy::compiler;
use std::process::ExitCode;

fn main() -> ExitCode {
    // The agent's helpers: the keeper is to be small, so it does not touch the command line's code.
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(word) if word == keeper::SUBCOMMAND => return keeper::main(arguments),
        Some(word) if word == compiler::SUBCOMMAND => return compiler::main(arguments),
        _ => {}
    }
    let cli = Cli::parse();
    match cli::run(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("palisade: {error:#}");
            ExitCode::from(exit::of(&error))
        }
    }
}
