//! Side-by-side benchmarks: Maru's monitor and its peers, in one run, on one virtual host.
//!
//! ```text
//!   bench-boot, bench-block          this machine: prepare, drive, print the table
//!     └─ a lab host                  everything that is compared runs here, on the same KVM
//!          └─ bench-host             starts the monitors, holds the clock, reads their memory
//!               └─ maru-vmm | QEMU
//!                    └─ bench-guest  /init of the same initramfs under the same kernel for all
//! ```
//!
//! The machine under the lab may be twice as fast in one minute as in the next. So rounds are interleaved: every
//! contender runs once in each, the order changes from round to round, and what counts is the median of the ratios
//! within rounds, not the ratio of medians.

pub mod console;
pub mod contender;
pub mod etcd;
pub mod protocol;
pub mod stage;
pub mod stats;
pub mod table;
pub mod vswitch;
