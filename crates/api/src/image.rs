//! Images: disks that VMs are made from.

use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::Boot;

/// A disk that nobody changes, and that disks of VMs are based on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Its id, for ever.
    pub id: Uuid,
    /// Its name, one of its kind on the host.
    pub name: String,
    /// What it is, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The volume that it is in.
    pub volume: String,
    /// Its file: a VHDX image, which nobody may write.
    #[schema(example = "local:images/7d9b5e0a-53f2-4d9e-9f0f-3f6f3a3a2b11.vhdx")]
    pub file: String,
    /// The size of the disk in bytes: no disk that is made from it is smaller.
    pub virtual_bytes: u64,
    /// What its file takes, in bytes.
    pub file_bytes: u64,
    /// Where it came from: a file of a volume, or `upload`.
    #[schema(example = "local:debian-12.qcow2")]
    pub source: String,
    /// What that was.
    pub source_format: ImageFormat,
    /// How long that was, in bytes.
    pub source_bytes: u64,
    /// SHA-256 of that, in hexadecimal.
    pub sha256: String,
    /// What a VM boots that is made from it and says nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    /// The names of the VMs whose disks are based on it.
    pub vms: Vec<String>,
    /// The name of the token that it was made with.
    pub created_by: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Why it cannot be used: its file is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a file means that an image is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// The file is the disk.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// A VHD image.
    Vhd,
    /// A VHDX image.
    Vhdx,
}

impl std::fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Vmdk => "VMDK",
            ImageFormat::Vhd => "VHD",
            ImageFormat::Vhdx => "VHDX",
        })
    }
}

/// An image to make from a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewImage {
    /// Its name: letters, digits, `-`, `_` and `.`, at most 64; not the form of a UUID.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$", example = "debian12")]
    pub name: String,
    /// The file, in a volume: a disk that needs no other file.
    #[schema(example = "local:debian-12.qcow2")]
    pub source: String,
    /// The volume for the image; that of the file if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// What SHA-256 of the file must be, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[0-9A-Fa-f]{64}$")]
    pub sha256: Option<String>,
    /// What the file means; found out by what is in it if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ImageFormat>,
    /// What it is, for people: 1000 characters at most.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(max_length = 1000)]
    pub description: String,
    /// What a VM boots that is made from it and says nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
}

/// What to change of an image. What is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageChange {
    /// Another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$")]
    pub name: Option<String>,
    /// What it is, for people: 1000 characters at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 1000)]
    pub description: Option<String>,
    /// What a VM boots that is made from it and says nothing else; `null` for nothing.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Boot>)]
    pub boot: Option<Option<Boot>>,
}

/// Tells `null` from what is left out.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<Boot>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}
