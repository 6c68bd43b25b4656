//! What can go wrong with a host, and its power states.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::agent::AgentError;

/// Why something with a host did not work.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// QEMU cannot be started.
    #[error("cannot start {program} for {host}: is QEMU installed (Debian: qemu-system-x86)?")]
    Start {
        /// The host.
        host: String,
        /// The program.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// QEMU ended while the host was starting.
    #[error("{host} ended while it was starting ({status}); QEMU says:\n{qemu}\nend of its console:\n{serial}")]
    Ended {
        /// The host.
        host: String,
        /// QEMU's exit status.
        status: String,
        /// End of QEMU's own output.
        qemu: String,
        /// End of the host's console.
        serial: String,
    },
    /// The host did not come up in time.
    #[error("{host} is not ready after {waited:?}; its processors: {processors}; end of its console:\n{serial}")]
    NotReady {
        /// The host.
        host: String,
        /// How long it was waited for.
        waited: Duration,
        /// What its processors are doing: addresses to look up in the kernel's symbols.
        processors: String,
        /// End of the host's console.
        serial: String,
    },
    /// The host is not in the right state.
    #[error("{host} is {state}; it has to be {needed}")]
    State {
        /// The host.
        host: String,
        /// What it is.
        state: PowerState,
        /// What it would have to be.
        needed: &'static str,
    },
    /// The host's agent.
    #[error("{host}: {source}; end of its console:\n{serial}")]
    Agent {
        /// The host.
        host: String,
        /// The cause.
        source: AgentError,
        /// End of the host's console.
        serial: String,
    },
    /// QEMU's control socket.
    #[error("cannot control the QEMU of {host}")]
    Control {
        /// The host.
        host: String,
        /// The cause.
        source: io::Error,
    },
}

/// What a host's power switch shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerState {
    /// Without power.
    Off,
    /// Running.
    On,
    /// Standing still while time goes on.
    Frozen,
}

impl std::fmt::Display for PowerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PowerState::Off => "off",
            PowerState::On => "on",
            PowerState::Frozen => "frozen",
        })
    }
}
