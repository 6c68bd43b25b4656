//! Why a request was not done.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a request was not done, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Error {
    /// What kind of cause, for programs: a word that stays the same.
    #[schema(example = "name-taken")]
    pub code: String,
    /// The cause, for people.
    #[schema(example = "there is a VM called 'web' already")]
    pub message: String,
    /// What can be done about it.
    #[schema(example = "choose another name, or delete that VM first")]
    pub way_out: String,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {}", self.message, self.way_out)
    }
}

impl std::error::Error for Error {}
