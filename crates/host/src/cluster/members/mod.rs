//! Where the store is: which hosts have a member of it, and how this host reaches them.
//!
//! ```text
//!  members/, hosts/, alive/ ──▶ decide::next ──▶ one step at a time, on the coordinator ──▶ etcd's members, members/HOST
//!            │
//!            └──▶ each host: Keeper::order, the endpoints of its client, cluster.json, its certificate
//! ```
//!
//! Every host follows the records; the one that is the coordinator changes them, and etcd. Each step can be done again: etcd's own list of
//! members is what counts, and records follow it. Two coordinators, for a moment, do no harm: etcd takes one change at a time, and refuses
//! what would cost its majority.

mod alarms;
pub mod decide;
pub mod keeper;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ::cluster::records::{AliveRecord, CoordinatorRecord, HostRecord, HostWanted};
use store::StoreError;
use store::etcd::admin::{Member, MemberId};
use store::etcd::{EtcdConfigError, EtcdStore};
use time::OffsetDateTime;
use tokio::sync::Notify;

use self::decide::{Seat, Step};
use self::keeper::{Keeper, Order};
use super::authority::{self, Authority, AuthorityError, HostCertificate, RENEWED_AFTER};
use super::backup;
use super::forming::{self, FormingError, Place};
use super::identity::{Identity, IdentityError, MemberAddress};
use super::records::{CERTIFICATES, COORDINATOR, CertificatesRecord, MemberRecord, MemberState};
use crate::records::{EventKind, EventRecord};
use crate::state::{Records, State, StateError};
use crate::tls::{Shown, TlsError};

/// How often records are looked at: they are in memory.
const ROUND: Duration = Duration::from_secs(1);
/// How often members are asked whether they answer.
const ANSWERS: Duration = Duration::from_secs(5);
/// After a host was not heard of for so long, another one takes its place in the store.
const LOST: Duration = Duration::from_secs(600);
/// How often alarms of etcd are looked for.
const ALARMS: Duration = Duration::from_secs(30);

/// What the follower works with.
pub struct Setting {
    /// Where this host is.
    pub place: Place,
    /// Who it is.
    pub identity: Identity,
    /// The records.
    pub state: State,
    /// The store itself.
    pub etcd: Arc<EtcdStore>,
    /// What the API's server shows.
    pub shown: Arc<Shown>,
    /// This host's certificate.
    pub certificate: HostCertificate,
    /// Told when `marud` is to start itself anew.
    pub again: Arc<Notify>,
    /// The records did not know this host when `marud` started, so it takes no part in anything.
    pub removed: bool,
}

/// Whoever follows the records.
pub struct Follower {
    ends: Arc<AtomicBool>,
    told: Arc<Mutex<Told>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What is known beside the records.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The member that leads the store.
    pub leader: Option<MemberId>,
    /// The members that answer, and follow a leader.
    pub answering: HashSet<MemberId>,
    /// What is waited for, or why the last step was not done.
    pub waits: Option<String>,
}

/// Why a round was not finished.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Forming(#[from] FormingError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Endpoints(#[from] EtcdConfigError),
}

