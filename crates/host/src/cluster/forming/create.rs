//! A cluster of one host.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ::cluster::HostId;
use ::cluster::records::{self, Holder, OwnerRecord};
use store::etcd::server::{Membership, Server};
use store::etcd::{EtcdConfig, EtcdStore};
use store::record::Record;
use store::{Entry, FileStore, LeaseId, MAX_OPERATIONS, MAX_TRANSACTION, Outcome, Revision, Store, StoreError, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{CreateRecord, Formed, FormingError, Place, PlanRecord};
use crate::cluster::authority::{self, Authority};
use crate::cluster::handover::Handover;
use crate::cluster::identity::{Identity, MemberAddress, remove_file};
use crate::cluster::placements;
use crate::cluster::records::{CERTIFICATES, CertificatesRecord, ClusterRecord, INFO, MemberRecord, MemberState, is_host_name};
use crate::records::{EventKind, EventRecord, Power, Pruned, VmRecord};
use crate::state::{Records, State, StateError};

/// How long etcd may take to be ready.
pub(super) const READY: Duration = Duration::from_secs(30);
/// How long one call of it may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// Who names none.
const DEFAULT_NAME: &str = "maru";

/// Checks whether a cluster can be made here, and has that done at the next start.
pub fn prepare(place: &Place, wanted: &api::NewCluster, found: &[IpAddr]) -> Result<(), FormingError> {
    super::must_be_alone(place)?;
    let name = wanted.name.as_deref().unwrap_or(DEFAULT_NAME);
    if !is_host_name(name) {
        return Err(FormingError::Name(name.into()));
    }
    let (host, addresses) = super::name_and_addresses(place, wanted.host.as_deref(), &wanted.addresses, found)?;
    place.programs()?;
    remove_file(&place.state.join(super::FAILURE))?;
    let plan = CreateRecord { cluster: Uuid::new_v4(), name: name.into(), host, addresses };
    Ok(place.write_plan(&PlanRecord::Create(plan))?)
}

/// Makes the cluster.
pub(super) fn run(place: &Place, plan: &CreateRecord) -> Result<Formed, FormingError> {
    // What an earlier attempt left there belongs to no cluster.
    super::remove_directory(&place.member())?;
    let (client_url, peer_url) = place.urls(&plan.addresses);
    let member = MemberAddress { host: plan.host.clone(), client_url: client_url.clone() };
    let identity = Identity {
        cluster: plan.cluster,
        host: plan.host.clone(),
        addresses: plan.addresses.clone(),
        api_port: place.api_port,
        client_url,
        peer_url,
        members: vec![member],
        witness: false,
    };
    let authority = Authority::read_or_make(&place.tls())?;
    let certificate = authority.issue(&plan.host, &authority::names(&plan.host, &plan.addresses, &place.names))?;
    let membership = Membership::Create { token: plan.cluster.to_string() };
    let server = Server::start(&place.programs()?, &place.server(&identity, membership))?;
    let tls = certificate.etcd_client();
    server.wait_ready(Some(&tls), READY)?;
    let store = EtcdStore::new(&EtcdConfig { endpoints: identity.endpoints(), tls: Some(tls), deadline: DEADLINE })?;

    let id = store.status(&identity.client_url)?.id;
    let directory = place.member();
    crate::cluster::members::keeper::note_member(place, id).map_err(super::file(&directory))?;
    let store = Arc::new(store);
    copy(&FileStore::open(&place.state)?, &store)?;
    let handover = Handover::begin(store.clone(), &plan.host)?;
    place_vms(&State::of_cluster(store.clone(), &plan.host), handover.lease())?;
    let member = MemberRecord {
        addresses: plan.addresses.clone(),
        api_port: place.api_port,
        client_url: identity.client_url.clone(),
        peer_url: identity.peer_url.clone(),
        witness: false,
        version: env!("CARGO_PKG_VERSION").into(),
        state: MemberState::Voter,
        member: Some(id),
        leaving: false,
        damaged: None,
        certificates: 0,
        join: plan.cluster,
        joined_at: OffsetDateTime::now_utc(),
    };
    let cluster = ClusterRecord {
        id: plan.cluster,
        name: plan.name.clone(),
        created_at: OffsetDateTime::now_utc(),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let text = format!("the cluster '{}' was made, with the host {}", plan.name, plan.host);
    let last = Transaction::new()
        .write(INFO, &cluster)
        .write(CERTIFICATES, &CertificatesRecord::default())
        .write(&plan.host, &super::own_record(&plan.addresses, place.api_port))
        .write(&plan.host, &member)
        .tell(&EventRecord::now(EventKind::ClusterCreated, text));
    put(&store, &last)?;

    // From here on it is a cluster.
    identity.write(&place.state)?;
    super::retire_file_store(place, &identity)?;
    place.end_plan()?;
    Ok(Formed { identity: Some(identity), server: Some(server), handover: Some(handover) })
}

/// Writes all that one store has into another, which is empty.
fn copy(from: &FileStore, to: &EtcdStore) -> Result<(), FormingError> {
    let entries = from.range("")?.entries;
    let is_event = |entry: &Entry| entry.key.starts_with(EventRecord::PREFIX);
    let (mut events, others): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(is_event);
    for chunk in chunks(&others) {
        put(to, &chunk.iter().fold(Transaction::new(), |all, entry| all.put(&entry.key, entry.value.as_slice())))?;
    }
    // The revision of an event is its number, so each has one of its own. Numbers that were told before mean nothing any more.
    let before = to.revision()?;
    put(to, &Transaction::new().write("events", &Pruned { up_to: before.0 + 1 }))?;
    events.sort_by_key(|event| event.revision);
    for event in events {
        put(to, &Transaction::new().put(event.key, event.value))?;
    }
    Ok(())
}

/// VMs are this host's, and those that run are to run: it is the cluster now that looks after that.
fn place_vms(state: &State, incarnation: LeaseId) -> Result<(), StateError> {
    let host = HostId::from(state.own_host().unwrap_or_default());
    for vm in state.all::<VmRecord>()? {
        let id = vm.record.id.to_string();
        let mut transaction = Transaction::new().write(&id, &vm.record);
        if vm.record.power == Power::On {
            transaction = placements::want(state, vm.record.id, records::Power::On, transaction)?;
            let holder = Some(Holder { host: host.clone(), incarnation });
            transaction = transaction.write(&id, &OwnerRecord { holder, start: 1, ..OwnerRecord::default() });
        }
        // Nobody else is there, and what is not known to be done is done again.
        while let Err(StateError::Store(StoreError::Unknown(_))) = state.commit(&transaction) {}
    }
    Ok(())
}

/// Entries, in parts that a transaction can have.
fn chunks(entries: &[Entry]) -> Vec<&[Entry]> {
    let (mut chunks, mut rest) = (Vec::new(), entries);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.key.len() + entry.value.len();
            bytes <= MAX_TRANSACTION
        };
        // One always fits.
        let count = rest.iter().take(MAX_OPERATIONS).take_while(fits).count().max(1);
        let (chunk, after) = rest.split_at(count);
        chunks.push(chunk);
        rest = after;
    }
    chunks
}

