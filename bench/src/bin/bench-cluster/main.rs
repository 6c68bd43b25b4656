//! `make bench-cluster`: 128 hosts and 20,000 VMs: all started, 4 hosts lost at once, 8 drained.
//!
//! ```text
//!   deciding   one node, a store in memory: how long the core thinks
//!   scale      a node for each host, three members of etcd: how long it takes until everything runs
//! ```

mod deciding;
mod options;
mod scale;
mod shape;

use std::process::ExitCode;

use options::{Options, Parts};

fn main() -> ExitCode {
    match options::parse().and_then(|options| options.map_or(Ok(()), |options| run(&options))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    if options.parts != Parts::Etcd {
        deciding::run(options)?;
    }
    if options.parts != Parts::Core {
        scale::run(options)?;
    }
    Ok(())
}
