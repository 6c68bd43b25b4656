//! Links of NICs: a thread that hears of each change from the kernel and tells the port's worker.
//!
//! The kernel tells at once of the first change in a second, and keeps later losses back until the second is over (`linkwatch`). So that
//! no dead link is used for longer than [`LOOK`], the thread also asks the NICs themselves.
//!
//! A NIC that is taken away and comes back, even as another one with the same name, is used again. One that is used by AF_XDP is opened anew
//! when it has another number of queues, or an MTU for which its frames have no room.

pub mod ethtool;
pub mod netlink;
mod open;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::pipeline::PortNumber;
use crate::ports::fd::FdPortError;
use crate::ports::nic::{DatapathKind, NicPort};
use crate::sandbox::{ThreadKind, confine_thread};
use crate::team::config::Datapath;
use crate::team::nic::LinkState;
use crate::worker::{Ended, Handle};
use crate::xdp::XdpError;
use crate::xdp::port::Channels;
pub(crate) use ethtool::SIOCETHTOOL;
use netlink::{Link, Message, Socket};

/// How long a loss may stay unnoticed that the kernel keeps back.
pub const LOOK: Duration = Duration::from_millis(50);

/// How often a NIC that could not be used is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Why NICs could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel does not say what there is.
    #[error("cannot ask the kernel for its interfaces")]
    List(#[source] io::Error),
    /// No such interface.
    #[error("there is no NIC '{0}': `ip link` shows which there are")]
    Missing(String),
    /// It cannot be listened at.
    #[error(transparent)]
    Open(#[from] FdPortError),
    /// It cannot be used in the way that is insisted on.
    #[error("the NIC {name} cannot be used by AF_XDP")]
    Xdp {
        /// Which.
        name: String,
        /// Why, and what would help.
        #[source]
        source: XdpError,
    },
}

/// Whether NICs have to be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// One that is not is most likely misspelt.
    #[default]
    Refused,
    /// One that is not may come.
    Awaited,
}

/// A NIC of a port.
#[derive(Debug)]
struct Watch {
    worker: Handle,
    port: PortNumber,
    nic: usize,
    name: String,
    datapath: Datapath,
    found: Option<Found>,
    /// When it was there and could not be used.
    refused: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    index: u32,
    link: LinkState,
    /// If it is used by AF_XDP.
    xdp: Option<Fit>,
}

/// What rings were made for.
#[derive(Clone, Copy, Debug)]
struct Fit {
    channels: Channels,
    longest_packet: u32,
    /// Whether `auto` would have it so.
    is_native: bool,
}

impl Found {
    fn new(link: &Link, socket: &NicPort) -> Found {
        let is_native = socket.status().kind != DatapathKind::AfXdpGeneric;
        let fit = socket.as_xdp().map(|xdp| Fit { channels: xdp.channels(), longest_packet: xdp.longest_packet(), is_native });
        Found { index: link.index, link: state_of(link), xdp: fit }
    }
}

/// The thread.
#[derive(Debug)]
pub struct Links {
    watches: Arc<Mutex<Vec<Watch>>>,
}

/// What nobody else changes for now.
#[derive(Debug)]
pub struct Registry<'a>(MutexGuard<'a, Vec<Watch>>);

/// A NIC that was opened, if it was there. Without a socket, it keeps the one that it has at its port.
pub type FoundNic = Option<(Option<NicPort>, LinkState)>;

/// NICs that were opened, and are to be watched.
#[derive(Debug)]
pub struct Opened {
    names: Vec<String>,
    datapath: Datapath,
    found: Vec<Option<Found>>,
}

impl Links {
    /// Starts it.
    pub fn start() -> io::Result<Links> {
        let socket = Socket::listen()?;
        let watches = Arc::new(Mutex::new(Vec::new()));
        let listener = Listener { watches: watches.clone(), socket };
        std::thread::Builder::new().name("links".into()).spawn(move || {
            confine_thread(ThreadKind::Links);
            listener.run();
        })?;
        Ok(Links { watches })
    }

