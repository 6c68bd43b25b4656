//! etcd on this host: it runs while this host has a member of the store.
//!
//! ```text
//!  etcd/member       which member it is: written before etcd is started for the first time
//!       data/        what etcd has
//! ```
//!
//! At the start of `marud` nobody knows yet what the store says, and the store may need this member to say anything. So what is there is
//! started. Later the store's record decides: another member than the one whose data are here begins with nothing.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use store::etcd::admin::MemberId;
use store::etcd::server::{Membership, Server, ServerError};

use crate::cluster::forming::Place;
use crate::cluster::identity::Identity;

/// How often it is looked whether etcd still runs.
const LOOK: Duration = Duration::from_millis(200);
/// After it has ended so often and at once, it is not the next attempt that will help.
const ENOUGH: u32 = 5;
/// Who has run for so long has started well.
const WELL: Duration = Duration::from_secs(30);
/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long etcd may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is to run here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// What ran before: the store has said nothing yet.
    #[default]
    AsBefore,
    /// This member of the store.
    Member {
        /// Which.
        id: MemberId,
        /// It has a vote: it must have its data.
        voter: bool,
        /// All members with their peer URLs, as it has to be told if it has no data yet.
        members: Vec<(String, String)>,
    },
    /// None, and what one may have had stays.
    Stopped,
    /// None.
    Nothing,
}

/// Whoever has etcd run.
pub struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    order: Order,
    ends: bool,
    damaged: Option<(MemberId, String)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    /// Begins; `running` is an etcd that was started already.
    pub fn start(place: &Place, identity: &Identity, running: Option<Server>) -> io::Result<Keeper> {
        let shared = Arc::new(Shared::default());
        let mut work = Work {
            shared: shared.clone(),
            place: place.clone(),
            identity: identity.clone(),
            started: running.as_ref().map(|_| Instant::now()),
            server: running,
            failures: 0,
            not_before: None,
        };
        let thread = thread::Builder::new().name("etcd-keeper".into()).spawn(move || work.run())?;
        Ok(Keeper { shared, thread: Some(thread) })
    }

    /// What is to run from now on.
    pub fn order(&self, order: Order) {
        let mut state = self.shared.lock();
        if state.order != order {
            state.order = order;
            self.shared.changed.notify_all();
        }
    }

    /// The member that cannot go on with its data, and why, if it is the one that is to run.
    pub fn damaged(&self) -> Option<(MemberId, String)> {
        self.shared.lock().damaged.clone()
    }

    /// Ends etcd, and waits for that.
    pub fn stop(&mut self) {
        self.shared.lock().ends = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It has ended in any case.
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Writes down which member the data here are of.
pub fn note_member(place: &Place, id: MemberId) -> io::Result<()> {
    fs::create_dir_all(place.member())?;
    crate::auth::write_private(&place.member().join("member"), &format!("{id}\n"))
}

fn noted_member(place: &Place) -> Option<MemberId> {
    let text = fs::read_to_string(place.member().join("member")).ok()?;
    u64::from_str_radix(text.trim(), 16).ok().map(MemberId)
}

struct Work {
    shared: Arc<Shared>,
    place: Place,
    identity: Identity,
    server: Option<Server>,
    started: Option<Instant>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Work {
    fn run(&mut self) {
        loop {
            let (order, ends) = {
                let state = self.shared.lock();
                (state.order.clone(), state.ends)
            };
            if ends {
                self.stop();
                return;
            }
            self.look();
            if let Err(error) = self.obey(&order) {
                tracing::error!("etcd cannot be run: {}", vmm::error_chain(&error));
                self.failed(&order, None);
            }
            let state = self.shared.lock();
            if state.order == order && !state.ends {
                drop(self.shared.changed.wait_timeout(state, LOOK));
            }
        }
    }

    fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop(PATIENCE);
        }
    }

    /// Notes whether etcd has ended.
    fn look(&mut self) {
        let Some(ended) = self.server.as_ref().and_then(Server::ended) else {
            if self.started.is_some_and(|started| started.elapsed() > WELL) {
                self.failures = 0;
            }
            return;
        };
        self.server = None;
        tracing::error!("the host's member of the store: {}; it is started again", vmm::error_chain(&ended));
        let order = self.shared.lock().order.clone();
        self.failed(&order, Some(&ended));
    }

    /// Counts a failure, and says so if its data are the reason.
    fn failed(&mut self, order: &Order, ended: Option<&ServerError>) {
        if self.started.take().is_some_and(|started| started.elapsed() > WELL) {
            self.failures = 0;
        }
        self.failures += 1;
        let pause = LOOK * 2_u32.saturating_pow(self.failures);
        self.not_before = Some(Instant::now() + pause.min(LONGEST_PAUSE));
        let Some(ServerError::Ended { words, .. }) = ended else { return };
        // Neither is the fault of its data.
        let others = ["address already in use", "cannot assign requested address", "permanently removed"];
        if let Order::Member { id, .. } = order
            && self.failures >= ENOUGH
            && !others.iter().any(|other| words.contains(other))
        {
            self.shared.lock().damaged = Some((*id, words.clone()));
        }
    }

    fn obey(&mut self, order: &Order) -> Result<(), ServerError> {
        let data = self.place.member().join("data/member");
        match order {
            Order::AsBefore if data.exists() => self.start(Vec::new()),
            Order::AsBefore => Ok(()),
            Order::Stopped => {
                self.stop();
                Ok(())
            }
            Order::Nothing => {
                self.stop();
                self.wipe()
            }
            Order::Member { id, voter, members } => {
                let noted = noted_member(&self.place);
                if noted == Some(*id) && data.exists() {
                    return self.start(Vec::new());
                }
                if *voter {
                    // It has promised things that are in its data. With the same name and without them it would break these promises.
                    let text = "its data are gone".to_owned();
                    self.shared.lock().damaged = Some((*id, text));
                    self.stop();
                    return Ok(());
                }
                if noted != Some(*id) {
                    self.stop();
                    self.wipe()?;
                    let run = |source| ServerError::Run { program: self.place.member(), source };
                    note_member(&self.place, *id).map_err(run)?;
                    (self.failures, self.not_before) = (0, None);
                    self.shared.lock().damaged = None;
                }
                self.start(members.clone())
            }
        }
    }

    fn start(&mut self, members: Vec<(String, String)>) -> Result<(), ServerError> {
        if self.server.is_some() || self.not_before.is_some_and(|time| Instant::now() < time) {
            return Ok(());
        }
        let mut config = self.place.server(&self.identity, Membership::Join);
        if !members.is_empty() {
            config.members = members;
        }
        self.server = Some(Server::start(&self.place.programs()?, &config)?);
        self.started = Some(Instant::now());
        Ok(())
    }

    /// Removes what a member had that is none any more.
    fn wipe(&self) -> Result<(), ServerError> {
        let (directory, old) = (self.place.member(), self.place.state.join("etcd.old"));
        let run = |source| ServerError::Run { program: directory.clone(), source };
        remove(&old).map_err(run)?;
        match fs::rename(&directory, &old) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(run)?,
        }
        remove(&old).map_err(run)
    }
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
