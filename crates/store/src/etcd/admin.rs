//! Members of etcd, their state, backups and alarms.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::endpoints::{Door, Failure, Repeat, answers, attempt, failure, unary};
use super::{EtcdStore, revision, wire};
use crate::{Revision, StoreError};

const MEMBERS: &str = "/etcdserverpb.Cluster/MemberList";
const ADD: &str = "/etcdserverpb.Cluster/MemberAdd";
const REMOVE: &str = "/etcdserverpb.Cluster/MemberRemove";
const PROMOTE: &str = "/etcdserverpb.Cluster/MemberPromote";
const COMPACT: &str = "/etcdserverpb.KV/Compact";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";
const ALARM: &str = "/etcdserverpb.Maintenance/Alarm";
const DEFRAGMENT: &str = "/etcdserverpb.Maintenance/Defragment";
const HASH: &str = "/etcdserverpb.Maintenance/HashKV";
const SNAPSHOT: &str = "/etcdserverpb.Maintenance/Snapshot";
const MOVE_LEADER: &str = "/etcdserverpb.Maintenance/MoveLeader";

/// How long a member may take to say how it is.
const SHORT: Duration = Duration::from_secs(1);

/// How long the next piece of a backup may take, and defragmentation all in all.
const LONG: Duration = Duration::from_secs(60);

/// Names a member of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct MemberId(pub u64);

impl std::fmt::Display for MemberId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A member as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name for the cluster.
    pub id: MemberId,
    /// The name that it was started with; empty as long as it was never started.
    pub name: String,
    /// Where the others reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty as long as it was never started.
    pub client_urls: Vec<String>,
    /// It gets everything and has no vote.
    pub learner: bool,
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its name for the cluster.
    pub id: MemberId,
    /// Its version of etcd.
    pub version: String,
    /// The leader that it follows; `None` if it knows none.
    pub leader: Option<MemberId>,
    /// It gets everything and has no vote.
    pub learner: bool,
    /// The newest revision that it has.
    pub revision: Revision,
    /// The size of its file in bytes.
    pub file_bytes: u64,
    /// How much of that is in use; the rest is given back by defragmentation.
    pub used_bytes: u64,
}

/// Why etcd takes no more changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Its quota is used up: what is not needed must be deleted, compacted and defragmented.
    NoSpace,
    /// Some member differs from the others: it must be removed, and added anew. [`EtcdStore::hash`] shows which; etcd 3.4 names none (0).
    Corrupt,
    /// One that is not known here.
    Other(i32),
}

/// Why there is no new backup.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// etcd does not give it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file.
    #[error("the backup cannot be written")]
    Io(#[from] io::Error),
}

impl EtcdStore {
    /// All members, as most of them agree.
    pub fn members(&self) -> Result<Vec<Member>, StoreError> {
        let question = wire::MemberListRequest { linearizable: true };
        let answer: wire::MemberListResponse = self.ask(Repeat::Harmless, MEMBERS, question)?;
        Ok(answer.members.into_iter().map(Member::from).collect())
    }

    /// Adds a member without a vote. It is started after that ([`server::Membership::Join`](super::server::Membership::Join)).
    ///
    /// # Errors
    /// [`StoreError::Refused`] when there is such a member or another learner, or most members are not there.
    pub fn add_learner(&self, peer_url: &str) -> Result<Member, StoreError> {
        let question = wire::MemberAddRequest { peer_urls: vec![peer_url.into()], learner: true };
        let answer: wire::MemberAddResponse = self.ask(Repeat::Never, ADD, question)?;
        Ok(answer.member.ok_or(StoreError::Malformed("a member that was added and is none"))?.into())
    }

    /// Gives a learner a vote; `false` while it has not caught up with the others.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when there is no such learner.
    pub fn promote(&self, member: MemberId) -> Result<bool, StoreError> {
        match self.ask::<_, wire::Done>(Repeat::Never, PROMOTE, wire::MemberRequest { id: member.0 }) {
            Err(StoreError::Refused(status)) if status.message().contains("in sync with leader") => Ok(false),
            done => done.map(|_| true),
        }
    }

    /// Removes a member; its process ends when it hears of it.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when there is no such member, or too few of the others are there.
    pub fn remove(&self, member: MemberId) -> Result<(), StoreError> {
        self.ask::<_, wire::Done>(Repeat::Never, REMOVE, wire::MemberRequest { id: member.0 }).map(drop)
    }

    /// Lets the member at this address, which leads, hand over to another one.
    pub fn move_leader(&self, leader_url: &str, to: MemberId) -> Result<(), StoreError> {
        self.ask_member::<_, wire::Done>(leader_url, MOVE_LEADER, wire::MoveLeaderRequest { target: to.0 }, None).map(drop)
    }

    /// What the member at this address says of itself, whether the others are there or not.
    pub fn status(&self, url: &str) -> Result<MemberStatus, StoreError> {
        let answer: wire::StatusResponse = self.ask_member(url, STATUS, wire::Nothing {}, Some(SHORT))?;
        let header = answer.header.unwrap_or_default();
        Ok(MemberStatus {
            id: MemberId(header.member),
            version: answer.version,
            leader: (answer.leader != 0).then_some(MemberId(answer.leader)),
            learner: answer.learner,
            revision: revision(header.revision),
            file_bytes: answer.db_size.try_into().unwrap_or(0),
            used_bytes: answer.db_size_in_use.try_into().unwrap_or(0),
        })
    }

    /// What the member at this address holds up to a revision, as a number, and the revision up to which it is compacted. Members that are compacted
    /// alike hold the same if their numbers are the same: it shows who it is that an alarm is about.
    pub fn hash(&self, url: &str, up_to: Revision) -> Result<(u32, Revision), StoreError> {
        let question = wire::HashRequest { revision: super::number(up_to) };
        let answer: wire::HashResponse = self.ask_member(url, HASH, question, Some(LONG))?;
        Ok((answer.hash, revision(answer.compact_revision)))
    }

