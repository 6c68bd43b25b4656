//! The console of a VM.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is told on a console's WebSocket in messages of text. Its bytes, in both directions, are binary messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum ConsoleEvent {
    /// The VM runs. Told first, if it does, and at each start.
    On,
    /// The VM is off. Told first, if it is, and at each end.
    Off,
    /// The viewer was too slow.
    Lost {
        /// How many bytes it has missed.
        bytes: u64,
    },
}
