//! A virtual host: one QEMU process that boots the appliance.
//!
//! ```text
//!        power_on                    freeze
//!   off ──────────► starting ─► on ◄────────► frozen
//!    ▲    power_cut, QEMU ended  │               │
//!    └───────────────────────────┴───────────────┘
//! ```
//!
//! All methods take `&self` and may be called from several threads. QEMU is killed when the host is dropped and when this
//! process ends, however it ends.

mod accelerator;
mod access;
mod disk;
mod error;
mod keeper;
mod machine;
mod power;
mod qemu;
mod qmp;
mod resets;
mod share;

pub use accelerator::Accelerator;
pub use disk::DiskFault;
pub use error::{HostError, PowerState};
pub use machine::Host;
pub use qemu::{DiskFile, HostSpec, SHARED_DIR, STATE_DIR, Sharing};
