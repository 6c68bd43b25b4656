//! What fuzzing runs: functions that take any bytes and must come back.
//!
//! ```text
//!   bytes ─▶ Input ─▶ which of a few good files, what to change in it ─▶ open it, and use all that it gives
//! ```
//! The bytes are changes to good files, and not files: of any bytes, hardly any would get past a checksum. The same functions run
//! under cargo-fuzz (`fuzz/`), which looks for bytes that reach new code, and in tests of this workspace with bytes of [`run`].

mod input;
mod model;
pub(crate) mod vhd;
mod vhdx;

pub use input::{Input, patch};
pub use model::model;
pub use vhd::{vhd, vhd_locator};
pub use vhdx::{vhdx, vhdx_locator};

use std::time::{Duration, Instant};

use crate::testing::Random;

/// One of these functions; it answers whether the input was understood: whether a file opened although it was changed.
pub type Body = fn(&[u8]) -> bool;

/// Fewer are no test, however slow the machine is.
const LEAST_INPUTS: u64 = 200;

/// What [`run`] did.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// How many inputs there were.
    pub inputs: u64,
    /// How many of them were understood.
    pub understood: u64,
}

/// Gives a body inputs of random bytes for `MARU_FUZZ_SECONDS`, three if that is not set. They are the same each time, and begin with
/// the one that has the number `MARU_FUZZ_SEED`.
///
/// # Panics
/// If the body does, after printing the number.
pub fn run(body: Body) -> Outcome {
    let number = |name, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let (end, first) = (Instant::now() + Duration::from_secs(number("MARU_FUZZ_SECONDS", 3)), number("MARU_FUZZ_SEED", 0));
    let mut outcome = Outcome { inputs: 0, understood: 0 };
    while outcome.inputs < LEAST_INPUTS || Instant::now() < end {
        let seed = first + outcome.inputs;
        let input = bytes(&mut Random::new(seed));
        match std::panic::catch_unwind(|| body(&input)) {
            Ok(is_understood) => outcome.understood += u64::from(is_understood),
            Err(panic) => {
                eprintln!("MARU_FUZZ_SEED={seed} repeats this");
                std::panic::resume_unwind(panic);
            }
        }
        outcome.inputs += 1;
    }
    println!("{outcome:?}");
    outcome
}

fn bytes(random: &mut Random) -> Vec<u8> {
    let most = [12, 60, 400][random.below(3) as usize];
    let length = 4 + random.below(most);
    (0..length).map(|_| random.next() as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory that a file's sizes could make us take is missed here, also if nothing is ever written into it.
    const MEMORY: u64 = 4 << 30;

    fn survives(body: Body) {
        let limit = rustix::process::Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) };
        rustix::process::setrlimit(rustix::process::Resource::As, limit).unwrap();
        let Outcome { inputs, understood } = run(body);
        assert!(understood > inputs / 20 && understood < inputs, "{understood} of {inputs} understood");
    }

    #[test]
    fn no_change_to_a_vhdx_image_does_harm() {
        survives(vhdx);
    }

    #[test]
    fn no_change_to_a_vhdx_parent_locator_does_harm() {
        survives(vhdx_locator);
    }

    #[test]
    fn no_change_to_a_vhd_image_does_harm() {
        survives(vhd);
    }

    #[test]
    fn no_change_to_a_vhd_parent_locator_does_harm() {
        survives(vhd_locator);
    }
}
