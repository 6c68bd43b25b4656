//! Runs in the lab host: starts monitors, holds the clock, reads their memory.

mod block;
mod boot;
mod memory;
mod trace;

use std::process::ExitCode;

use bench::protocol::Order;

fn main() -> ExitCode {
    let order = std::env::args().nth(1).unwrap_or_default();
    let result = match serde_json::from_str(&order) {
        Ok(Order::Boot(order)) => boot::run(&order),
        Ok(Order::Block(order)) => block::run(&order),
        Err(error) => Err(anyhow::anyhow!("usage: bench-host ORDER, as bench-boot and bench-block give it ({error})")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-host: {error:#}");
            ExitCode::FAILURE
        }
    }
}
