//! The other side: a host of the cluster that lets another one join.

use std::net::SocketAddr;
use std::time::Duration;

use ::cluster::records::{Fencing, HostRecord};
use ring::rand::{SecureRandom, SystemRandom};
use store::record::Stored;
use store::{Outcome, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{FormingError, Place};
use crate::auth::{hex, sha256};
use crate::cluster::authority::Authority;
use crate::cluster::identity::Identity;
use crate::cluster::records::{
    CERTIFICATES, CertificatesRecord, ClusterRecord, INFO, JoinRecord, MAX_HOST, MemberRecord, MemberState, UsedRecord,
    is_host_name, local_token,
};
use crate::cluster::token::JoinToken;
use crate::records::{Cause, EventKind, EventRecord, RoleRecord, TokenRecord};
use crate::state::{Records, State, StateError};

/// How far clocks of hosts may be apart. The arithmetic of leases does not depend on it; certificates, logs and people do.
const CLOCKS: Duration = Duration::from_secs(2);
/// How long a token can be used if nothing else is said, in seconds.
const VALID: u32 = 3600;
/// The longest that is taken, in seconds.
const LONGEST: u32 = 7 * 24 * 3600;
/// Where members are that a token tells of; more are not needed.
const ADDRESSES: usize = 8;
/// How often others may come first.
const ATTEMPTS: usize = 16;

/// What becomes of a host that wants to join.
pub enum Admitted {
    /// It is one of the cluster.
    Yes(Box<api::JoinAnswer>),
    /// Its secret is not known.
    Unknown(Cause),
    /// It cannot join as it is, or not now.
    No(Cause),
}

/// Why nobody could be asked.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// The store.
    #[error(transparent)]
    State(#[from] StateError),
    /// The authority.
    #[error(transparent)]
    Forming(#[from] FormingError),
    /// Others joined all the time.
    #[error("too many hosts join at the same time: try again")]
    Busy,
}

/// Makes a token to join with.
pub fn make_token(
    state: &State,
    place: &Place,
    identity: &Identity,
    wanted: &api::NewJoinToken,
) -> Result<Result<api::CreatedJoinToken, Cause>, AdmitError> {
    let seconds = wanted.valid_seconds.unwrap_or(VALID);
    if !(1..=LONGEST).contains(&seconds) {
        let message = format!("a token cannot be valid for {seconds} s");
        return Ok(Err(Cause::new("bad-time", message, format!("ask for 1 to {LONGEST} s, which is a week"))));
    }
    let mut secret = [0; 32];
    SystemRandom::new().fill(&mut secret).map_err(|_| StateError::Ending)?;
    let (id, secret) = (Uuid::new_v4(), hex(&secret));
    // This host first: it is there.
    let mut members = state.named::<MemberRecord>()?;
    members.sort_by_key(|(name, _)| *name != identity.host);
    let address = |(_, member): &(String, Stored<MemberRecord>)| {
        member.record.addresses.first().map(|address| SocketAddr::new(*address, member.record.api_port))
    };
    let addresses = members.iter().filter_map(address).take(ADDRESSES).collect();
    let fingerprint = Authority::read_or_make(&place.tls()).and_then(|authority| authority.fingerprint());
    let token = JoinToken { addresses, fingerprint: fingerprint.map_err(FormingError::from)?, id, secret };
    let expires_at = OffsetDateTime::now_utc() + Duration::from_secs(seconds.into());
    let record = JoinRecord { secret_sha256: sha256(token.secret.as_bytes()), expires_at, used: None };
    state.commit(&Transaction::new().write(&id.to_string(), &record))?;
    Ok(Ok(api::CreatedJoinToken { token: token.to_string(), expires_at }))
}

/// Lets a host join, if all is well. The same join again has the same answer.
pub fn admit(
    state: &State,
    place: &Place,
    request: &api::JoinRequest,
    secret: &str,
    now: OffsetDateTime,
) -> Result<Admitted, AdmitError> {
    for _ in 0..ATTEMPTS {
        let token = state.read::<JoinRecord>(&request.token.to_string())?;
        let token = token.filter(|token| token.record.secret_sha256 == sha256(secret.as_bytes()));
        let Some(token) = token else { return Ok(Admitted::Unknown(unknown())) };
        let Some(info) = state.read::<ClusterRecord>(INFO)? else { return Err(StateError::Gone("the cluster".into()).into()) };
        let members = state.named::<MemberRecord>()?;
        if let Some(used) = &token.record.used {
            let is_same = used.join == request.join && used.host == request.host;
            let is_there = members.iter().any(|(name, member)| *name == used.host && member.record.join == used.join);
            if is_same && is_there {
                return answer(place, &info.record, &members).map(Admitted::Yes);
            }
            return Ok(Admitted::No(used_up(&used.host)));
        }
        if let Some(cause) = look(&token.record, &members, request, now) {
            return Ok(Admitted::No(cause));
        }
        let admin = local_token(&request.host);
        if state.read::<TokenRecord>(&admin)?.is_some() {
            let message = format!("there is a token '{admin}' already, which would be that of this host");
            return Ok(Admitted::No(Cause::new("name-taken", message, "delete that token, or choose another name with --name")));
        }
        if let Outcome::Committed(_) = state.commit(&joining(state, place, &token, &info, request, now)?)? {
            return answer(place, &info.record, &members).map(Admitted::Yes);
        }
    }
    Err(AdmitError::Busy)
}

/// The refusal of one who shows no secret that is known here.
pub fn unknown() -> Cause {
    Cause::new("wrong-token", "the token is not known here", "make a new one with `maru cluster token` on a host of the cluster")
}

fn used_up(host: &str) -> Cause {
    let message = format!("the token was used by the host {host} already");
    Cause::new("token-used", message, "a token is for one host: make another one with `maru cluster token`")
}

/// Why a host cannot join.
fn look(
    token: &JoinRecord,
    members: &[(String, Stored<MemberRecord>)],
    request: &api::JoinRequest,
    now: OffsetDateTime,
) -> Option<Cause> {
    if token.expires_at < now {
        let message = format!("the token was valid until {}", token.expires_at);
        return Some(Cause::new("token-expired", message, "make a new one with `maru cluster token`"));
    }
    let apart = (request.at - now).unsigned_abs();
    if apart > CLOCKS {
        let side = if request.at > now { "ahead of" } else { "behind" };
        let message = format!(
            "the host's clock is {:.1} s {side} the cluster's, and {} s at most are allowed",
            apart.as_secs_f64(),
            CLOCKS.as_secs()
        );
        return Some(Cause::new("clock", message, "set both by NTP, and join then"));
    }
    let own = env!("CARGO_PKG_VERSION");
    if release(&request.version) != release(own) {
        let message = format!("the host runs Maru {}, and the cluster {own}", request.version);
        return Some(Cause::new("version", message, "install the same version on both"));
    }
    let name = &request.host;
    if !is_host_name(name) {
        let message = format!("'{name}' cannot be the name of a host");
        return Some(Cause::new("bad-name", message, format!("use 1 to {MAX_HOST} letters, digits, '-', '_' and '.'")));
    }
    if !(1..=2).contains(&request.addresses.len()) || request.addresses.iter().any(|address| address.is_unspecified()) {
        let message = "a host has one or two addresses, one for each network";
        return Some(Cause::new("bad-address", message, "name them with --address"));
    }
    if members.iter().any(|(other, _)| other == name) {
        let message = format!("there is a host called '{name}' in the cluster already");
        let way_out = "choose another name with --name, or `maru cluster remove` that host if it is gone for good";
        return Some(Cause::new("name-taken", message, way_out));
    }
    let place_of = |address, port| SocketAddr::new(address, port);
    let taken = |member: &MemberRecord| {
        let ours = request.addresses.iter().map(|address| place_of(*address, request.api_port));
        ours.into_iter().find(|address| member.addresses.iter().any(|other| place_of(*other, member.api_port) == *address))
    };
    members.iter().find_map(|(other, member)| {
        let address = taken(&member.record)?;
        let message = format!("the address {address} is that of the host {other}");
        Some(Cause::new(
            "address-taken",
            message,
            "name another one with --address, or `maru cluster remove` that host if it is gone",
        ))
    })
}

/// What must be the same: the major and the minor version.
fn release(version: &str) -> Option<(&str, &str)> {
    let mut parts = version.split('.');
    Some((parts.next()?, parts.next()?))
}

/// The transaction by which it is one of the cluster.
fn joining(
    state: &State,
    place: &Place,
    token: &Stored<JoinRecord>,
    info: &Stored<ClusterRecord>,
    request: &api::JoinRequest,
    now: OffsetDateTime,
) -> Result<Transaction, StateError> {
    let name = &request.host;
    let its_place = Place { client_port: request.client_port, peer_port: request.peer_port, ..place.clone() };
    let (client_url, peer_url) = its_place.urls(&request.addresses);
    let generation = state.read::<CertificatesRecord>(CERTIFICATES)?.map_or(0, |stored| stored.record.generation);
    let member = MemberRecord {
        addresses: request.addresses.clone(),
        api_port: request.api_port,
        client_url,
        peer_url,
        witness: request.witness,
        version: request.version.clone(),
        state: MemberState::Client,
        member: None,
        leaving: false,
        damaged: None,
        certificates: generation,
        join: request.join,
        joined_at: now,
    };
    let host = HostRecord {
        memory_mib: request.memory_mib,
        cpus: request.cpus,
        addresses: request.addresses.iter().map(ToString::to_string).collect(),
        port: request.api_port,
        fencing: if request.watchdog { Fencing::Watchdog } else { Fencing::Manual },
        ..HostRecord::default()
    };
    let admin = TokenRecord {
        name: local_token(name),
        role: RoleRecord::Admin,
        secret_sha256: request.admin_sha256.clone(),
        created_at: now,
    };
    let used = Some(UsedRecord { join: request.join, host: name.clone() });
    let id = request.token.to_string();
    let text = format!("the host {name} has joined the cluster");
    Ok(Transaction::new()
        .if_still(&id, token)
        // One after the other: two hosts with the same address would not notice each other otherwise.
        .if_still(INFO, info)
        .write(INFO, &info.record)
        .if_none::<HostRecord>(name)
        .if_none::<MemberRecord>(name)
        .if_none::<TokenRecord>(&admin.name)
        .write(&id, &JoinRecord { used, ..token.record.clone() })
        .write(name, &host)
        .write(name, &member)
        .write(&admin.name, &admin)
        .tell(&EventRecord::now(EventKind::HostJoined, text)))
}

fn answer(
    place: &Place,
    info: &ClusterRecord,
    members: &[(String, Stored<MemberRecord>)],
) -> Result<Box<api::JoinAnswer>, AdmitError> {
    let authority = Authority::read_or_make(&place.tls()).map_err(FormingError::from)?;
    let voters = members.iter().filter(|(_, member)| member.record.state == MemberState::Voter);
    let address = |(host, member): &(String, Stored<MemberRecord>)| api::StoreAddress {
        host: host.clone(),
        client_url: member.record.client_url.clone(),
    };
    Ok(Box::new(api::JoinAnswer {
        cluster: info.id,
        authority: authority.pem().into(),
        authority_key: authority.key_pem(),
        members: voters.map(address).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use store::MemoryStore;

    use super::*;

    const SECRET: &str = "secret";

    struct Cluster {
        state: State,
        place: Place,
        token: Uuid,
        _directory: tempfile::TempDir,
    }

    fn cluster() -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        let place = Place {
            state: directory.path().into(),
            etcd: Vec::new(),
            api_port: 8420,
            client_port: 2379,
            peer_port: 2380,
            names: Vec::new(),
        };
        let state = State::new(Arc::new(MemoryStore::new()));
        let now = OffsetDateTime::now_utc();
        let info = ClusterRecord { id: Uuid::new_v4(), name: "maru".into(), created_at: now, version: "0.1.0".into() };
        let token = Uuid::new_v4();
        let record =
            JoinRecord { secret_sha256: sha256(SECRET.as_bytes()), expires_at: now + Duration::from_secs(60), used: None };
        let transaction = Transaction::new().write(INFO, &info).write(&token.to_string(), &record);
        state.commit(&transaction).unwrap();
        Cluster { state, place, token, _directory: directory }
    }

    impl Cluster {
        fn request(&self, host: &str, last: u8) -> api::JoinRequest {
            api::JoinRequest {
                token: self.token,
                join: Uuid::new_v4(),
                host: host.into(),
                addresses: vec![[192, 0, 2, last].into()],
                api_port: 8420,
                client_port: 2379,
                peer_port: 2380,
                witness: false,
                version: env!("CARGO_PKG_VERSION").into(),
                at: OffsetDateTime::now_utc(),
                memory_mib: 1024,
                cpus: 2,
                watchdog: true,
                admin_sha256: "ab".into(),
            }
        }

        fn asked(&self, request: &api::JoinRequest) -> String {
            match admit(&self.state, &self.place, request, SECRET, OffsetDateTime::now_utc()).unwrap() {
                Admitted::Yes(_) => "yes".into(),
                Admitted::Unknown(cause) | Admitted::No(cause) => cause.code,
            }
        }
    }

    #[test]
    fn a_join_that_is_repeated_is_the_same_and_a_token_is_for_one() {
        let cluster = cluster();
        let request = cluster.request("h2", 2);
        let later = OffsetDateTime::now_utc() + Duration::from_secs(61);
        let expired = admit(&cluster.state, &cluster.place, &request, SECRET, later).unwrap();
        assert!(matches!(expired, Admitted::No(cause) if cause.code == "token-expired"));
        assert_eq!(cluster.asked(&request), "yes");
        let before = cluster.state.revision().unwrap();
        assert_eq!(cluster.asked(&request), "yes");
        // Its answer was lost for longer than the token lives.
        let again = admit(&cluster.state, &cluster.place, &request, SECRET, later).unwrap();
        assert!(matches!(again, Admitted::Yes(_)));
        assert_eq!(cluster.asked(&api::JoinRequest { join: Uuid::new_v4(), ..request.clone() }), "token-used");
        assert_eq!(cluster.asked(&cluster.request("h3", 3)), "token-used");
        assert_eq!(cluster.state.revision().unwrap(), before, "nothing was changed");
        let wrong = admit(&cluster.state, &cluster.place, &request, "guess", OffsetDateTime::now_utc()).unwrap();
        assert!(matches!(wrong, Admitted::Unknown(_)));
    }

    #[test]
    fn who_does_not_fit_hears_why_and_may_try_again_with_the_same_token() {
        let cluster = cluster();
        let good = cluster.request("h2", 2);
        let with = |change: &dyn Fn(&mut api::JoinRequest)| {
            let mut request = good.clone();
            change(&mut request);
            cluster.asked(&request)
        };
        assert_eq!(with(&|request| request.at += Duration::from_secs(10)), "clock");
        assert_eq!(with(&|request| request.at -= Duration::from_secs(10)), "clock");
        assert_eq!(with(&|request| request.version = "99.0.0".into()), "version");
        assert_eq!(with(&|request| request.version = String::new()), "version");
        assert_eq!(with(&|request| request.host = "h/2".into()), "bad-name");
        assert_eq!(with(&|request| request.addresses.clear()), "bad-address");
        assert_eq!(with(&|request| request.token = Uuid::new_v4()), "wrong-token");
        assert_eq!(cluster.asked(&good), "yes");
        // For the next one there is another token.
        let token = Uuid::new_v4();
        let record = JoinRecord {
            secret_sha256: sha256(SECRET.as_bytes()),
            expires_at: OffsetDateTime::now_utc() + Duration::from_secs(60),
            used: None,
        };
        cluster.state.commit(&Transaction::new().write(&token.to_string(), &record)).unwrap();
        assert_eq!(cluster.asked(&api::JoinRequest { token, ..cluster.request("h2", 3) }), "name-taken");
        assert_eq!(cluster.asked(&api::JoinRequest { token, ..cluster.request("h3", 2) }), "address-taken");
        // Somebody's token is not overwritten by that of a host.
        let somebodys = crate::auth::token(&local_token("h4"), RoleRecord::Viewer, "theirs");
        cluster.state.commit(&Transaction::new().write(&somebodys.name, &somebodys)).unwrap();
        assert_eq!(cluster.asked(&api::JoinRequest { token, ..cluster.request("h4", 4) }), "name-taken");
        assert_eq!(cluster.asked(&api::JoinRequest { token, ..cluster.request("h3", 3) }), "yes");
    }
}
