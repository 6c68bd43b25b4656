//! Typed records over keys and values.
//!
//! A record is stored as `{"kind":"vm","version":1,"data":{...}}`. Whoever changes the form of a kind raises its version and teaches
//! [`Record::upgrade`] to read what older versions wrote.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Entry, Revision};

/// Something that is stored under `PREFIX` and a name.
pub trait Record: Serialize + DeserializeOwned {
    /// What the keys of all records of this kind begin with, the slash at the end included.
    const PREFIX: &'static str;
    /// The kind, in the stored form.
    const KIND: &'static str;
    /// The version that is written.
    const VERSION: u32;

    /// Brings what an older version wrote into the form of the next version; `None` if there is no way.
    fn upgrade(_version: u32, _data: Value) -> Option<Value> {
        None
    }

    /// The key of the record with this name.
    fn key(name: &str) -> String {
        format!("{}{name}", Self::PREFIX)
    }
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<T> {
    /// What it says.
    pub record: T,
    /// The transaction that changed it last.
    pub revision: Revision,
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not the form of a record, or not that of its kind.
    #[error("the stored record '{key}' is malformed: {source}")]
    Malformed {
        /// Its key.
        key: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Another kind of record.
    #[error("the stored record '{key}' is a '{found}', not a '{wanted}'")]
    Kind {
        /// Its key.
        key: String,
        /// The kind that it says.
        found: String,
        /// The kind that belongs there.
        wanted: &'static str,
    },
    /// Written by a newer program, or by one too old.
    #[error(
        "the stored record '{key}' has version {found}, and this program reads {newest}: use the program that wrote it, or a newer one"
    )]
    Version {
        /// Its key.
        key: String,
        /// Its version.
        found: u32,
        /// The newest version that can be read.
        newest: u32,
    },
}

#[derive(Serialize)]
struct Written<'a, T> {
    kind: &'static str,
    version: u32,
    data: &'a T,
}

/// What is around a record.
#[derive(Deserialize)]
struct Envelope<T> {
    kind: String,
    version: u32,
    data: T,
}

/// The stored form of a record.
///
/// # Panics
/// If the record cannot be JSON: a map with keys that are no text, which is a fault of its type.
pub fn to_bytes<T: Record>(record: &T) -> Vec<u8> {
    let written = Written { kind: T::KIND, version: T::VERSION, data: record };
    serde_json::to_vec(&written).expect("records are plain structures")
}

/// Reads the stored form of a record.
pub fn from_bytes<T: Record>(key: &str, bytes: &[u8]) -> Result<T, RecordError> {
    let malformed = |source| RecordError::Malformed { key: key.into(), source };
    // Nearly all are as they are written today. Whatever is not, is looked at piece by piece, to say what is wrong or to bring it up to date.
    if let Ok(Envelope { kind, version, data }) = serde_json::from_slice::<Envelope<T>>(bytes)
        && kind == T::KIND
        && version == T::VERSION
    {
        return Ok(data);
    }
    let Envelope::<Value> { kind, version, mut data } = serde_json::from_slice(bytes).map_err(malformed)?;
    if kind != T::KIND {
        return Err(RecordError::Kind { key: key.into(), found: kind, wanted: T::KIND });
    }
    let other_version = || RecordError::Version { key: key.into(), found: version, newest: T::VERSION };
    if version > T::VERSION {
        return Err(other_version());
    }
    for old in version..T::VERSION {
        data = T::upgrade(old, data).ok_or_else(other_version)?;
    }
    serde_json::from_value(data).map_err(malformed)
}

/// Reads an entry as a record.
pub fn from_entry<T: Record>(entry: &Entry) -> Result<Stored<T>, RecordError> {
    Ok(Stored { record: from_bytes(&entry.key, &entry.value)?, revision: entry.revision })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Door {
        colour: String,
        width_mm: u32,
    }

    impl Record for Door {
        const PREFIX: &'static str = "doors/";
        const KIND: &'static str = "door";
        const VERSION: u32 = 2;

        // Version 1 had the width in centimetres.
        fn upgrade(version: u32, mut data: Value) -> Option<Value> {
            let width = data.as_object_mut()?.remove("width_cm").filter(|_| version == 1)?.as_u64()?;
            data["width_mm"] = (width * 10).into();
            Some(data)
        }
    }

    #[test]
    fn a_record_survives_the_round_trip_and_so_does_one_of_an_older_version() {
        let door = Door { colour: "red".into(), width_mm: 800 };
        assert_eq!(from_bytes::<Door>("doors/a", &to_bytes(&door)).unwrap(), door);
        let old = br#"{"kind":"door","version":1,"data":{"colour":"red","width_cm":80}}"#;
        assert_eq!(from_bytes::<Door>("doors/a", old).unwrap(), door);
    }

    #[test]
    fn what_is_no_such_record_is_refused_with_its_key() {
        let refusal = |bytes: &str| from_bytes::<Door>("doors/a", bytes.as_bytes()).unwrap_err().to_string();
        assert!(refusal("{").contains("'doors/a' is malformed"));
        assert!(refusal(r#"{"kind":"door","version":2,"data":{"colour":1}}"#).contains("'doors/a' is malformed"));
        assert!(refusal(r#"{"kind":"roof","version":2,"data":{}}"#).contains("is a 'roof', not a 'door'"));
        assert!(refusal(r#"{"kind":"door","version":3,"data":{}}"#).contains("version 3"));
        assert!(refusal(r#"{"kind":"door","version":0,"data":{}}"#).contains("version 0"));
    }
}
