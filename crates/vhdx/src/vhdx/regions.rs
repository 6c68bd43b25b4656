//! The region table (MS-VHDX 2.2.3): where the BAT and the metadata are.

use super::error::{Damage, OpenError, reading};
use super::layout::{
    BAT, MAX_BAT, MAX_METADATA, METADATA, REGION_TABLE_SIZE, REGION_TABLES, UNIT, checksum, guid_at, put, put_checksum, read_vec,
    u32_at, u64_at,
};
use crate::{Guid, Storage};

const MAX_ENTRIES: u32 = 2047;
const NAME: &str = "region table";

/// One region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) id: Guid,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) required: bool,
}

impl Region {
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }
}

/// All regions, also those that we do not know: they stay as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Regions {
    pub(crate) list: Vec<Region>,
}

impl Regions {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; REGION_TABLE_SIZE];
        put(&mut bytes, 0, b"regi");
        put(&mut bytes, 8, &(self.list.len() as u32).to_le_bytes());
        for (index, region) in self.list.iter().enumerate() {
            let at = 16 + index * 32;
            put(&mut bytes, at, &region.id.to_bytes());
            put(&mut bytes, at + 16, &region.offset.to_le_bytes());
            put(&mut bytes, at + 24, &region.length.to_le_bytes());
            put(&mut bytes, at + 28, &u32::from(region.required).to_le_bytes());
        }
        put_checksum(&mut bytes);
        bytes
    }

    fn decode(bytes: &[u8], offset: u64) -> Result<Self, Damage> {
        if &bytes[..4] != b"regi" {
            return Err(Damage::new(NAME, offset, "its signature is not 'regi'"));
        }
        if checksum(bytes) != u32_at(bytes, 4) {
            return Err(Damage::new(NAME, offset, "its checksum is wrong"));
        }
        let count = u32_at(bytes, 8);
        if count > MAX_ENTRIES {
            return Err(Damage::new(NAME, offset, format!("{count} entries are more than {MAX_ENTRIES}")));
        }
        let entry = |index: u32| {
            let at = 16 + index as usize * 32;
            Region {
                id: guid_at(bytes, at),
                offset: u64_at(bytes, at + 16),
                length: u32_at(bytes, at + 24),
                required: u32_at(bytes, at + 28) & 1 != 0,
            }
        };
        Ok(Self { list: (0..count).map(entry).collect() })
    }

    /// Reads the first copy that is valid. The second part says what is wrong with a copy that is not.
    pub(crate) fn read(storage: &dyn Storage) -> Result<(Self, Vec<Damage>), OpenError> {
        let mut damages = Vec::new();
        let mut found: Option<Self> = None;
        for offset in REGION_TABLES {
            let bytes = read_vec(storage, offset, REGION_TABLE_SIZE).map_err(reading(NAME, offset))?;
            match Self::decode(&bytes, offset) {
                Ok(table) => match &found {
                    Some(first) if *first != table => {
                        damages.push(Damage::new(NAME, offset, "it differs from the first copy"));
                    }
                    Some(_) => {}
                    None => found = Some(table),
                },
                Err(damage) => damages.push(damage),
            }
        }
        match found {
            Some(table) => Ok((table, damages)),
            None => Err(damages.swap_remove(0).into()),
        }
    }

    /// Refuses what must not be ignored: regions in impossible places, twice, or required and unknown.
    pub(crate) fn validate(&self, log: (u64, u64)) -> Result<(), OpenError> {
        let at = REGION_TABLES[0];
        let mut places = vec![(log.0, log.0 + log.1)];
        for (index, region) in self.list.iter().enumerate() {
            let (id, length) = (region.id, u64::from(region.length));
            let damage = |problem: String| OpenError::from(Damage::new(NAME, at + 16 + index as u64 * 32, problem));
            if self.list[..index].iter().any(|other| other.id == id) {
                return Err(damage(format!("region {id} is there twice")));
            }
            if region.offset < UNIT || !region.offset.is_multiple_of(UNIT) || !length.is_multiple_of(UNIT) || length == 0 {
                return Err(damage(format!("region {id}: {length} bytes at offset {} are not whole megabytes", region.offset)));
            }
            if region.offset.checked_add(length).is_none() {
                return Err(damage(format!("region {id}: offset {} is not possible", region.offset)));
            }
            let limit = if id == BAT { MAX_BAT } else { MAX_METADATA };
            match id {
                BAT | METADATA if length > limit => return Err(damage(format!("region {id}: {length} bytes are too many"))),
                BAT | METADATA => {}
                _ if region.required => {
                    let problem = format!("region {id} is required and not known here");
                    return Err(OpenError::Unsupported { structure: NAME, offset: at, problem });
                }
                _ => {}
            }
            places.push((region.offset, region.end()));
        }
        places.sort_unstable();
        if let Some(pair) = places.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            return Err(Damage::new(NAME, at, format!("a region and another or the log overlap at offset {}", pair[1].0)).into());
        }
        self.get(BAT)?;
        self.get(METADATA)?;
        Ok(())
    }

    pub(crate) fn get(&self, id: Guid) -> Result<Region, OpenError> {
        let missing = || Damage::new(NAME, REGION_TABLES[0], format!("region {id} is missing")).into();
        self.list.iter().find(|region| region.id == id).copied().ok_or_else(missing)
    }
}
