//! Changes what a differencing image says about its parent.

use super::error::{ChangeError, Damage};
use super::image::Image;
use super::layout::{PAGE, PARENT_LOCATOR};
use super::locator::Parent;
use super::metadata::{Item, TABLE_SIZE};
use super::patch::Patch;
use super::session::Changes;
use crate::MapError;

impl Image {
    /// Gives the image other facts about its parent: new paths after a move, a second linkage before a merge, or another parent after
    /// one. Durable when it returns. The image's own data-write identity stays: its children do not notice.
    ///
    /// # Errors
    /// If the image has no parent, the facts cannot be stored, or a table could not be written.
    pub fn set_parent(&self, parent: &Parent) -> Result<(), ChangeError> {
        let content = parent.encode().map_err(ChangeError::Parent)?;
        let mut state = self.lock_idle();
        if !self.geometry.has_parent {
            return Err(ChangeError::Parent("the image has no parent".to_owned()));
        }
        self.start_session(&mut state, Changes::Tables)?;
        let region = state.regions.metadata()?;
        let mut items = state.items.clone();
        let missing = || MapError::from(Damage::new("metadata table", region.offset, "the parent locator is missing"));
        let index = items.iter().position(|item| item.id == PARENT_LOCATOR).ok_or_else(missing)?;
        let others: Vec<Item> = items.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, item)| *item).collect();
        let room = || ChangeError::Parent(format!("{} bytes find no room among the image's metadata", content.len()));
        let offset = find_room(&others, content.len() as u32, region.length).ok_or_else(room)?;
        (items[index].offset, items[index].length) = (offset, content.len() as u32);

        let mut patch = Patch::new(self);
        patch.put(region.offset + u64::from(offset), &content)?;
        patch.put_items(region, &state.items, &items)?;
        let pages = patch.into_pages();
        if pages.len() > self.log_capacity {
            return Err(ChangeError::Parent(format!("{} bytes do not fit into the image's log", content.len())));
        }
        self.commit_pages(&mut state, pages)?;
        state.items = items;
        state.parent = Some(parent.clone());
        Ok(())
    }
}

/// The first page of the region from which on `length` bytes are nobody else's.
fn find_room(others: &[Item], length: u32, region: u32) -> Option<u32> {
    let mut taken: Vec<(u32, u32)> = others.iter().map(|item| (item.offset, item.offset + item.length)).collect();
    taken.sort_unstable();
    let mut start = TABLE_SIZE as u32;
    for (from, to) in taken {
        if from.saturating_sub(start) >= length {
            break;
        }
        start = start.max(to.next_multiple_of(PAGE as u32));
    }
    (region.saturating_sub(start) >= length).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Guid;

    #[test]
    fn room_is_found_between_items_and_behind_them() {
        let item = |offset, length| Item { id: Guid::ZERO, offset, length, flags: 0 };
        let start = TABLE_SIZE as u32;
        assert_eq!(find_room(&[], 100, 1 << 20), Some(start));
        assert_eq!(find_room(&[item(start, 8), item(start + 12288, 8)], 8192, 1 << 20), Some(start + 4096));
        assert_eq!(find_room(&[item(start, 8), item(start + 12288, 8)], 8193, 1 << 20), Some(start + 16384));
        assert_eq!(find_room(&[item(start, (1 << 20) - start)], 1, 1 << 20), None);
    }
}
