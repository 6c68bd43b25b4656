//! What the switch remembers: stations, connections, flows. All are bounded; a flow holds numbers of entries of the other two with
//! their versions, so that it can see in one comparison that one of them is no longer what it was.

mod connections;
mod flows;
mod rules;
mod slab;
mod stations;

pub use connections::{Connections, Remembered};
pub use flows::{Basis, Flow, FlowKey, Flows, Receiver};
pub use rules::{RuleCount, RuleCounts};
pub use slab::Ref;
pub use stations::{Domain, Learned, Station, Stations};

/// Milliseconds on the caller's monotonic clock.
pub type Millis = u64;