impl Follower {
    /// Begins.
    pub fn start(setting: Setting, keeper: Keeper) -> io::Result<Follower> {
        let (ends, told) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Told::default())));
        let mut work = Work {
            setting,
            keeper,
            told: told.clone(),
            endpoints: Vec::new(),
            silent_since: HashMap::new(),
            answers_at: Instant::now(),
            alarms_at: Instant::now(),
            backups: backup::Schedule::default(),
            registered: false,
        };
        let stop = ends.clone();
        let run = move || {
            while !stop.load(Ordering::Relaxed) {
                if let Err(error) = work.round() {
                    let text = vmm::error_chain(&error);
                    tracing::debug!("the members of the store cannot be looked after: {text}");
                    work.tell(|told| told.waits = Some(text));
                }
                thread::park_timeout(ROUND);
            }
            work.keeper.stop();
        };
        let thread = thread::Builder::new().name("members".into()).spawn(run)?;
        Ok(Follower { ends, told, thread: Mutex::new(Some(thread)) })
    }

    /// What is known beside the records.
    pub fn told(&self) -> Told {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the records looked at now.
    pub fn wake(&self) {
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.thread().unpark();
        }
    }

    /// Ends, and etcd on this host with it.
    pub fn stop(&self) {
        self.ends.store(true, Ordering::Relaxed);
        self.wake();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It has ended in any case.
            let _ = thread.join();
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Work {
    setting: Setting,
    keeper: Keeper,
    told: Arc<Mutex<Told>>,
    endpoints: Vec<String>,
    silent_since: HashMap<String, Instant>,
    answers_at: Instant,
    alarms_at: Instant,
    backups: backup::Schedule,
    registered: bool,
}

type Members = Vec<(String, MemberRecord)>;

impl Work {
    fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn round(&mut self) -> Result<(), RoundError> {
        if forming::is_planned(&self.setting.place) {
            self.setting.again.notify_one();
            return Ok(());
        }
        let members: Members =
            self.setting.state.named::<MemberRecord>()?.into_iter().map(|(name, stored)| (name, stored.record)).collect();
        let own = members.iter().find(|(name, _)| *name == self.setting.identity.host).map(|(_, record)| record.clone());
        let Some(own) = own.filter(|own| own.peer_url == self.setting.identity.peer_url) else {
            return self.was_removed(&members);
        };
        self.follow(&members)?;
        self.certify(&own)?;
        self.register(&own)?;
        self.keeper.order(self.order(&own)?);
        self.report_damage(&own)?;
        let leader = self.leader();
        self.tell(|told| told.leader = leader);
        if self.answers_at <= Instant::now() {
            self.answers_at = Instant::now() + ANSWERS;
            let answering = self.answering(&members)?;
            self.tell(|told| told.answering = answering);
        }
        if own.member.is_some_and(|member| self.told.lock().unwrap_or_else(PoisonError::into_inner).answering.contains(&member)) {
            let mut backups = std::mem::take(&mut self.backups);
            backups.look(&self.setting.place.state, || self.save(&own));
            self.backups = backups;
        }
        if own.leaving && own.member.is_none() {
            return self.leave();
        }
        let coordinator = self.setting.state.read::<CoordinatorRecord>(COORDINATOR)?;
        if coordinator.is_some_and(|stored| stored.record.holder.host.as_str() == self.setting.identity.host) {
            self.coordinate(&members, leader)?;
        } else {
            self.silent_since.clear();
            self.tell(|told| told.waits = None);
        }
        Ok(())
    }

    /// The records say that this host is none of the cluster.
    fn was_removed(&mut self, members: &Members) -> Result<(), RoundError> {
        // An empty list says nothing.
        if members.is_empty() {
            return Ok(());
        }
        if !self.setting.removed {
            tracing::error!("this host was removed from its cluster: marud starts itself anew, to take no part in it any more");
            self.setting.removed = true;
            self.setting.again.notify_one();
        }
        // Its data stay: nobody knows yet whether that was right.
        self.keeper.order(Order::Stopped);
        Ok(())
    }

    /// Asks those who have a vote, and remembers them for the next start.
    fn follow(&mut self, members: &Members) -> Result<(), RoundError> {
        let voters = members.iter().filter(|(_, member)| member.state == MemberState::Voter);
        let addresses: Vec<MemberAddress> =
            voters.map(|(host, member)| MemberAddress { host: host.clone(), client_url: member.client_url.clone() }).collect();
        if addresses.is_empty() {
            return Ok(());
        }
        if addresses != self.setting.identity.members {
            let identity = Identity { members: addresses, ..self.setting.identity.clone() };
            identity.write(&self.setting.place.state)?;
            self.setting.identity = identity;
        }
        let endpoints = self.setting.identity.endpoints();
        if endpoints != self.endpoints {
            self.setting.etcd.set_endpoints(&endpoints)?;
            self.endpoints = endpoints;
        }
        Ok(())
    }

    /// Makes a new certificate when it is time, or when all hosts are to have one.
    fn certify(&mut self, own: &MemberRecord) -> Result<(), RoundError> {
        let wanted = self.setting.state.read::<CertificatesRecord>(CERTIFICATES)?.map_or(0, |stored| stored.record.generation);
        let old = OffsetDateTime::now_utc() - self.setting.certificate.made_at > RENEWED_AFTER;
        if !old && own.certificates == wanted {
            return Ok(());
        }
        let (place, identity) = (&self.setting.place, &self.setting.identity);
        let names = authority::names(&identity.host, &identity.addresses, &place.names);
        let made = Authority::read_or_make(&place.tls())?.issue(&identity.host, &names)?;
        self.setting.shown.exchange(&made)?;
        self.setting.etcd.set_tls(made.etcd_client())?;
        self.setting.certificate = made;
        tracing::info!("this host has a new certificate");
        if own.certificates != wanted {
            self.change(&identity.host.clone(), |record| record.certificates = wanted, None)?;
        }
        Ok(())
    }

    /// Says what this host is now, if that has changed since it was here last.
    fn register(&mut self, own: &MemberRecord) -> Result<(), RoundError> {
        if self.registered {
            return Ok(());
        }
        let (version, port) = (env!("CARGO_PKG_VERSION"), self.setting.place.api_port);
        if own.version != version || own.api_port != port {
            let change = |record: &mut MemberRecord| (record.version, record.api_port) = (version.into(), port);
            self.change(&self.setting.identity.host, change, None)?;
        }
        self.registered = true;
        Ok(())
    }

    /// Changes a host's record, and tells of it.
    fn change(&self, host: &str, edit: impl Fn(&mut MemberRecord), event: Option<EventRecord>) -> Result<(), StateError> {
        self.setting.state.edit::<MemberRecord>(host, edit, event.as_ref())
    }

    fn order(&self, own: &MemberRecord) -> Result<Order, RoundError> {
        let Some(id) = own.member else { return Ok(Order::Nothing) };
        let voter = own.state == MemberState::Voter;
        // Only who has nothing yet has to be told.
        let members = if voter { Vec::new() } else { self.all_members(id)? };
        Ok(Order::Member { id, voter, members })
    }

    fn all_members(&self, id: MemberId) -> Result<Vec<(String, String)>, RoundError> {
        let named = |member: Member| {
            let name = if member.id == id { self.setting.identity.host.clone() } else { member.name };
            member.peer_urls.into_iter().next().map(|url| (name, url))
        };
        Ok(self.setting.etcd.members()?.into_iter().filter_map(named).collect())
    }

    fn report_damage(&self, own: &MemberRecord) -> Result<(), RoundError> {
        let Some((id, why)) = self.keeper.damaged().filter(|(id, _)| own.member == Some(*id)) else { return Ok(()) };
        if own.damaged.is_none() {
            let host = &self.setting.identity.host;
            let text = format!("the member {id} of the store, on {host}, cannot go on and is to be made anew: {why}");
            tracing::error!("{text}");
            let event = EventRecord::now(EventKind::StoreAlarm, text);
            self.change(host, |record| record.damaged = Some(why.clone()), Some(event))?;
        }
        Ok(())
    }

    /// Backs the store up from this host's member.
    fn save(&self, own: &MemberRecord) -> Option<Result<PathBuf, String>> {
        (own.state == MemberState::Voter).then(|| {
            let path = backup::path(&self.setting.place.state);
            backup::save(&self.setting.etcd, &own.client_url, &path).map(|()| path)
        })
    }

    fn leader(&self) -> Option<MemberId> {
        let found = self.endpoints.iter().find_map(|url| self.setting.etcd.status(url).ok());
        found.and_then(|status| status.leader)
    }

    /// The members of hosts with a lease that answer and follow a leader. A host without one is not asked: it could hold up the
    /// others' round.
    fn answering(&self, members: &Members) -> Result<HashSet<MemberId>, StateError> {
        let alive = self.setting.state.named::<AliveRecord>()?;
        let seats = members.iter().filter(|(host, _)| alive.iter().any(|(name, _)| name == host));
        let seats = seats.filter_map(|(_, record)| Some((record.member?, &record.client_url)));
        let answers = |url: &str| self.setting.etcd.status(url).is_ok_and(|status| status.leader.is_some());
        Ok(seats.filter(|(_, url)| answers(url)).map(|(member, _)| member).collect())
    }

    /// Everything was handed over: this host is one of its own from the next start on.
    fn leave(&mut self) -> Result<(), RoundError> {
        let host = self.setting.identity.host.clone();
        let text = format!("the host {host} has left the cluster");
        let gone = forming::forgotten(&host).tell(&EventRecord::now(EventKind::HostLeft, text));
        forming::plan_to_leave(&self.setting.place)?;
        // If this is not known, the next start tells nobody, and `maru cluster remove` does it. So the plan comes first.
        match self.setting.state.commit(&gone) {
            Ok(_) => {}
            Err(error) => tracing::error!("the cluster may still know this host: {}", vmm::error_chain(&error)),
        }
        self.setting.again.notify_one();
        Ok(())
    }

    fn seats(&mut self, members: &Members) -> Result<Vec<Seat>, RoundError> {
        let alive = self.setting.state.named::<AliveRecord>()?;
        let hosts: HashMap<String, HostRecord> =
            self.setting.state.named::<HostRecord>()?.into_iter().map(|(name, stored)| (name, stored.record)).collect();
        let mut seats = Vec::new();
        for (host, record) in members {
            let is_alive = alive.iter().any(|(name, _)| name == host);
            let since = if is_alive {
                self.silent_since.remove(host);
                None
            } else {
                Some(*self.silent_since.entry(host.clone()).or_insert_with(Instant::now))
            };
            seats.push(Seat {
                host: host.clone(),
                record: record.clone(),
                alive: is_alive,
                lost: since.is_some_and(|since| since.elapsed() >= LOST),
                drained: hosts.get(host).is_some_and(|host| host.wanted == HostWanted::Drained),
            });
        }
        self.silent_since.retain(|host, _| members.iter().any(|(name, _)| name == host));
        Ok(seats)
    }

    fn coordinate(&mut self, members: &Members, leader: Option<MemberId>) -> Result<(), RoundError> {
        if self.alarms_at <= Instant::now() {
            self.alarms_at = Instant::now() + ALARMS;
            self.look_for_alarms(members)?;
        }
        let seats = self.seats(members)?;
        let step = decide::next(&seats, &self.setting.etcd.members()?, leader);
        let waits = match &step {
            Step::Nothing => None,
            Step::Wait(text) => Some(text.clone()),
            step => self.take(step)?,
        };
        self.tell(|told| told.waits = waits);
        // The next step need not wait for the next round.
        if !matches!(step, Step::Nothing | Step::Wait(_) | Step::Promote { .. }) {
            thread::current().unpark();
        }
        Ok(())
    }

    /// Takes a step; gives what it waits for.
    fn take(&self, step: &Step) -> Result<Option<String>, RoundError> {
        let etcd = &self.setting.etcd;
        let told = |text: String| {
            tracing::info!("{text}");
            EventRecord::now(EventKind::StoreMembers, text)
        };
        match step {
            Step::Nothing | Step::Wait(_) => {}
            Step::Note { host, state, member } => {
                let text = match state {
                    MemberState::Client => format!("the host {host} has no member of the store any more"),
                    MemberState::Learner => format!("the host {host} gets a member of the store"),
                    MemberState::Voter => format!("the host {host} has a member of the store"),
                };
                let change = |record: &mut MemberRecord| {
                    (record.state, record.member, record.damaged) = (*state, *member, None);
                };
                self.change(host, change, Some(told(text)))?;
            }
            Step::Add { host } => {
                let record = self.setting.state.read::<MemberRecord>(host)?;
                let Some(record) = record else { return Ok(None) };
                if let Err(error) = etcd.add_learner(&record.record.peer_url) {
                    return Ok(Some(format!("{host} is to get a member of the store: {error}")));
                }
            }
            Step::Promote { host, member } => match etcd.promote(*member) {
                Ok(true) => {}
                Ok(false) => return Ok(Some(format!("{host} gets a copy of the store, and a vote when it has all of it"))),
                Err(error) => return Ok(Some(format!("{host} is to get a vote in the store: {error}"))),
            },
            Step::Remove { host, member, why } => {
                let host = host.as_deref().unwrap_or("nobody");
                tracing::info!("the member {member} of the store, of {host}, is removed: {why}");
                if let Err(error) = etcd.remove(*member) {
                    return Ok(Some(format!("the member {member} of the store, of {host}, is to be removed: {error}")));
                }
            }
            Step::MoveLeader { from_url, host, to } => {
                if let Err(error) = etcd.move_leader(from_url, *to) {
                    return Ok(Some(format!("{host} is to lead the store: {error}")));
                }
            }
        }
        Ok(None)
    }
}
