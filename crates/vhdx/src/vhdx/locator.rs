//! The parent locator (MS-VHDX 2.2.4.2.6): how a differencing image names its parent.

use super::error::Damage;
use super::layout::{VHDX_LOCATOR, guid_at, put, u16_at, u32_at};
use crate::Guid;

const MAX_PAIRS: usize = 256;
const NAME: &str = "parent locator";

/// How a differencing image finds and recognizes its parent. At least one path is there in an image that others can use; they are
/// tried in the order in which they stand here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parent {
    /// The parent's data-write identity when the child was made.
    pub linkage: Guid,
    /// A second identity that is right too, while a merge into the parent is under way.
    pub linkage2: Option<Guid>,
    /// Relative to the child's folder.
    pub relative_path: Option<String>,
    /// Starts with `\\?\Volume{...}\`.
    pub volume_path: Option<String>,
    /// Starts with a drive or a share; we store paths of this host in it, as others that run on Unix do.
    pub absolute_path: Option<String>,
    /// Keys that we do not know; kept.
    pub others: Vec<(String, String)>,
}

impl Parent {
    /// Whether a parent with this data-write identity is the one that the child was made from.
    #[must_use]
    pub fn accepts(&self, data_write_guid: Guid) -> bool {
        data_write_guid == self.linkage || Some(data_write_guid) == self.linkage2
    }

    fn pairs(&self) -> Vec<(String, String)> {
        let mut pairs = vec![("parent_linkage".to_owned(), format!("{{{}}}", self.linkage))];
        pairs.extend(self.linkage2.map(|guid| ("parent_linkage2".to_owned(), format!("{{{guid}}}"))));
        let paths = [
            ("relative_path", &self.relative_path),
            ("volume_path", &self.volume_path),
            ("absolute_win32_path", &self.absolute_path),
        ];
        pairs.extend(paths.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?))));
        pairs.extend(self.others.iter().cloned());
        pairs
    }

    /// As a metadata item; an error says what cannot be stored.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        if self.relative_path.is_none() && self.volume_path.is_none() && self.absolute_path.is_none() {
            return Err("there is no path to the parent".to_owned());
        }
        let pairs = self.pairs();
        if pairs.len() > MAX_PAIRS {
            return Err(format!("{} names are more than {MAX_PAIRS}", pairs.len()));
        }
        let mut bytes = vec![0; 20 + pairs.len() * 12];
        put(&mut bytes, 0, &VHDX_LOCATOR.to_bytes());
        put(&mut bytes, 18, &(pairs.len() as u16).to_le_bytes());
        for (index, (key, value)) in pairs.iter().enumerate() {
            let at = 20 + index * 12;
            for (part, text) in [key, value].into_iter().enumerate() {
                let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
                let length = u16::try_from(wide.len()).map_err(|_| format!("'{key}' is longer than 32767 characters"))?;
                if length == 0 || text.contains('\0') {
                    return Err(format!("'{key}' is empty, or holds a zero character"));
                }
                let offset = bytes.len() as u32;
                put(&mut bytes, at + part * 4, &offset.to_le_bytes());
                put(&mut bytes, at + 8 + part * 2, &length.to_le_bytes());
                bytes.extend_from_slice(&wide);
            }
        }
        Ok(bytes)
    }

    pub(crate) fn decode(bytes: &[u8], offset: u64) -> Result<Self, Damage> {
        let damage = |problem: &str| Damage::new(NAME, offset, problem);
        if bytes.len() < 20 {
            return Err(damage("it is too short"));
        }
        if guid_at(bytes, 0) != VHDX_LOCATOR {
            return Err(damage("it does not name a VHDX parent"));
        }
        let count = usize::from(u16_at(bytes, 18));
        if count > MAX_PAIRS || bytes.len() < 20 + count * 12 {
            return Err(damage("it has more entries than there is room for"));
        }
        let mut parent = Self::default();
        let mut seen: Vec<String> = Vec::with_capacity(count);
        for index in 0..count {
            let at = 20 + index * 12;
            let text = |part: usize| {
                let start = u32_at(bytes, at + part * 4) as usize;
                let length = usize::from(u16_at(bytes, at + 8 + part * 2));
                let wide = bytes.get(start..start.saturating_add(length)).filter(|_| length > 0 && length.is_multiple_of(2));
                let units: Vec<u16> = wide?.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
                String::from_utf16(&units).ok()
            };
            let (Some(key), Some(value)) = (text(0), text(1)) else {
                return Err(damage("an entry is not UTF-16 text inside it"));
            };
            if seen.contains(&key) {
                return Err(damage("a key is there twice"));
            }
            let guid = || Guid::parse(&value).ok_or_else(|| damage("the parent's identity is not a GUID"));
            match key.as_str() {
                "parent_linkage" => parent.linkage = guid()?,
                "parent_linkage2" => parent.linkage2 = Some(guid()?),
                "relative_path" => parent.relative_path = Some(value),
                "volume_path" => parent.volume_path = Some(value),
                "absolute_win32_path" => parent.absolute_path = Some(value),
                _ => parent.others.push((key.clone(), value)),
            }
            seen.push(key);
        }
        if !seen.iter().any(|key| key == "parent_linkage") {
            return Err(damage("it has no 'parent_linkage'"));
        }
        Ok(parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locator_reads_back_as_it_was_written() {
        let parent = Parent {
            linkage: Guid::random().unwrap(),
            linkage2: Some(Guid::random().unwrap()),
            relative_path: Some("..\\bäse.vhdx".to_owned()),
            absolute_path: Some("/srv/😀.vhdx".to_owned()),
            others: vec![("x".to_owned(), "y".to_owned())],
            ..Parent::default()
        };
        assert_eq!(Parent::decode(&parent.encode().unwrap(), 0), Ok(parent));
    }

    #[test]
    fn a_locator_without_a_path_is_refused() {
        assert!(Parent::default().encode().is_err());
    }
}
