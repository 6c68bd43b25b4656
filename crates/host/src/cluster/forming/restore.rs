//! A cluster whose store has lost most of its members for ever: one host goes on with what it has.
//!
//! It is told so by a file, `restore.json`, which `maru cluster restore` writes: the store, which knows who may do what, is what is lost. What this
//! host's member has is newer than any backup, so that is taken unless a backup is named.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::cluster::records::{AliveRecord, CoordinatorRecord};
use serde::{Deserialize, Serialize};
use store::Transaction;
use store::etcd::server::{Membership, Server, restore};
use store::etcd::{EtcdConfig, EtcdStore};
use store::record::Record;
use uuid::Uuid;

use super::create::{DEADLINE, READY, put};
use super::{Formed, FormingError, Place, file, remember_failure, remove_directory};
use crate::cluster::authority::{self, Authority};
use crate::cluster::identity::{Identity, MemberAddress, read_file, remove_file};
use crate::cluster::members::keeper::note_member;
use crate::cluster::records::{ClusterRecord, INFO, MemberRecord, MemberState};
use crate::records::{EventKind, EventRecord};
use crate::state::{Records, State};

const FILE: &str = "restore.json";

/// `restore.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RestoreRecord {
    /// The backup; none for what this host's own member has.
    backup: Option<PathBuf>,
}

impl Record for RestoreRecord {
    const PREFIX: &'static str = "";
    const KIND: &'static str = "restore";
    const VERSION: u32 = 1;
}

/// Whether someone wants that.
pub(super) fn is_wanted(place: &Place) -> bool {
    place.state.join(FILE).exists()
}

/// Restores the cluster, if that is wanted. When it cannot be done, the host is what it was.
pub(super) fn run_if_wanted(place: &Place, identity: &Identity) -> Result<Option<Formed>, FormingError> {
    let path = place.state.join(FILE);
    remove_file(&place.state.join(super::FAILURE))?;
    let wanted = match read_file::<RestoreRecord>(&path) {
        Ok(None) => return Ok(None),
        Ok(Some(wanted)) => wanted,
        Err(error) => {
            tracing::error!("{}", vmm::error_chain(&error));
            remember_failure(place, &error.into())?;
            remove_file(&path)?;
            return Ok(None);
        }
    };
    let (member, before) = (place.member(), place.state.join("etcd.before-restore"));
    let restored = run(place, identity, &wanted, &before);
    if let Err(error) = &restored {
        tracing::error!("the cluster is not restored: {}", vmm::error_chain(error));
        if before.exists() {
            remove_directory(&member)?;
            fs::rename(&before, &member).map_err(file(&member))?;
        }
        remember_failure(place, error)?;
    }
    remove_file(&path)?;
    Ok(restored.ok())
}

fn run(place: &Place, identity: &Identity, wanted: &RestoreRecord, before: &Path) -> Result<Formed, FormingError> {
    let id = Uuid::new_v4();
    let own = MemberAddress { host: identity.host.clone(), client_url: identity.client_url.clone() };
    let identity = Identity { cluster: id, members: vec![own], ..identity.clone() };
    let authority = Authority::read_or_make(&place.tls())?;
    let certificate = authority.issue(&identity.host, &authority::names(&identity.host, &identity.addresses, &place.names))?;
    let programs = place.programs()?;
    let member = place.member();
    let mut config = place.server(&identity, Membership::Alone);
    if let Some(backup) = &wanted.backup {
        tracing::warn!("restores the cluster from {}", backup.display());
        config.membership = Membership::Create { token: id.to_string() };
        if member.exists() && !before.exists() {
            fs::rename(&member, before).map_err(file(&member))?;
        }
        // What an attempt before has left.
        remove_directory(&member)?;
        fs::create_dir_all(&member).map_err(file(&member))?;
        restore(&programs, backup, &config)?;
    } else {
        tracing::warn!("restores the cluster from what this host's member of the store has");
        let data = config.directory.join("member");
        if !data.exists() {
            return Err(FormingError::NoData(data));
        }
    }
    let server = Server::start(&programs, &config)?;
    let tls = certificate.etcd_client();
    server.wait_ready(Some(&tls), READY)?;
    let etcd = EtcdStore::new(&EtcdConfig { endpoints: identity.endpoints(), tls: Some(tls), deadline: DEADLINE })?;
    let etcd = Arc::new(etcd);
    let member_id = etcd.status(&identity.client_url)?.id;
    note_member(place, member_id).map_err(file(&member))?;

    let state = State::new(etcd.clone());
    for (host, stored) in state.named::<MemberRecord>()? {
        if host == identity.host {
            let (state, member) = (MemberState::Voter, Some(member_id));
            let record = MemberRecord { state, member, leaving: false, damaged: None, ..stored.record };
            put(&etcd, &Transaction::new().write(&host, &record))?;
        } else {
            put(&etcd, &super::forgotten(&host).forget::<AliveRecord>(&host))?;
        }
    }
    let mut last = Transaction::new().forget::<CoordinatorRecord>("coordinator");
    if let Some(info) = state.read::<ClusterRecord>(INFO)? {
        last = last.write(INFO, &ClusterRecord { id, ..info.record });
    }
    let text = format!("the cluster was restored on the host {}; all others were forgotten", identity.host);
    put(&etcd, &last.tell(&EventRecord::now(EventKind::StoreAlarm, text)))?;
    identity.write(&place.state)?;
    remove_directory(before)?;
    Ok(Formed { identity: Some(identity), server: Some(server), handover: None })
}
