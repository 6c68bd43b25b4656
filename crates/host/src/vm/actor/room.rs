//! A VM that was paused because a volume was full goes on by itself when there is space.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use vmm::control::{Request, Status};

use super::{ANSWER, Actor};
use crate::records::EventKind;
use crate::volumes::Space;

/// Between two looks at the volume.
const LOOK: Duration = Duration::from_secs(2);
/// How much must have become free: this, or this part of the volume if that is less. With every byte that becomes free, it would only be paused
/// again.
const ENOUGH: u64 = 64 << 20;
const ENOUGH_PART: u64 = 50;

/// What a paused VM waits for.
pub(super) struct Room {
    volume: String,
    /// Free bytes with which it goes on.
    enough: u64,
    look_at: Instant,
}

/// With how much free space it is worth a try, when there was this much.
fn enough(before: u64, total: u64) -> u64 {
    before + ENOUGH.min(total / ENOUGH_PART).max(1)
}

impl Actor {
    /// When to look for space.
    pub(super) fn room_at(&self) -> Option<Instant> {
        self.room.as_ref().map(|room| room.look_at)
    }

    /// Looks whether the VM was paused for want of space, and where. `is_new` if that was a moment ago: then there is too little now.
    pub(super) async fn wait_for_room(&mut self, is_new: bool) -> bool {
        self.room = None;
        let Some(machine) = &mut self.machine else { return false };
        let Ok(status) = machine.monitor.call::<Status>(&Request::Status, ANSWER).await else { return false };
        let Some(id) = status.short_of_space else { return false };
        let Some(disk) = self.vm.record.disks.iter().find(|disk| disk.id == id) else { return false };
        let volume = disk.file.volume.clone();
        let Some(space) = self.space(&volume).await else { return false };
        let before = if is_new { space.free } else { 0 };
        self.room = Some(Room { volume, enough: enough(before, space.total), look_at: Instant::now() });
        true
    }

    async fn space(&self, volume: &str) -> Option<Space> {
        let (surroundings, volume) = (self.surroundings.clone(), volume.to_owned());
        tokio::task::spawn_blocking(move || surroundings.volumes.space(&volume)).await.ok()??.ok()
    }

    /// Looks for space, and has the VM go on if there is some.
    pub(super) async fn look_for_room(&mut self) {
        let Some(mut room) = self.room.take() else { return };
        let free = self.space(&room.volume).await.map_or(0, |space| space.free);
        let Some(machine) = self.machine.as_mut().filter(|machine| machine.paused) else { return };
        if free >= room.enough && machine.monitor.call::<Value>(&Request::Resume, ANSWER).await.is_ok() {
            machine.paused = false;
            let event = self.event(EventKind::VmResumed, format!("the volume {} has space again: it goes on", room.volume));
            return self.change(None, move |_, _| Some(event.clone())).await;
        }
        room.look_at = Instant::now() + LOOK;
        self.room = Some(room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_try_is_worth_it_when_clearly_more_is_free() {
        assert_eq!(enough(0, 1 << 40), 64 << 20);
        assert_eq!(enough(1 << 20, 100 << 20), 3 << 20);
        assert_eq!(enough(0, 0), 1);
    }
}
