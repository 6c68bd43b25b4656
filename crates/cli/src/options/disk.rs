//! `--disk FILE[,format=FORMAT][,ro][,direct][,iops=N]...`, and what replaces the file of a saved VM's disk.

use std::path::PathBuf;
use std::str::FromStr;

use vmm::config::{DiskConfig, DiskFormat, DiskLimits, check_id};

use super::limits::limits;
use super::{OptionError, Parts, absolute};

/// The form of a disk.
pub const DISK_FORM: &str = "FILE[,format=raw|vhdx|vhd][,ro][,direct][,copy-on-read][,queues=N][,serial=TEXT][,id=ID]\
    [,iops=N[,iops-burst=N]][,bandwidth=SIZE[,bandwidth-burst=SIZE]][,burst-seconds=N]";
/// The form of another file for a saved VM's disk.
const DISK_OVERRIDE_FORM: &str = "ID=FILE (with --restore)";

/// virtio 1.2 §5.2.6: the serial number has 20 bytes.
const SERIAL_BYTES: usize = 20;

/// A disk as it is written on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOption {
    path: PathBuf,
    format: Option<DiskFormat>,
    read_only: bool,
    direct: bool,
    copy_on_read: bool,
    queues: u16,
    serial: Option<String>,
    id: Option<String>,
    limits: DiskLimits,
}

impl FromStr for DiskOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<DiskOption, OptionError> {
        let (path, mut parts) = Parts::with_head(text, "the file", DISK_FORM)?;
        let serial = parts.text("serial")?;
        if serial.as_ref().is_some_and(|serial| serial.len() > SERIAL_BYTES) {
            return Err(parts.wrong("serial", format!("a serial number has at most {SERIAL_BYTES} bytes")));
        }
        let format =
            parts.text("format")?.map(|text| text.parse().map_err(|reason| parts.wrong("format", reason))).transpose()?;
        let option = DiskOption {
            path: absolute(path.as_ref()),
            format,
            read_only: parts.flag("ro")?,
            direct: parts.flag("direct")?,
            copy_on_read: parts.flag("copy-on-read")?,
            queues: parts.number("queues")?.unwrap_or(0),
            serial,
            id: device_id(&mut parts)?,
            limits: limits(&mut parts)?,
        };
        if option.copy_on_read && option.read_only {
            return Err(parts.wrong("copy-on-read", "the disk is read-only, so that nothing can be copied to it"));
        }
        parts.finish()?;
        Ok(option)
    }
}

impl DiskOption {
    /// The disk, called `default_id` if it has no name of its own.
    pub fn config(self, default_id: impl FnOnce() -> String) -> DiskConfig {
        DiskConfig {
            id: self.id.unwrap_or_else(default_id),
            path: self.path,
            format: self.format,
            read_only: self.read_only,
            direct: self.direct,
            copy_on_read: self.copy_on_read,
            queues: self.queues,
            serial: self.serial,
            slot: None,
            limits: self.limits,
        }
    }
}

/// Another file for a saved VM's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOverride {
    /// The disk.
    pub id: String,
    /// Its file here.
    pub path: PathBuf,
}

impl FromStr for DiskOverride {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<DiskOverride, OptionError> {
        let form = DISK_OVERRIDE_FORM;
        // The file's name is taken as it is: nothing can follow it.
        match text.split_once('=') {
            Some((id, path)) if !id.is_empty() && !path.is_empty() => {
                Ok(DiskOverride { id: id.into(), path: absolute(path.as_ref()) })
            }
            _ => Err(OptionError::Missing { what: "the disk's name or its file", form }),
        }
    }
}

/// Takes the part `id=ID` out.
pub(super) fn device_id(parts: &mut Parts) -> Result<Option<String>, OptionError> {
    let Some(id) = parts.text("id")? else { return Ok(None) };
    check_id(&id).map_err(|error| parts.wrong("id", error.to_string()))?;
    Ok(Some(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DiskConfig, OptionError> {
        text.parse::<DiskOption>().map(|option| option.config(|| "disk0".into()))
    }

    #[test]
    fn a_file_is_enough() {
        let disk = parse("/d/root.raw").unwrap();
        assert_eq!((disk.id.as_str(), disk.path.to_str(), disk.queues), ("disk0", Some("/d/root.raw"), 0));
        assert!(!disk.read_only && !disk.direct && !disk.copy_on_read && disk.serial.is_none() && disk.format.is_none());
        assert_eq!(disk.limits, DiskLimits::default());
    }

    #[test]
    fn every_part_in_any_order_arrives() {
        let disk = parse("/d/a,,b.raw,id=data,serial=S1,queues=3,direct,format=vhdx,ro,iops=500,bandwidth=1M").unwrap();
        assert_eq!(disk.format, Some(DiskFormat::Vhdx));
        assert_eq!((disk.id.as_str(), disk.path.to_str(), disk.queues), ("data", Some("/d/a,b.raw"), 3));
        assert!(disk.read_only && disk.direct);
        assert_eq!(disk.serial.as_deref(), Some("S1"));
        assert_eq!(disk.limits.iops.map(|rate| rate.per_second.get()), Some(500));
        assert_eq!(disk.limits.bandwidth.map(|rate| rate.per_second.get()), Some(1 << 20));
    }

    #[test]
    fn copies_on_read_have_to_be_asked_for() {
        assert!(parse("/d/a.vhdx,copy-on-read").unwrap().copy_on_read);
    }

    #[test]
    fn mistakes_name_the_part_and_show_the_form() {
        let cases = [
            ("", "the file is missing"),
            ("/d,rw", "there is no part 'rw'"),
            ("/d,ro,ro", "'ro' is given twice"),
            ("/d,ro=1", "it takes no value, but '1' is given"),
            ("/d,queues=many", "'many' is no number"),
            ("/d,queues=70000", "'70000' is no number that can be used"),
            ("/d,queues", "queues: it needs a value"),
            ("/d,format=qcow2", "format: 'qcow2' is no format of disks"),
            ("/d,ro,copy-on-read", "the disk is read-only"),
            ("/d,iops-burst=5", "give iops, too"),
            ("/d,id=a/b", "id: 'a/b' cannot be a device's name"),
            ("/d,serial=123456789012345678901", "at most 20 bytes"),
            ("/d,", "there is no part ''"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.ends_with(DISK_FORM), "{text}: {error}");
        }
    }

    #[test]
    fn an_override_is_a_name_and_a_file() {
        let wanted = DiskOverride { id: "root".into(), path: "/x=1,2".into() };
        assert_eq!("root=/x=1,2".parse(), Ok(wanted));
        for text in ["/x", "=/x", "root="] {
            assert!(text.parse::<DiskOverride>().unwrap_err().to_string().contains("ID=FILE"));
        }
    }
}
