//! Cables: nets of the lab's own between the hosts' NICs.
//!
//! ```text
//!   h1 ──link── ┌────────┐ ──link── h2
//!               │ switch │              each link has two ways, each with its own conditions:
//!   h3 ──link── └────────┘              cut, loss, delay, rate
//! ```
//!
//! Each [`Cable`] is one thread with a learning switch. It needs no rights on this machine: the NICs are QEMU's stream
//! sockets. A change has taken effect when the method that makes it returns.

mod conditions;
mod hub;
mod pcap;
mod switch;

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub use conditions::{Conditions, Counters, Direction};

use hub::{Hub, Order};
use pcap::Capture;
use switch::Switch;

/// A cable net. Hosts are named by their index. The thread ends when this is dropped.
#[derive(Debug)]
pub struct Cable {
    orders: Mutex<Sender<Order>>,
    wake: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Cable {
    /// Starts a net without hosts, whose losses follow from `seed`.
    ///
    /// # Errors
    /// When this process has no descriptors or threads left.
    pub fn new(seed: u64) -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let (orders, inbox) = channel();
        let thread = thread::Builder::new().name("cable".into()).spawn(move || Hub::new(inbox, woken, seed).run())?;
        Ok(Cable { orders: Mutex::new(orders), wake: Some(wake), thread: Some(thread) })
    }

    /// Plugs a host in, pulling an earlier plug of the same host, and gives the socket for its NIC.
    ///
    /// # Errors
    /// When this process has no descriptors left.
    pub fn plug_in(&self, host: usize) -> io::Result<OwnedFd> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        self.order(Order::PlugIn(host, ours));
        Ok(theirs.into())
    }

    /// Cuts a host off, without the host's NIC noticing.
    pub fn cut(&self, host: usize) {
        self.cut_way(host, Direction::Both);
    }

    /// Cuts one way of a host's link.
    pub fn cut_way(&self, host: usize, direction: Direction) {
        self.change(host, direction, |conditions| conditions.cut = true);
    }

    /// Joins what was cut; loss, delay and rate stay as they are.
    pub fn uncut(&self, host: usize) {
        self.change(host, Direction::Both, |conditions| conditions.cut = false);
    }

    /// Loses this part, in percent, of what the host sends and of what it receives.
    pub fn loss(&self, host: usize, percent: f64) {
        self.change(host, Direction::Both, move |conditions| conditions.loss_percent = percent);
    }

    /// Delays what the host sends and what it receives by so much each.
    pub fn delay(&self, host: usize, delay: Duration) {
        self.change(host, Direction::Both, move |conditions| conditions.delay = delay);
    }

    /// Limits what the host sends and what it receives, or ends the limit.
    pub fn rate(&self, host: usize, bits_per_second: Option<u64>) {
        self.change(host, Direction::Both, move |conditions| conditions.bits_per_second = bits_per_second);
    }

    /// Makes a host's link good again.
    pub fn restore(&self, host: usize) {
        self.change(host, Direction::Both, |conditions| *conditions = Conditions::default());
    }

    /// Changes the conditions of a host's link.
    pub fn change(&self, host: usize, direction: Direction, change: impl Fn(&mut Conditions) + Send + 'static) {
        self.ask(move |switch| switch.change(host, direction, change));
    }

    /// The conditions of what a host sends and of what it receives.
    pub fn conditions(&self, host: usize) -> (Conditions, Conditions) {
        self.ask(move |switch| switch.conditions(host)).unwrap_or_default()
    }

    /// What went over a host's link.
    pub fn counters(&self, host: usize) -> Counters {
        self.ask(move |switch| switch.counters(host)).unwrap_or_default()
    }

    /// Writes all frames on the net to a capture file from now on.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn pcap(&self, path: &Path) -> io::Result<()> {
        self.order(Order::Capture(Some(Capture::create(path)?)));
        Ok(())
    }

    /// Ends the capture.
    pub fn pcap_end(&self) {
        self.order(Order::Capture(None));
        // Orders are carried out in turn: when this one is answered, the file is closed.
        self.ask(|_| ());
    }

    /// Asks the thread and waits for the answer. `None` only when the thread has died.
    fn ask<T: Send + 'static>(&self, question: impl FnOnce(&mut Switch) -> T + Send + 'static) -> Option<T> {
        let (reply, answer) = channel();
        self.order(Order::Switch(Box::new(move |switch| {
            let _ = reply.send(question(switch));
        })));
        answer.recv().ok()
    }

    fn order(&self, order: Order) {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if orders.send(order).is_ok()
            && let Some(mut wake) = self.wake.as_ref()
        {
            // A full socket wakes the thread as well.
            let _ = wake.write(&[1]);
        }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn send(plug: &mut UnixStream, frame: &[u8]) {
        plug.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
        plug.write_all(frame).unwrap();
    }

    fn receive(plug: &mut UnixStream) -> Vec<u8> {
        let mut length = [0; 4];
        plug.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        plug.read_exact(&mut frame).unwrap();
        frame
    }

    fn broadcast(from: u8, size: usize) -> Vec<u8> {
        let mut frame = vec![0xff; size];
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, from]);
        frame
    }

    #[test]
    fn frames_pass_whole_and_are_captured() {
        let cable = Cable::new(1).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("all.pcap");
        cable.pcap(&file).unwrap();
        let mut plugs: Vec<UnixStream> = (0..2).map(|host| cable.plug_in(host).unwrap().into()).collect();
        for size in [60, 1514, 9014] {
            send(&mut plugs[0], &broadcast(0, size));
            assert_eq!(receive(&mut plugs[1]), broadcast(0, size));
        }
        cable.pcap_end();
        assert_eq!(std::fs::metadata(&file).unwrap().len(), 24 + 3 * 16 + 60 + 1514 + 9014);
        assert_eq!(cable.counters(1).frames_to_host, 3);
    }

    #[test]
    fn a_host_that_does_not_read_loses_frames_and_does_not_stop_the_others() {
        let cable = Cable::new(1).unwrap();
        let mut plugs: Vec<UnixStream> = (0..3).map(|host| cable.plug_in(host).unwrap().into()).collect();
        // Host 1 never reads. 8 MiB is more than its socket and its queue hold.
        for _ in 0..1000 {
            send(&mut plugs[0], &broadcast(0, 8192));
            assert_eq!(receive(&mut plugs[2]).len(), 8192);
        }
        assert!(cable.counters(1).dropped_full > 0);
        assert_eq!(cable.counters(2).dropped_full, 0);
    }

    #[test]
    fn a_cut_has_taken_effect_when_it_returns() {
        let cable = Cable::new(1).unwrap();
        let mut plugs: Vec<UnixStream> = (0..2).map(|host| cable.plug_in(host).unwrap().into()).collect();
        cable.cut(0);
        send(&mut plugs[0], &broadcast(0, 60));
        while cable.counters(0).dropped_cut == 0 {
            thread::yield_now();
        }
        cable.uncut(0);
        send(&mut plugs[0], &broadcast(0, 61));
        assert_eq!(receive(&mut plugs[1]).len(), 61);
    }
}
