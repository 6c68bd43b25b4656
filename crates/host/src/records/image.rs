//! An image, as it is stored.

use serde::{Deserialize, Serialize};
use store::record::Record;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{BootRecord, FileRef};

/// `images/NAME`. There is none before its file is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// What it is, for people.
    pub description: String,
    /// Its file, a VHDX image without a parent.
    pub file: FileRef,
    /// Bytes of the disk.
    pub virtual_bytes: u64,
    /// What it was made from, for people.
    pub source: String,
    /// What that was.
    pub source_format: ImageFormatRecord,
    /// Its length in bytes.
    pub source_bytes: u64,
    /// SHA-256 of it, in hexadecimal.
    pub sha256: String,
    /// What a VM boots that is made from it and says nothing else.
    pub boot: Option<BootRecord>,
    /// The token that asked for it.
    pub created_by: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Whether its file is being removed: it is nobody's any more.
    pub deleting: bool,
}

impl Record for ImageRecord {
    const PREFIX: &'static str = "images/";
    const KIND: &'static str = "image";
    const VERSION: u32 = 1;
}

/// What a file means that an image is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the words of api::ImageFormat, which says what they mean")]
pub enum ImageFormatRecord {
    Raw,
    Qcow2,
    Vmdk,
    Vhd,
    Vhdx,
}

/// An image to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportImageRecord {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// What it is, for people.
    pub description: String,
    /// Where it is to be.
    pub volume: String,
    /// What it is made from.
    pub source: ImageSourceRecord,
    /// What that means; found out if there is nothing here.
    pub format: Option<ImageFormatRecord>,
    /// What SHA-256 of it must be, in hexadecimal.
    pub sha256: Option<String>,
    /// What a VM boots that is made from it and says nothing else.
    pub boot: Option<BootRecord>,
}

/// What an image is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum ImageSourceRecord {
    /// A file that stays.
    File {
        /// Which.
        file: FileRef,
    },
    /// A file that was sent, in the volume of the image. It goes when the task has ended.
    Upload {
        /// What its directory is called by.
        id: Uuid,
        /// SHA-256 of it, in hexadecimal.
        sha256: String,
    },
}

impl From<api::ImageFormat> for ImageFormatRecord {
    fn from(format: api::ImageFormat) -> ImageFormatRecord {
        match format {
            api::ImageFormat::Raw => ImageFormatRecord::Raw,
            api::ImageFormat::Qcow2 => ImageFormatRecord::Qcow2,
            api::ImageFormat::Vmdk => ImageFormatRecord::Vmdk,
            api::ImageFormat::Vhd => ImageFormatRecord::Vhd,
            api::ImageFormat::Vhdx => ImageFormatRecord::Vhdx,
        }
    }
}

impl From<ImageFormatRecord> for api::ImageFormat {
    fn from(format: ImageFormatRecord) -> api::ImageFormat {
        match format {
            ImageFormatRecord::Raw => api::ImageFormat::Raw,
            ImageFormatRecord::Qcow2 => api::ImageFormat::Qcow2,
            ImageFormatRecord::Vmdk => api::ImageFormat::Vmdk,
            ImageFormatRecord::Vhd => api::ImageFormat::Vhd,
            ImageFormatRecord::Vhdx => api::ImageFormat::Vhdx,
        }
    }
}
