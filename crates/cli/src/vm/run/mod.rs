//! `maru vm run`: starts a monitor, and joins its console to the terminal until the VM ends.

mod args;
mod config;
mod error;
mod monitor;
mod session;

pub use args::RunArgs;
pub use error::RunError;

use args::ConfigSource;

/// Runs a VM; returns the exit status of the command.
pub fn run(args: &RunArgs) -> Result<u8, RunError> {
    let (config, restore) = match args.source() {
        ConfigSource::Boot(kernel) => (config::boot(args, kernel)?, None),
        ConfigSource::Saved(file) => (config::saved(args, file)?, Some(crate::options::absolute(file))),
    };
    let program = monitor::find()?;
    session::run(&monitor::Start {
        program,
        config,
        restore,
        control: args.control.as_deref().map(crate::options::absolute),
        unconfined: args.unconfined,
    })
}
