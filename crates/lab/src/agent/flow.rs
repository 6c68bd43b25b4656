//! The sender's side of a stream's window.

use std::sync::{Condvar, Mutex, PoisonError};

use super::frame::WINDOW;

/// Bytes that may still be sent. Taking waits until the receiver has consumed some.
#[derive(Debug)]
pub struct Window {
    /// `None` once closed.
    free: Mutex<Option<usize>>,
    changed: Condvar,
}

impl Default for Window {
    fn default() -> Self {
        Window { free: Mutex::new(Some(WINDOW)), changed: Condvar::new() }
    }
}

impl Window {
    /// Takes up to `wanted` bytes (at least one), waiting until there are any. `None` when the window was closed.
    pub fn take(&self, wanted: usize) -> Option<usize> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match free.as_mut()? {
                0 => free = self.changed.wait(free).unwrap_or_else(PoisonError::into_inner),
                count => {
                    let taken = wanted.min(*count);
                    *count -= taken;
                    return Some(taken);
                }
            }
        }
    }

    /// The receiver consumed `count` bytes.
    pub fn give(&self, count: usize) {
        if let Some(free) = self.free.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            *free = free.saturating_add(count).min(WINDOW);
        }
        self.changed.notify_all();
    }

    /// Ends the stream for whoever waits.
    pub fn close(&self) {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_full_window_stops_the_sender_until_the_receiver_consumes() {
        let window = Arc::new(Window::default());
        assert_eq!(window.take(WINDOW + 5), Some(WINDOW));
        let waiting = std::thread::spawn({
            let window = window.clone();
            move || window.take(100)
        });
        window.give(40);
        assert_eq!(waiting.join().unwrap(), Some(40));
        window.close();
        assert_eq!(window.take(1), None);
    }
}
