//! A volume, as it is stored.

use serde::{Deserialize, Serialize};
use store::record::Record;
use uuid::Uuid;

/// Usual thresholds of alarms, in per cent.
const WARNING: u8 = 80;
const CRITICAL: u8 = 95;

/// `volumes/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its name.
    pub name: String,
    /// Where it is; nothing for one that the command line of `marud` names.
    pub place: Option<PlaceRecord>,
    /// From how much of it on there is a warning, in per cent used.
    pub warning_percent: u8,
    /// From how much of it on it is nearly full, in per cent used.
    pub critical_percent: u8,
    /// How full it was when it was looked at last.
    pub level: LevelRecord,
    /// For one that all hosts of a cluster see: what a file in it says, by which a host knows that it sees this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<Uuid>,
}

/// What a volume is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum PlaceRecord {
    /// A directory of the host.
    Directory {
        /// Which.
        path: String,
    },
}

/// How full a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LevelRecord {
    /// There is space.
    Ok,
    /// It becomes full.
    Warning,
    /// It is nearly full.
    Critical,
}

impl VolumeRecord {
    /// One of the command line, with the usual thresholds.
    pub fn new(name: &str) -> VolumeRecord {
        VolumeRecord {
            name: name.into(),
            place: None,
            warning_percent: WARNING,
            critical_percent: CRITICAL,
            level: LevelRecord::Ok,
            shared: None,
        }
    }
}

impl Record for VolumeRecord {
    const PREFIX: &'static str = "volumes/";
    const KIND: &'static str = "volume";
    const VERSION: u32 = 1;
}

impl From<LevelRecord> for api::VolumeLevel {
    fn from(level: LevelRecord) -> api::VolumeLevel {
        match level {
            LevelRecord::Ok => api::VolumeLevel::Ok,
            LevelRecord::Warning => api::VolumeLevel::Warning,
            LevelRecord::Critical => api::VolumeLevel::Critical,
        }
    }
}
