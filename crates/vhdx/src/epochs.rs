//! Tells when all tickets that may know a place in the file have come back, so that freed space is nobody's.
//!
//! A ticket is counted before the tables are looked at, in one of two groups: that of its generation. The next generation begins only
//! when the group that it shares is empty. What left the tables in generation `g` is known to no ticket from generation `g + 2` on: both
//! groups were empty once after it had left, and who came later looked it up in vain.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

#[derive(Debug, Default)]
pub(crate) struct Epochs {
    generation: AtomicU64,
    out: [AtomicU64; 2],
}

impl Epochs {
    /// Counts one more ticket in the current group, and says which that is. The look-up comes after this.
    pub(crate) fn enter(&self) -> u8 {
        self.enter_after(|| ())
    }

    /// `between` is what others may do between the two looks.
    fn enter_after(&self, mut between: impl FnMut()) -> u8 {
        loop {
            let generation = self.generation.load(SeqCst);
            let epoch = (generation % 2) as u8;
            between();
            self.out[usize::from(epoch)].fetch_add(1, SeqCst);
            // Without a second look, generations that began between the two lines could have found the group empty.
            if self.generation.load(SeqCst) == generation {
                return epoch;
            }
            self.leave(epoch);
        }
    }

    /// A ticket is back.
    pub(crate) fn leave(&self, epoch: u8) {
        self.out[usize::from(epoch)].fetch_sub(1, SeqCst);
    }

    /// The current generation.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(SeqCst)
    }

    /// Begins the next generation, unless tickets of the one before this are still out. One caller at a time.
    pub(crate) fn advance(&self) -> bool {
        let is_drained = self.is_drained();
        if is_drained {
            self.generation.fetch_add(1, SeqCst);
        }
        is_drained
    }

    /// Whether all tickets from before this generation are back.
    pub(crate) fn is_drained(&self) -> bool {
        self.out[((self.generation() + 1) % 2) as usize].load(SeqCst) == 0
    }

    /// How many tickets are out.
    pub(crate) fn count(&self) -> u64 {
        self.out.iter().map(|out| out.load(SeqCst)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_generation_is_drained_when_its_last_ticket_is_back() {
        let epochs = Epochs::default();
        let old = epochs.enter();
        assert!(epochs.advance());
        let new = epochs.enter();
        assert!(!epochs.is_drained() && !epochs.advance());
        assert_eq!((epochs.generation(), epochs.count()), (1, 2));
        epochs.leave(old);
        assert!(epochs.is_drained() && epochs.advance());
        epochs.leave(new);
        assert_eq!(epochs.count(), 0);
    }

    #[test]
    fn a_ticket_counts_in_the_generation_in_which_it_looks() {
        let epochs = Epochs::default();
        let mut advances = 3;
        let epoch = epochs.enter_after(|| {
            if advances > 0 {
                advances -= 1;
                assert!(epochs.advance());
            }
        });
        assert_eq!((u64::from(epoch), epochs.generation()), (1, 3));
        assert!(epochs.advance() && !epochs.advance());
        epochs.leave(epoch);
    }

    /// A place is one of two; whoever holds a ticket sees the current one stay usable.
    #[test]
    fn a_place_is_not_used_again_while_a_ticket_knows_it() {
        let (epochs, current) = (Epochs::default(), AtomicU64::new(0));
        let in_use = [AtomicBool::new(true), AtomicBool::new(false)];
        let (stop, is_wrong) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        let epoch = epochs.enter();
                        let place = &in_use[current.load(SeqCst) as usize];
                        if (0..20).any(|_| !place.load(SeqCst)) {
                            is_wrong.store(true, SeqCst);
                        }
                        epochs.leave(epoch);
                    }
                });
            }
            for round in 1..20_000u64 {
                let (new, old) = ((round % 2) as usize, ((round + 1) % 2) as usize);
                in_use[new].store(true, SeqCst);
                current.store(new as u64, SeqCst);
                let freed = epochs.generation();
                while epochs.generation() < freed + 2 {
                    if !epochs.advance() {
                        std::thread::yield_now();
                    }
                }
                in_use[old].store(false, SeqCst);
            }
            stop.store(true, SeqCst);
        });
        assert!(!is_wrong.into_inner(), "a place was taken away from a ticket");
    }
}
