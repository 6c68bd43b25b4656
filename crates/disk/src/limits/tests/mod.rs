//! Limits in virtual time.

mod group;
mod limiter;
mod simulation;

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::*;
use simulation::{Client, run};

fn per_second(n: u64) -> NonZeroU64 {
    NonZeroU64::new(n).unwrap()
}

fn operations_only(rate: Rate) -> Limits {
    Limits { operations: Some(rate), bandwidth: None }
}

fn bandwidth_only(rate: Rate) -> Limits {
    Limits { operations: None, bandwidth: Some(rate) }
}

/// Within 5 %, or one request where that is more.
fn close(actual: u64, expected: u64, request: u64) -> bool {
    actual.abs_diff(expected) <= (expected / 20).max(request)
}
