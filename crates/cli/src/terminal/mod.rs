//! The user's terminal joined to a VM's console.

mod proxy;
mod raw;
mod signals;

pub use proxy::{Input, Proxy, Wake};
pub use raw::{RawMode, is_mine};
pub use signals::{StopSignals, stop_on_thread};

/// The key that leaves the console: `Ctrl-]`, as in telnet. Guests hardly use it, unlike `Ctrl-C` or `Ctrl-A`.
pub const ESCAPE_KEY: u8 = 0x1d;
