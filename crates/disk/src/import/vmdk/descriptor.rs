//! The text that says what a disk is made of.

use std::io;

use super::{invalid, unsupported};

/// What is of interest in a descriptor.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    has_parent: bool,
    pub extents: Vec<Line>,
}

/// A line that describes an extent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub sectors: u64,
    pub place: Place,
}

/// Where an extent's data is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Zero,
    Flat { name: String, first_sector: u64 },
    Sparse { name: String },
}

impl Descriptor {
    /// Understands a descriptor, which ends with the text or with its first zero byte.
    pub fn parse(text: &[u8]) -> io::Result<Descriptor> {
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        let mut descriptor = Descriptor::default();
        let mut is_versioned = false;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            let number = index + 1;
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let access = line.split_ascii_whitespace().next().unwrap_or_default();
            if ["RW", "RDONLY", "NOACCESS"].contains(&access) {
                descriptor.extents.push(extent(line, number)?);
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                return Err(invalid(format!("line {number} of its descriptor is neither a value nor an extent")));
            };
            let value = value.trim().trim_matches('"');
            match key.trim().to_ascii_lowercase().as_str() {
                // 2 and 3 differ in what the data base at the end may say.
                "version" if ["1", "2", "3"].contains(&value) => is_versioned = true,
                "version" => return Err(unsupported(format!("its descriptor is of version '{value}'"))),
                "parentcid" => descriptor.has_parent |= !value.eq_ignore_ascii_case("ffffffff"),
                "parentfilenamehint" => descriptor.has_parent = true,
                _ => {}
            }
        }
        if !is_versioned {
            return Err(invalid("its descriptor has no version"));
        }
        Ok(descriptor)
    }

    /// Refuses a disk that holds only what differs from another.
    pub fn check_alone(&self) -> io::Result<()> {
        if self.has_parent { Err(unsupported("it is a snapshot, and needs the disk that it was made of")) } else { Ok(()) }
    }
}

/// `ACCESS SECTORS TYPE "NAME" FIRST-SECTOR`; the type decides how much of it there is.
fn extent(line: &str, number: usize) -> io::Result<Line> {
    let broken = |what: &str| invalid(format!("line {number} of its descriptor: {what}"));
    let mut words = line.splitn(4, |it: char| it.is_ascii_whitespace());
    let access = words.next().unwrap_or_default();
    if access == "NOACCESS" {
        return Err(unsupported("it has an extent that must not be read"));
    }
    let sectors = words.next().and_then(|it| it.parse().ok()).ok_or_else(|| broken("no number of sectors"))?;
    let kind = words.next().unwrap_or_default();
    let rest = words.next().unwrap_or_default().trim();
    let name = || {
        let (name, rest) = rest.strip_prefix('"').and_then(|it| it.rsplit_once('"')).ok_or_else(|| broken("no file name"))?;
        if name.is_empty() { Err(broken("an empty file name")) } else { Ok((name.to_owned(), rest.trim())) }
    };
    let place = match kind {
        "ZERO" => Place::Zero,
        // VMFS is what ESX calls its own flat files.
        "FLAT" | "VMFS" => {
            let (name, rest) = name()?;
            let first_sector = match rest {
                "" => 0,
                text => text.parse().map_err(|_| broken("the extent's place in its file is no number"))?,
            };
            Place::Flat { name, first_sector }
        }
        "SPARSE" => Place::Sparse { name: name()?.0 },
        other => return Err(unsupported(format!("it has an extent of type '{other}'"))),
    };
    Ok(Line { sectors, place })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_found_with_names_of_any_kind() {
        let text = b"# Disk DescriptorFile\r\nversion=1\r\nparentCID=ffffffff\r\nRW 8 SPARSE \"a b \"c\".vmdk\"\n\
            RW 16 FLAT \"flat.vmdk\" 7\nRDONLY 2 VMFS \"x-flat.vmdk\"\nRW 4 ZERO\nddb.uuid = \"x\"\n\0\xff garbage";
        let descriptor = Descriptor::parse(text).unwrap();
        descriptor.check_alone().unwrap();
        let flat = |name: &str, first_sector| Place::Flat { name: name.to_owned(), first_sector };
        let wanted = [
            Line { sectors: 8, place: Place::Sparse { name: "a b \"c\".vmdk".to_owned() } },
            Line { sectors: 16, place: flat("flat.vmdk", 7) },
            Line { sectors: 2, place: flat("x-flat.vmdk", 0) },
            Line { sectors: 4, place: Place::Zero },
        ];
        assert_eq!(descriptor.extents, wanted);
    }

    #[test]
    fn what_is_not_understood_names_its_line() {
        for (line, wanted) in [
            ("RW x FLAT \"a\" 0", "line 2 of its descriptor: no number"),
            ("RW 8 FLAT a 0", "no file name"),
            ("RW 8 FLAT \"a\" z", "is no number"),
            ("RW 8 SPARSE \"\"", "empty"),
            ("RW 8 VMFSRDM \"a\"", "type 'VMFSRDM'"),
            ("NOACCESS 8 ZERO", "must not be read"),
            ("what is this", "line 2 of its descriptor is neither"),
            ("version=4", "version '4'"),
        ] {
            let error = Descriptor::parse(format!("version=1\n{line}").as_bytes()).unwrap_err().to_string();
            assert!(error.contains(wanted), "{line}: {error}");
        }
        assert!(Descriptor::parse(b"RW 8 ZERO").is_err());
    }
}