/// Commits what has no conditions: if it is not known whether it was done, it is done again.
pub(super) fn put(store: &EtcdStore, transaction: &Transaction) -> Result<Revision, StoreError> {
    loop {
        match store.commit(transaction) {
            Err(StoreError::Unknown(_)) => {}
            Ok(Outcome::Committed(revision)) => return Ok(revision),
            Ok(Outcome::Conflict { .. }) => return Err(StoreError::Malformed("a conflict without a condition")),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use store::MAX_VALUE;

    use super::*;

    proptest! {
        #[test]
        fn all_entries_are_in_chunks_that_a_store_takes(sizes in prop::collection::vec(prop_oneof![0..64_usize, 0..MAX_VALUE], 0..160)) {
            let entry = |(index, size): (usize, &usize)| Entry {
                key: format!("key/{index}"),
                // What is zeroed takes no memory until it is used.
                value: vec![0; *size],
                revision: Revision(1),
                lease: None,
            };
            let entries: Vec<Entry> = sizes.iter().enumerate().map(entry).collect();
            let chunks = chunks(&entries);
            prop_assert_eq!(chunks.iter().map(|chunk| chunk.len()).sum::<usize>(), entries.len());
            for chunk in chunks {
                let bytes: usize = chunk.iter().map(|entry| entry.key.len() + entry.value.len()).sum();
                prop_assert!(!chunk.is_empty() && chunk.len() <= MAX_OPERATIONS && bytes <= MAX_TRANSACTION);
            }
        }
    }
}
