//! The entropy device's saved state.

/// The saved state of an entropy device: it has none apart from its queue.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RngState {}
