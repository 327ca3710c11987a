//! The `palisade` command: parse, run, and turn the result into an exit code.

use clap::Parser;
use palisade::cli::{self, Cli};
use palisade::exit;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli::run(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("palisade: {error:#}");
            ExitCode::from(exit::of(&error))
        }
    }
}
