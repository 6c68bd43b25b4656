//! Files of a VM that go from one host to another, as they are stored.
//!
//! ```text
//!   (none) ──▶ copying ──▶ whole ──▶ given ──▶ (none)
//!     ▲           └───────────┴── called off ──▲
//! ```
//! The step to `given` is a part of the transaction that gives the VM to the other host. Before it, the files are those where they were, and what
//! was copied is nobody's; after it, it is the other way round. So whoever finds files of a copy knows whether they are to be removed.

use serde::{Deserialize, Serialize};
use store::record::Record;
use uuid::Uuid;

use super::FileRef;

/// `copies/ID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRecord {
    /// Its id, by which the files are found while they are made.
    pub id: Uuid,
    /// The VM.
    pub vm: Uuid,
    /// The host that has the files.
    pub from: String,
    /// The host that gets them.
    pub to: String,
    /// The files.
    pub files: Vec<CopiedFile>,
    /// How far it is.
    pub phase: CopyPhase,
}

/// A file that is copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiedFile {
    /// Where it is.
    pub from: FileRef,
    /// Where it is to be.
    pub to: FileRef,
    /// Its length in bytes.
    pub bytes: u64,
    /// What it takes in its file system, in bytes.
    pub allocated: u64,
    /// Who may use it.
    pub mode: u32,
    /// The other host has it already, with the same content.
    pub there: bool,
    /// It is the VM's there: it is deleted with the last one that needs it.
    pub owned: bool,
    /// It is removed where it was, unless other VMs need it.
    pub goes: bool,
}

/// How far files are that are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyPhase {
    /// They are on their way.
    Copying,
    /// They are there, durable.
    Whole,
    /// They are the VM's, which belongs to the other host.
    Given {
        /// What was left at the one host is removed.
        left: bool,
        /// The other one knows that they are not half-made ones.
        arrived: bool,
    },
}

impl Record for CopyRecord {
    const PREFIX: &'static str = "copies/";
    const KIND: &'static str = "copy";
    const VERSION: u32 = 1;
}

impl CopyRecord {
    /// Whether the VM is still where the files were.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, CopyPhase::Copying | CopyPhase::Whole)
    }
}
