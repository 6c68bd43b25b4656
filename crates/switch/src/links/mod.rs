//! Links of NICs: a thread that hears of each change from the kernel and tells the port's worker.
//!
//! The kernel tells at once of the first change in a second, and keeps later losses back until the second is over (`linkwatch`). So that
//! no dead link is used for longer than [`LOOK`], the thread also asks the NICs themselves.
//!
//! A NIC that is taken away and comes back, even as another one with the same name, is used again.

pub mod netlink;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::pipeline::PortNumber;
use crate::ports::fd::{FdPort, FdPortError};
use crate::sandbox::{ThreadKind, confine_thread};
use crate::team::nic::LinkState;
use crate::worker::{Ended, Handle};
use netlink::{Link, Message, Socket};

/// How long a loss may stay unnoticed that the kernel keeps back.
pub const LOOK: Duration = Duration::from_millis(50);

/// `ethtool.h`.
const ETHTOOL_GSET: u32 = 1;
const ETHTOOL_GLINK: u32 = 10;
/// Asks a NIC's driver.
pub(crate) const SIOCETHTOOL: libc::c_ulong = 0x8946;

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
    found: Option<Found>,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    index: u32,
    link: LinkState,
}

/// The thread.
#[derive(Debug)]
pub struct Links {
    watches: Arc<Mutex<Vec<Watch>>>,
}

/// What nobody else changes for now.
#[derive(Debug)]
pub struct Registry<'a>(MutexGuard<'a, Vec<Watch>>);

/// A NIC that was opened, if it was there.
pub type FoundNic = Option<(FdPort, LinkState)>;

/// NICs that were opened, and are to be watched.
#[derive(Debug)]
pub struct Opened {
    names: Vec<String>,
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
    /// Opens NICs by their names.
    pub fn open(&self, names: &[String], missing: Missing) -> Result<(Opened, Vec<FoundNic>), LinkError> {
        let links = netlink::list().map_err(LinkError::List)?;
        let mut opened = Opened { names: names.to_vec(), found: Vec::new() };
        let mut nics = Vec::new();
        for name in names {
            match links.iter().find(|link| link.name == *name) {
                None if missing == Missing::Refused => return Err(LinkError::Missing(name.clone())),
                None => {
                    opened.found.push(None);
                    nics.push(None);
                }
                Some(link) => {
                    let socket = FdPort::nic(name, link.index)?;
                    let state = state_of(link);
                    opened.found.push(Some(Found { index: link.index, link: state }));
                    nics.push(Some((socket, state)));
                }
            }
        }
        Ok((opened, nics))
    }

    /// Watches NICs for a port that has them now.
    pub fn watch(&mut self, worker: &Handle, port: PortNumber, opened: Opened) {
        let nics = opened.names.into_iter().zip(opened.found).enumerate();
        self.0.extend(nics.map(|(nic, (name, found))| Watch { worker: worker.clone(), port, nic, name, found }));
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
                    (true, true) => set_link(watch, Some(Found { index: link.index, link: state_of(&link) }))?,
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
        Message::Done | Message::Refused(_) => {}
    }
    Ok(())
}

/// Asks each NIC that is said to have a link whether it has.
fn look(watches: &mut [Watch]) -> Result<(), Ended> {
    for watch in watches.iter_mut() {
        if let Some(found) = watch.found.filter(|found| found.link.is_up)
            && ethtool(&watch.name, [ETHTOOL_GLINK, 0]).is_some_and(|answer| answer[1] == 0)
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

fn reopen(watch: &mut Watch, link: &Link) -> Result<(), Ended> {
    let socket = match FdPort::nic(&watch.name, link.index) {
        Ok(socket) => socket,
        Err(error) => {
            // It may be gone again already, which the next message says.
            eprintln!("maru-switch: {}", crate::error_chain(&error));
            return set_link(watch, None);
        }
    };
    let state = state_of(link);
    watch.found = Some(Found { index: link.index, link: state });
    let (port, nic) = (watch.port, watch.nic);
    let attached = watch.worker.call(move |worker| worker.set_nic(port, nic, socket, state))?;
    attached.unwrap_or_else(|error| eprintln!("maru-switch: cannot wait for the frames of {}: {error}", watch.name));
    Ok(())
}

fn state_of(link: &Link) -> LinkState {
    let speed_mbps = link.is_up.then(|| speed(&link.name)).flatten();
    LinkState { is_up: link.is_up, speed_mbps, mtu: link.mtu, mac: link.mac }
}

/// In Mb/s, if the driver knows.
fn speed(name: &str) -> Option<u32> {
    // struct ethtool_cmd: the speed's lower half is in bytes 12 to 14, the upper one in bytes 28 to 30.
    let mut request = [0; 11];
    request[0] = ETHTOOL_GSET;
    let answer = ethtool(name, request)?;
    let speed = answer[3] & 0xffff | answer[7] << 16;
    (1..i32::MAX as u32).contains(&speed).then_some(speed)
}

/// Asks a NIC's driver; the request is one of `ethtool.h`, as words. `None` if it does not answer.
fn ethtool<const N: usize>(name: &str, mut request: [u32; N]) -> Option<[u32; N]> {
    // SAFETY: all zeroes are a valid ifreq.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: the name ends there at the latest.
    for (to, from) in interface.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    interface.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
    // SAFETY: numbers only; the descriptor is closed below.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the request is as large as its first word says, and lives through the call; the descriptor is ours.
    let answered = unsafe {
        let answered = libc::ioctl(fd, SIOCETHTOOL as _, &raw mut interface);
        libc::close(fd);
        answered
    };
    (answered == 0).then_some(request)
}
