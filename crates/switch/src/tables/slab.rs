//! Entries with numbers and versions.

/// An entry as it was at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ref {
    slot: u32,
    version: u32,
}

impl Ref {
    /// What no entry has.
    pub const NONE: Ref = Ref { slot: u32::MAX, version: u32::MAX };
}

#[derive(Debug)]
struct Slot<T> {
    version: u32,
    value: Option<T>,
}

/// A bounded list of entries whose places are used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    capacity: usize,
    /// Where the next look for what is over begins.
    hand: usize,
    /// Grows whenever a reference may have become stale, or an entry is new.
    pub changes: u64,
}

impl<T> Slab<T> {
    pub fn new(capacity: usize) -> Slab<T> {
        Slab { slots: Vec::new(), free: Vec::new(), capacity, hand: 0, changes: 0 }
    }

    /// Takes a value, unless it is full.
    pub fn insert(&mut self, value: T) -> Option<Ref> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < self.capacity => {
                self.slots.push(Slot { version: 0, value: None });
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        let entry = &mut self.slots[slot as usize];
        entry.value = Some(value);
        self.changes += 1;
        Some(Ref { slot, version: entry.version })
    }

    /// Whether there is no room for another one.
    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= self.capacity
    }

    /// The value, if it is still that one.
    pub fn get_mut(&mut self, at: Ref) -> Option<&mut T> {
        self.slots.get_mut(at.slot as usize).filter(|slot| slot.version == at.version)?.value.as_mut()
    }

    pub fn get(&self, at: Ref) -> Option<&T> {
        self.slots.get(at.slot as usize).filter(|slot| slot.version == at.version)?.value.as_ref()
    }

    /// Makes every reference to it stale; returns the new one.
    pub fn renew(&mut self, at: Ref) -> Ref {
        self.changes += 1;
        let slot = &mut self.slots[at.slot as usize];
        slot.version = slot.version.wrapping_add(1);
        Ref { version: slot.version, ..at }
    }

    pub fn remove(&mut self, at: Ref) -> Option<T> {
        let slot = self.slots.get_mut(at.slot as usize).filter(|slot| slot.version == at.version)?;
        let value = slot.value.take()?;
        self.changes += 1;
        slot.version = slot.version.wrapping_add(1);
        self.free.push(at.slot);
        Some(value)
    }

    /// What is over in the `count` places that the next sweep looks at.
    pub fn over<'a>(&'a self, count: usize, is_over: impl Fn(&T) -> bool + 'a) -> impl Iterator<Item = (Ref, &'a T)> {
        let places = (0..count.min(self.slots.len())).map(|step| (self.hand + step) % self.slots.len());
        let entries = places.filter_map(|slot| {
            let Slot { version, value } = &self.slots[slot];
            Some((Ref { slot: slot as u32, version: *version }, value.as_ref()?))
        });
        entries.filter(move |(_, value)| is_over(value))
    }

    /// Looks at the next `count` places and removes what is over.
    pub fn sweep(&mut self, count: usize, is_over: impl Fn(&T) -> bool, removed: impl FnMut(T)) {
        let over: Vec<Ref> = self.over(count, is_over).map(|(at, _)| at).collect();
        self.hand = if self.slots.is_empty() { 0 } else { (self.hand + count.min(self.slots.len())) % self.slots.len() };
        over.into_iter().filter_map(|at| self.remove(at)).for_each(removed);
    }

    /// What is in `count` places from `from` on, and where the next places are.
    pub fn part(&self, from: usize, count: usize) -> (impl Iterator<Item = &T>, Option<usize>) {
        let end = from.saturating_add(count).min(self.slots.len());
        let places = &self.slots[from.min(end)..end];
        (places.iter().filter_map(|slot| slot.value.as_ref()), (end < self.slots.len()).then_some(end))
    }

    pub fn refs(&self) -> impl Iterator<Item = (Ref, &T)> {
        (0u32..)
            .zip(&self.slots)
            .filter_map(|(slot, entry)| entry.value.as_ref().map(|value| (Ref { slot, version: entry.version }, value)))
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
