//! `maru lab` as a program of its own, for work on the lab: `cargo run --release -p maru-lab --example lab -- up`.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: lab::cli::LabCommand,
}

fn main() -> ExitCode {
    match lab::cli::run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = cause {
                eprintln!("lab: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}