    /// Keeps changes back while ports are added or removed.
    pub fn lock(&self) -> Registry<'_> {
        Registry(self.watches.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Registry<'_> {
    /// Opens NICs by their names. Those that `current` has by AF_XDP stay open there, if they may: a program is attached once.
    pub fn open(
        &self,
        names: &[String],
        datapath: Datapath,
        missing: Missing,
        current: Option<(&Handle, PortNumber)>,
    ) -> Result<(Opened, Vec<FoundNic>), LinkError> {
        let links = netlink::list().map_err(LinkError::List)?;
        let mut opened = Opened { names: names.to_vec(), datapath, found: Vec::new() };
        let mut nics = Vec::new();
        for name in names {
            let Some(link) = links.iter().find(|link| link.name == *name) else {
                if missing == Missing::Refused {
                    return Err(LinkError::Missing(name.clone()));
                }
                opened.found.push(None);
                nics.push(None);
                continue;
            };
            let stays = |found: &Found| match (found.xdp, datapath) {
                (None, _) | (_, Datapath::AfPacket) => false,
                (Some(fit), Datapath::Auto) => found.index == link.index && fit.is_native,
                (Some(_), Datapath::AfXdp) => found.index == link.index,
            };
            let own = current.and_then(|(worker, port)| {
                let own = self.0.iter().find(|watch| watch.name == *name && watch.port == port && watch.worker == *worker);
                own?.found.filter(stays)
            });
            let (found, socket) = match own {
                Some(found) => (Found { link: state_of(link), ..found }, None),
                None => {
                    let socket = open::open(link, datapath)?;
                    (Found::new(link, &socket), Some(socket))
                }
            };
            opened.found.push(Some(found));
            nics.push(Some((socket, found.link)));
        }
        Ok((opened, nics))
    }

    /// Watches NICs for a port that has them now.
    pub fn watch(&mut self, worker: &Handle, port: PortNumber, opened: Opened) {
        let datapath = opened.datapath;
        let nics = opened.names.into_iter().zip(opened.found).enumerate();
        let watch = |(nic, (name, found))| Watch { worker: worker.clone(), port, nic, name, datapath, found, refused: None };
        self.0.extend(nics.map(watch));
    }

    /// No longer does.
    pub fn forget(&mut self, worker: &Handle, port: PortNumber) {
        self.0.retain(|watch| watch.port != port || watch.worker != *worker);
    }
}

struct Listener {
    watches: Arc<Mutex<Vec<Watch>>>,
    socket: Socket,
}

impl Listener {
    /// Until a worker ends.
    fn run(mut self) {
        loop {
            let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd.
            let ready = unsafe { libc::poll(&raw mut poll, 1, LOOK.as_millis() as i32) };
            let messages = match if ready > 0 { self.socket.receive() } else { Ok(Vec::new()) } {
                Ok(messages) => messages,
                // Some were lost. So that none is missing: all.
                Err(_) => match netlink::list() {
                    Ok(links) => {
                        let is_there = |found: &Found| links.iter().any(|link| link.index == found.index);
                        let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
                        let gone = watches.iter().filter_map(|watch| watch.found).filter(|found| !is_there(found));
                        let gone: Vec<Message> = gone.map(|found| Message::Gone(found.index)).collect();
                        gone.into_iter().chain(links.into_iter().map(Message::Link)).collect()
                    }
                    Err(error) => {
                        eprintln!("maru-switch: the kernel does not say which NICs have a link: {error}");
                        std::thread::sleep(LOOK);
                        continue;
                    }
                },
            };
            let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
            let told = messages.into_iter().try_for_each(|message| take(&mut watches, message));
            if told.and_then(|()| look(&mut watches)).is_err() {
                return;
            }
        }
    }
}

/// Takes in what the kernel says.
fn take(watches: &mut [Watch], message: Message) -> Result<(), Ended> {
    match message {
        Message::Link(link) => {
            for watch in watches.iter_mut() {
                let is_same = watch.found.is_some_and(|found| found.index == link.index);
                match (watch.name == link.name, is_same) {
                    (true, true) => match watch.found {
                        Some(Found { xdp: Some(fit), .. }) if link.mtu > fit.longest_packet => reopen(watch, &link)?,
                        found => set_link(watch, found.map(|found| Found { link: state_of(&link), ..found }))?,
                    },
                    (true, false) => reopen(watch, &link)?,
                    // It has another name now.
                    (false, true) => set_link(watch, None)?,
                    (false, false) => {}
                }
            }
        }
        Message::Gone(index) => {
            for watch in watches.iter_mut().filter(|watch| watch.found.is_some_and(|found| found.index == index)) {
                set_link(watch, None)?;
            }
        }
        Message::Address(_) | Message::Done | Message::Refused(_) => {}
    }
    Ok(())
}

/// Asks each NIC that is said to have a link whether it has, and each that is used by AF_XDP whether its queues are still those; tries those
/// again that could not be used.
fn look(watches: &mut [Watch]) -> Result<(), Ended> {
    let mut links = None;
    for watch in watches.iter_mut() {
        let has_other_queues = |fit: Fit| ethtool::channels(&watch.name) != fit.channels;
        let is_due = watch.refused.is_some_and(|refused| refused.elapsed() >= RETRY);
        if is_due || watch.found.and_then(|found| found.xdp).is_some_and(has_other_queues) {
            let links = links.get_or_insert_with(|| netlink::list().unwrap_or_default());
            match links.iter().find(|link| link.name == watch.name) {
                Some(link) => reopen(watch, link)?,
                None => {
                    watch.refused = None;
                    set_link(watch, None)?;
                }
            }
        }
        if let Some(found) = watch.found.filter(|found| found.link.is_up)
            && ethtool::link(&watch.name) == Some(false)
        {
            let link = LinkState { is_up: false, ..found.link };
            set_link(watch, Some(Found { link, ..found }))?;
        }
    }
    Ok(())
}

fn set_link(watch: &mut Watch, found: Option<Found>) -> Result<(), Ended> {
    watch.found = found;
    let (port, nic, link) = (watch.port, watch.nic, found.map(|found| found.link));
    watch.worker.call(move |worker| worker.set_link(port, nic, link))
}

/// Opens it, after what was open has gone.
fn reopen(watch: &mut Watch, link: &Link) -> Result<(), Ended> {
    if watch.found.is_some() {
        set_link(watch, None)?;
    }
    let (port, nic) = (watch.port, watch.nic);
    let socket = match open::open(link, watch.datapath) {
        Ok(socket) => socket,
        Err(error) => {
            // It may be gone again already, which the next message says.
            let reason = crate::error_chain(&error);
            if watch.refused.replace(Instant::now()).is_none() {
                eprintln!("maru-switch: {reason}");
            }
            return watch.worker.call(move |worker| worker.refuse_nic(port, nic, reason));
        }
    };
    let found = Found::new(link, &socket);
    (watch.found, watch.refused) = (Some(found), None);
    let attached = watch.worker.call(move |worker| worker.set_nic(port, nic, socket, found.link))?;
    attached.unwrap_or_else(|error| eprintln!("maru-switch: cannot wait for the frames of {}: {error}", watch.name));
    Ok(())
}

fn state_of(link: &Link) -> LinkState {
    let speed_mbps = link.is_up.then(|| ethtool::speed(&link.name)).flatten();
    LinkState { is_up: link.is_up, speed_mbps, mtu: link.mtu, mac: link.mac }
}