    /// Forgets the changes before a revision: no watch can begin with them any more. `marud` has etcd do so by itself.
    pub fn compact(&self, up_to: Revision) -> Result<(), StoreError> {
        let question = wire::CompactionRequest { revision: super::number(up_to), physical: true };
        match self.ask::<_, wire::Done>(Repeat::Harmless, COMPACT, question) {
            // By an earlier attempt, or by someone else.
            Err(StoreError::Refused(status)) if status.message().contains("has been compacted") => Ok(()),
            done => done.map(drop),
        }
    }

    /// Gives space that the member at this address does not use back to its file system. It answers nobody meanwhile.
    pub fn defragment(&self, url: &str) -> Result<(), StoreError> {
        self.ask_member::<_, wire::Done>(url, DEFRAGMENT, wire::Nothing {}, Some(LONG)).map(drop)
    }

    /// What is wrong, and with whom.
    pub fn alarms(&self) -> Result<Vec<(MemberId, Alarm)>, StoreError> {
        let question = wire::AlarmRequest { action: wire::GET, member: 0, alarm: 0 };
        let answer: wire::AlarmResponse = self.ask(Repeat::Harmless, ALARM, question)?;
        Ok(answer.alarms.into_iter().map(|alarm| (MemberId(alarm.member), alarm.alarm.into())).collect())
    }

    /// Ends an alarm whose cause is gone.
    pub fn disarm(&self, member: MemberId, alarm: Alarm) -> Result<(), StoreError> {
        let question = wire::AlarmRequest { action: wire::DEACTIVATE, member: member.0, alarm: alarm.into() };
        self.ask::<_, wire::AlarmResponse>(Repeat::Harmless, ALARM, question).map(drop)
    }

    /// Writes everything, as it is on the member at this address, to a file. The file is there when it is whole.
    /// [`server::restore`](super::server::restore) makes a member of it.
    ///
    /// # Errors
    /// When the member does not go on for a minute, or there is no room.
    pub fn snapshot(&self, url: &str, path: &Path) -> Result<(), SnapshotError> {
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".unfinished");
        self.copy(url, Path::new(&unfinished)).inspect_err(|_| {
            // What is left of it is of no use; it is overwritten next time otherwise.
            let _ = std::fs::remove_file(&unfinished);
        })?;
        std::fs::rename(&unfinished, path)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(File::open(directory)?.sync_all()?)
    }

    fn copy(&self, url: &str, path: &Path) -> Result<(), SnapshotError> {
        let mut file = File::create(path)?;
        let door = self.member(url)?;
        let mut pieces: Streaming<wire::SnapshotResponse> = self.wait(async move {
            let begun = attempt(&door, LONG, LONG, |channel| answers(channel, SNAPSHOT, wire::Nothing {})).await;
            begun.map_err(|failure| one_failed(failure, LONG))
        })?;
        let mut remaining = None;
        loop {
            // The disk may be slow; the thread of etcd's calls does not wait for it.
            let (piece, rest) = self.wait(async move {
                let piece = timeout(LONG, pieces.message()).await.unwrap_or_else(|_| Err(Status::cancelled("it does not go on")));
                let piece = piece.map_err(|status| one_failed(failure(status), LONG))?;
                Ok((piece, pieces))
            })?;
            pieces = rest;
            let Some(piece) = piece else { break };
            file.write_all(&piece.blob)?;
            remaining = Some(piece.remaining_bytes);
        }
        if remaining != Some(0) {
            return Err(StoreError::Malformed("a backup without its end").into());
        }
        Ok(file.sync_all()?)
    }

    fn member(&self, url: &str) -> Result<Arc<Door>, StoreError> {
        let doors = self.endpoints.doors();
        let reason = || StoreError::Unavailable { waited: Duration::ZERO, reason: format!("{url} is none of the members") };
        doors.iter().find(|door| door.url == url).cloned().ok_or_else(reason)
    }

    /// Asks one member, and no other.
    fn ask_member<Q, A>(&self, url: &str, path: &'static str, question: Q, long: Option<Duration>) -> Result<A, StoreError>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let (door, waited) = (self.member(url)?, long.unwrap_or(self.endpoints.deadline));
        self.wait(async move {
            let asked = attempt(&door, waited, waited, |channel| unary(channel, path, question.clone())).await;
            asked.map_err(|failure| one_failed(failure, waited))
        })
    }
}

fn one_failed(failure: Failure, waited: Duration) -> StoreError {
    match failure {
        Failure::Refused(error) => error,
        Failure::NotDone(reason) => StoreError::Unavailable { waited, reason },
        Failure::Unsure(reason) => StoreError::Unknown(reason),
    }
}

impl From<wire::Member> for Member {
    fn from(member: wire::Member) -> Member {
        Member {
            id: MemberId(member.id),
            name: member.name,
            peer_urls: member.peer_urls,
            client_urls: member.client_urls,
            learner: member.learner,
        }
    }
}

impl From<i32> for Alarm {
    fn from(number: i32) -> Alarm {
        match number {
            wire::NOSPACE => Alarm::NoSpace,
            wire::CORRUPT => Alarm::Corrupt,
            other => Alarm::Other(other),
        }
    }
}

impl From<Alarm> for i32 {
    fn from(alarm: Alarm) -> i32 {
        match alarm {
            Alarm::NoSpace => wire::NOSPACE,
            Alarm::Corrupt => wire::CORRUPT,
            Alarm::Other(other) => other,
        }
    }
}
