//! Rings that are shared with the kernel: one side puts in, the other takes out, each at a position of its own that only grows.
//!
//! Positions are 32 bits and wrap around; an entry's place is the position modulo the ring's size, a power of two.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where a ring is.
#[derive(Debug)]
pub(super) struct Place<T> {
    /// The position behind the last entry.
    pub producer: NonNull<AtomicU32>,
    /// The position of the first one.
    pub consumer: NonNull<AtomicU32>,
    /// What the kernel says about itself.
    pub flags: NonNull<AtomicU32>,
    /// The entries.
    pub entries: NonNull<T>,
    /// How many there are: a power of two.
    pub size: u32,
}

// SAFETY: the memory is there as long as the ring, see `Producer::new` and `Consumer::new`, and is used by atomic operations, or by one
// side at a time.
unsafe impl<T: Send> Send for Place<T> {}

impl<T: Copy> Place<T> {
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: by what `new` was promised.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: by what `new` was promised.
        unsafe { self.consumer.as_ref() }
    }

    fn needs_wakeup(&self) -> bool {
        // SAFETY: by what `new` was promised.
        unsafe { self.flags.as_ref() }.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    fn entry(&self, position: u32) -> NonNull<T> {
        // SAFETY: the index is below the size, and so many entries are there.
        unsafe { self.entries.add((position & (self.size - 1)) as usize) }
    }
}

/// A ring into which this side puts: fill and tx.
#[derive(Debug)]
pub(super) struct Producer<T> {
    place: Place<T>,
    /// Where the next entry goes.
    next: u32,
    /// What the other side knows of.
    published: u32,
    /// How far it was when it was last looked at.
    seen: u32,
}

impl<T: Copy> Producer<T> {
    /// The near end of a ring.
    ///
    /// # Safety
    /// The place is as it says, as long as this is there, and nobody else puts anything in.
    pub unsafe fn new(place: Place<T>) -> Producer<T> {
        let (next, seen) = (place.producer().load(Ordering::Relaxed), place.consumer().load(Ordering::Acquire));
        Producer { place, next, published: next, seen }
    }

