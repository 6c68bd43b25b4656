//! `--disk` and `--net` of `maru vm create`.

use std::str::FromStr;

use super::{OptionError, Parts};
use crate::size::ByteSize;

/// The form of a disk.
pub const MANAGED_DISK_FORM: &str =
    "VOLUME:PATH|size=SIZE|image=IMAGE[,size=SIZE][,file=VOLUME:PATH][,format=raw|vhdx|vhd][,ro][,direct][,id=ID]";
/// The form of a network card.
pub const MANAGED_NET_FORM: &str = "switch=NAME[,vlan=VLAN][,mac=MAC][,name=NAME][,id=ID][,disconnected]|tap=NAME[,...]";

/// A disk as it is written on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedDisk(pub api::Disk);

/// A network card as it is written on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedNet(pub api::Net);

impl FromStr for ManagedDisk {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<ManagedDisk, OptionError> {
        // A new disk may do without a file's name.
        let (file, mut parts) = match text.starts_with("size=") || text.starts_with("image=") {
            true => (String::new(), Parts::new(text, MANAGED_DISK_FORM)?),
            false => Parts::with_head(text, "the file", MANAGED_DISK_FORM)?,
        };
        let size_bytes = parts.value::<ByteSize>("size")?.map(|size| size.0);
        let file = if file.is_empty() { parts.text("file")?.unwrap_or_default() } else { file };
        let format = match parts.text("format")?.as_deref() {
            None => None,
            Some("raw") => Some(api::DiskFormat::Raw),
            Some("vhdx") => Some(api::DiskFormat::Vhdx),
            Some("vhd") => Some(api::DiskFormat::Vhd),
            Some(other) => return Err(parts.wrong("format", format!("'{other}' is no format of disks"))),
        };
        let disk = api::Disk {
            id: parts.text("id")?,
            file,
            size_bytes,
            image: parts.text("image")?,
            format,
            read_only: parts.flag("ro")?,
            direct: parts.flag("direct")?,
        };
        parts.finish()?;
        Ok(ManagedDisk(disk))
    }
}

impl FromStr for ManagedNet {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<ManagedNet, OptionError> {
        let mut parts = Parts::new(text, MANAGED_NET_FORM)?;
        let (switch, tap) = (parts.text("switch")?, parts.text("tap")?);
        match (&switch, &tap) {
            (None, None) => return Err(OptionError::Missing { what: "switch= or tap=", form: MANAGED_NET_FORM }),
            (Some(_), Some(_)) => return Err(parts.wrong("tap", "a network card is on one thing, and switch= is given too")),
            _ => {}
        }
        let vlan = parts.number("vlan")?;
        if vlan.is_some() && tap.is_some() {
            return Err(parts.wrong("vlan", "a switch has VLANs, a TAP has none"));
        }
        let policy = vlan.map(|vlan| api::PortPolicy { vlan: api::VlanMode::Access { vlan }, ..api::PortPolicy::default() });
        let (id, mac, disconnected) = (parts.text("id")?, parts.text("mac")?, parts.flag("disconnected")?);
        let net = api::Net { id, mac, name: parts.text("name")?, switch, policy, tap, disconnected };
        parts.finish()?;
        Ok(ManagedNet(net))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_arrives_and_mistakes_show_the_form() {
        let disk: ManagedDisk = "local:a.img,format=vhdx,ro,direct,id=d".parse().unwrap();
        let format = Some(api::DiskFormat::Vhdx);
        let expected = api::Disk {
            id: Some("d".into()),
            file: "local:a.img".into(),
            size_bytes: None,
            image: None,
            format,
            read_only: true,
            direct: true,
        };
        assert_eq!(disk.0, expected);
        let new: ManagedDisk = "size=20G".parse().unwrap();
        assert_eq!((new.0.file.as_str(), new.0.size_bytes), ("", Some(20 << 30)));
        let new: ManagedDisk = "size=1G,file=fast:a.vhdx".parse().unwrap();
        assert_eq!((new.0.file.as_str(), new.0.size_bytes), ("fast:a.vhdx", Some(1 << 30)));
        let new: ManagedDisk = "image=debian12,size=20G,id=root".parse().unwrap();
        assert_eq!((new.0.image.as_deref(), new.0.size_bytes, new.0.file.as_str()), (Some("debian12"), Some(20 << 30), ""));
        let net: ManagedNet = "tap=t0,mac=52:54:00:00:00:01".parse().unwrap();
        assert_eq!((net.0.tap.as_deref(), net.0.mac.as_deref(), net.0.id), (Some("t0"), Some("52:54:00:00:00:01"), None));
        let net: ManagedNet = "switch=lan,vlan=10,name=front".parse().unwrap();
        assert_eq!((net.0.switch.as_deref(), net.0.policy.unwrap().vlan), (Some("lan"), api::VlanMode::Access { vlan: 10 }));
        assert_eq!(net.0.name.as_deref(), Some("front"));
        for (error, expected) in [
            ("local:a,format=qcow2".parse::<ManagedDisk>().unwrap_err(), "'qcow2' is no format"),
            ("local:a,rw".parse::<ManagedDisk>().unwrap_err(), "no part 'rw'"),
            ("mac=x".parse::<ManagedNet>().unwrap_err(), "switch= or tap= is missing"),
            ("tap=a,switch=b".parse::<ManagedNet>().unwrap_err(), "on one thing"),
            ("tap=a,vlan=1".parse::<ManagedNet>().unwrap_err(), "a TAP has none"),
        ] {
            assert!(error.to_string().contains(expected) && error.to_string().contains("the form is"), "{error}");
        }
    }
}