    /// Puts an entry in; `false` if there is no room. It is seen once it is published.
    pub fn put(&mut self, value: T) -> bool {
        if self.next.wrapping_sub(self.seen) >= self.place.size {
            self.seen = self.place.consumer().load(Ordering::Acquire);
            if self.next.wrapping_sub(self.seen) >= self.place.size {
                return false;
            }
        }
        // SAFETY: the other side has taken what was there, and does not look before it is told.
        unsafe { self.place.entry(self.next).write(value) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Lets the other side see what was put in.
    pub fn publish(&mut self) {
        if self.published != self.next {
            self.published = self.next;
            self.place.producer().store(self.next, Ordering::Release);
        }
    }

    /// How many published entries the other side has not taken.
    pub fn untaken(&self) -> u32 {
        self.published.wrapping_sub(self.place.consumer().load(Ordering::Acquire))
    }

    /// Whether the kernel looks only when it is called.
    pub fn needs_wakeup(&self) -> bool {
        // What was published must be seen before the flag is looked at: the kernel sets it, and then looks once more.
        std::sync::atomic::fence(Ordering::SeqCst);
        self.place.needs_wakeup()
    }
}

/// A ring out of which this side takes: rx and completion.
#[derive(Debug)]
pub(super) struct Consumer<T> {
    place: Place<T>,
    /// What is taken next.
    next: u32,
    /// What the other side knows of.
    released: u32,
    /// How far it was when it was last looked at.
    seen: u32,
    _entries: PhantomData<T>,
}

impl<T: Copy> Consumer<T> {
    /// The near end of a ring.
    ///
    /// # Safety
    /// The place is as it says, as long as this is there, and nobody else takes anything out.
    pub unsafe fn new(place: Place<T>) -> Consumer<T> {
        let next = place.consumer().load(Ordering::Relaxed);
        Consumer { place, next, released: next, seen: next, _entries: PhantomData }
    }

    /// Takes an entry out. Its place is the other side's again once it is released.
    pub fn take(&mut self) -> Option<T> {
        if self.next == self.seen {
            self.seen = self.place.producer().load(Ordering::Acquire);
            if self.next == self.seen {
                return None;
            }
        }
        // SAFETY: the other side has put it in, and does not touch it before it is released.
        let value = unsafe { self.place.entry(self.next).read() };
        self.next = self.next.wrapping_add(1);
        Some(value)
    }

    /// Gives the places of what was taken back.
    pub fn release(&mut self) {
        if self.released != self.next {
            self.released = self.next;
            self.place.consumer().store(self.next, Ordering::Release);
        }
    }

    /// Whether there is something.
    pub fn is_waiting(&self) -> bool {
        self.next != self.seen || self.place.producer().load(Ordering::Relaxed) != self.next
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const SIZE: u32 = 4;

    /// A ring in plain memory, at positions that both sides have reached.
    struct Memory {
        producer: Box<AtomicU32>,
        consumer: Box<AtomicU32>,
        flags: Box<AtomicU32>,
        entries: Box<[u64]>,
    }

    impl Memory {
        fn at(position: u32) -> Memory {
            let word = |value| Box::new(AtomicU32::new(value));
            let entries = vec![0; SIZE as usize].into();
            Memory { producer: word(position), consumer: word(position), flags: word(0), entries }
        }

        fn place(&mut self) -> Place<u64> {
            let entries = NonNull::new(self.entries.as_mut_ptr()).unwrap();
            let [producer, consumer, flags] = [&self.producer, &self.consumer, &self.flags].map(|word| NonNull::from(&**word));
            Place { producer, consumer, flags, entries, size: SIZE }
        }

        /// Both ends of it.
        fn ends(&mut self) -> (Producer<u64>, Consumer<u64>) {
            // SAFETY: the memory lives as long as the test, and there are no other ends.
            unsafe { (Producer::new(self.place()), Consumer::new(self.place())) }
        }
    }

    #[test]
    fn what_is_not_published_is_not_seen_and_what_is_not_released_is_not_overwritten() {
        for start in [0, u32::MAX - 5, u32::MAX] {
            let mut memory = Memory::at(start);
            let (mut producer, mut consumer) = memory.ends();
            assert!((1..=4).all(|value| producer.put(value)) && !producer.put(5), "from {start}");
            assert!(!consumer.is_waiting() && consumer.take().is_none());
            producer.publish();
            assert!(consumer.is_waiting());
            assert_eq!((producer.untaken(), consumer.take(), consumer.take()), (4, Some(1), Some(2)));
            assert!(!producer.put(5), "nothing was released");
            consumer.release();
            assert_eq!(producer.untaken(), 2);
            assert!(producer.put(5) && producer.put(6) && !producer.put(7));
            producer.publish();
            assert!(std::iter::from_fn(|| consumer.take()).eq(3..=6));
        }
    }

    #[test]
    fn the_kernel_is_woken_only_if_it_asks_for_it() {
        let mut memory = Memory::at(0);
        let (producer, _consumer) = memory.ends();
        assert!(!producer.needs_wakeup());
        memory.flags.store(libc::XDP_RING_NEED_WAKEUP | 8, Ordering::Relaxed);
        assert!(producer.needs_wakeup());
    }

    proptest! {
        /// A ring is a queue with a limit, wherever its positions are.
        #[test]
        fn a_ring_is_a_bounded_queue(start in any::<u32>(), near_end in any::<bool>(), steps in prop::collection::vec(0..4, 0..200)) {
            let mut memory = Memory::at(if near_end { start | 0xffff_fff0 } else { start });
            let (mut producer, mut consumer) = memory.ends();
            // What is in the ring, of which the last `hidden` are not published; and how many were taken and not released.
            let (mut model, mut hidden, mut kept) = (VecDeque::new(), 0, 0);
            for (value, step) in (0u64..).zip(steps) {
                match step {
                    0 => {
                        let has_room = model.len() + kept < SIZE as usize;
                        prop_assert_eq!(producer.put(value), has_room);
                        if has_room {
                            model.push_back(value);
                            hidden += 1;
                        }
                    }
                    1 => {
                        producer.publish();
                        hidden = 0;
                    }
                    2 => {
                        let expected = if model.len() > hidden { model.pop_front() } else { None };
                        kept += usize::from(expected.is_some());
                        prop_assert_eq!(consumer.take(), expected);
                    }
                    _ => {
                        consumer.release();
                        kept = 0;
                    }
                }
                prop_assert_eq!(consumer.is_waiting(), model.len() > hidden);
            }
        }
    }
}
