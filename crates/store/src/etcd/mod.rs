//! A store in etcd, for a cluster.
//!
//! ```text
//!   EtcdStore ──▶ member 1 │ member 2 │ member 3     one of them is asked, the next one when it fails
//!      watch  ──▶ the same one, until it is silent; then the next one, from the last change that was told
//! ```
//!
//! * Reads and transactions are linearizable. A call ends within the deadline: with an answer, with [`StoreError::Unavailable`] (nothing was
//!   done), or with [`StoreError::Unknown`] (it was sent, and nobody says whether it was done).
//! * A watch asks its member for a sign of life whenever it has heard nothing for a while. A member that is frozen, or that has lost the
//!   others, is left; the watch goes on with another one, without a lost or doubled change.
//! * A keep-alive counts only if a linearizable read by the same member, in the same term of the leader, succeeded after it: a leader that has
//!   lost the others goes on answering keep-alives for a while, and what it says is worth nothing.
//!
//! [`server`] runs etcd itself; [`admin`] is about its members, backups and alarms.

pub mod admin;
mod endpoints;
mod lease;
pub mod server;
#[cfg(test)]
pub(crate) mod tests;
mod watch;
mod wire;

use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use self::endpoints::{Door, Endpoints, Repeat, unary};
use self::wire::{Compared, Operation};
use crate::{Change, Condition, Entry, LeaseId, Outcome, Revision, Snapshot, Store, StoreError, Transaction, Watch, check_key};

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";

/// How a client proves who it is, and whom it believes.
#[derive(Clone)]
pub struct ClientTls {
    /// The certificate of the cluster's authority, as PEM.
    pub authority: String,
    /// The client's certificate, as PEM.
    pub certificate: String,
    /// Its key, as PEM.
    pub key: String,
}

/// Where etcd is.
#[derive(Clone)]
pub struct EtcdConfig {
    /// The client URLs of its members, the nearest first: `https://192.0.2.1:2379`. Their certificates must be for these addresses.
    pub endpoints: Vec<String>,
    /// For URLs with `https`.
    pub tls: Option<ClientTls>,
    /// How long a call may take. A silent member is left after a third of it where asking twice does no harm.
    pub deadline: Duration,
}

/// Why a client of etcd cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum EtcdConfigError {
    /// An address, or what is needed for TLS.
    #[error("'{url}' cannot be used as the address of an etcd member")]
    Endpoint {
        /// The address.
        url: String,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// The thread that does the work.
    #[error("the thread for etcd cannot be started")]
    Thread(#[from] std::io::Error),
}

/// A client of etcd. Connections are made when they are needed.
pub struct EtcdStore {
    endpoints: Arc<Endpoints>,
    tls: RwLock<Option<ClientTls>>,
    runtime: Handle,
    /// The runtime ends, and with it all watches, when this is dropped.
    _close: oneshot::Sender<()>,
}

impl EtcdStore {
    /// A client. Whether anybody answers is seen by the first call.
    ///
    /// # Errors
    /// When an address or a certificate is malformed.
    pub fn new(config: &EtcdConfig) -> Result<EtcdStore, EtcdConfigError> {
        let endpoints = Arc::new(Endpoints::new(doors(&config.endpoints, config.tls.as_ref())?, config.deadline));
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (close, closed) = oneshot::channel::<()>();
        thread::Builder::new().name("etcd".into()).spawn(move || {
            crate::go_first();
            let _ = runtime.block_on(closed);
        })?;
        Ok(EtcdStore { endpoints, tls: RwLock::new(config.tls.clone()), runtime: handle, _close: close })
    }

    /// Other members from now on. Watches go on.
    ///
    /// # Errors
    /// When an address is malformed; then nothing has changed.
    pub fn set_endpoints(&self, urls: &[String]) -> Result<(), EtcdConfigError> {
        let tls = self.tls.read().unwrap_or_else(PoisonError::into_inner);
        self.endpoints.replace(doors(urls, tls.as_ref())?);
        Ok(())
    }

    /// Another certificate from now on, for the members that are known. Watches go on.
    ///
    /// # Errors
    /// When the certificate is malformed; then nothing has changed.
    pub fn set_tls(&self, tls: ClientTls) -> Result<(), EtcdConfigError> {
        let mut kept = self.tls.write().unwrap_or_else(PoisonError::into_inner);
        let urls: Vec<String> = self.endpoints.doors().iter().map(|door| door.url.clone()).collect();
        self.endpoints.replace(doors(&urls, Some(&tls))?);
        *kept = Some(tls);
        Ok(())
    }

    /// Has the runtime do something, and waits for it.
    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, answer) = std::sync::mpsc::channel();
        self.runtime.spawn(async move {
            // Whoever asked waits below.
            let _ = sender.send(work.await);
        });
        // The sender is dropped unused if the work has panicked.
        answer.recv().unwrap_or_else(|_| Err(StoreError::Unknown("the thread for etcd has failed".into())))
    }

    /// Asks members until one answers.
    fn ask<Q, A>(&self, repeat: Repeat, path: &'static str, question: Q) -> Result<A, StoreError>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let endpoints = self.endpoints.clone();
        self.wait(async move { ask(&endpoints, repeat, path, question).await })
    }
}

fn doors(urls: &[String], tls: Option<&ClientTls>) -> Result<Vec<Door>, EtcdConfigError> {
    let door = |url: &String| {
        let failed = |source| EtcdConfigError::Endpoint { url: url.clone(), source };
        let mut endpoint = Endpoint::from_shared(url.clone()).map_err(failed)?;
        if let Some(tls) = tls {
            let authority = Certificate::from_pem(&tls.authority);
            let identity = Identity::from_pem(&tls.certificate, &tls.key);
            endpoint =
                endpoint.tls_config(ClientTlsConfig::new().ca_certificate(authority).identity(identity)).map_err(failed)?;
        }
        Ok(Door::new(url, endpoint))
    };
    urls.iter().map(door).collect()
}

async fn ask<Q, A>(endpoints: &Endpoints, repeat: Repeat, path: &'static str, question: Q) -> Result<A, StoreError>
where
    Q: prost::Message + Clone + 'static,
    A: prost::Message + Default + 'static,
{
    endpoints.call(repeat, |channel| unary(channel, path, question.clone())).await
}

async fn newest(endpoints: &Endpoints) -> Result<Revision, StoreError> {
    let question = wire::RangeRequest { key: vec![0], keys_only: true, ..Default::default() };
    let answer: wire::RangeResponse = ask(endpoints, Repeat::Harmless, RANGE, question).await?;
    Ok(revision_of(answer.header.as_ref()))
}

fn revision_of(header: Option<&wire::Header>) -> Revision {
    revision(header.map_or(0, |header| header.revision))
}

fn revision(number: i64) -> Revision {
    Revision(number.try_into().unwrap_or(0))
}

/// etcd's numbers are smaller; no entry has one that is not.
fn number(revision: Revision) -> i64 {
    revision.0.try_into().unwrap_or(i64::MAX)
}

fn entry(found: wire::KeyValue) -> Entry {
    Entry {
        key: text(found.key),
        value: found.value,
        revision: revision(found.mod_revision),
        lease: (found.lease != 0).then_some(LeaseId(found.lease)),
    }
}

/// Our keys are text; one that is not is someone else's.
fn text(key: Vec<u8>) -> String {
    String::from_utf8(key).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// All keys that begin so, as etcd asks for them: the first, and the first behind the last.
fn interval(prefix: &str) -> (Vec<u8>, Vec<u8>) {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        // No byte of a text is 255.
        Some(last) => *last += 1,
        None => return (vec![0], vec![0]),
    }
    (prefix.into(), end)
}

/// What must hold, in etcd's words.
fn compare(condition: &Condition) -> Vec<wire::Compare> {
    let version =
        |result| wire::Compare { result, target: wire::VERSION, key: condition.key().into(), with: Some(Compared::Version(0)) };
    match condition {
        Condition::Absent(_) => vec![version(wire::EQUAL)],
        // For etcd, an entry that is not there was changed last with revision 0.
        Condition::Unchanged(_, Revision(0)) => vec![version(wire::GREATER), version(wire::EQUAL)],
        Condition::Unchanged(key, revision) => vec![wire::Compare {
            result: wire::EQUAL,
            target: wire::MOD,
            key: key.as_bytes().into(),
            with: Some(Compared::ModRevision(number(*revision))),
        }],
    }
}

fn request(transaction: &Transaction) -> wire::TxnRequest {
    let operation = |operation| wire::RequestOp { operation: Some(operation) };
    let change = |change: &&Change| match change {
        Change::Put { key, value, lease } => Operation::Put(wire::PutRequest {
            key: key.as_bytes().into(),
            value: value.clone(),
            lease: lease.map_or(0, |lease| lease.0),
        }),
        Change::Delete(key) => Operation::Delete(wire::DeleteRangeRequest { key: key.as_bytes().into() }),
    };
    let look = |condition: &Condition| {
        Operation::Range(wire::RangeRequest { key: condition.key().into(), keys_only: true, ..Default::default() })
    };
    wire::TxnRequest {
        compare: transaction.conditions.iter().flat_map(compare).collect(),
        success: transaction.last_changes().iter().map(change).map(operation).collect(),
        failure: transaction.conditions.iter().map(look).map(operation).collect(),
    }
}

impl Store for EtcdStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        check_key(key)?;
        let question = wire::RangeRequest { key: key.into(), ..Default::default() };
        let answer: wire::RangeResponse = self.ask(Repeat::Harmless, RANGE, question)?;
        Ok(answer.kvs.into_iter().next().map(entry))
    }

    fn range(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let (key, range_end) = interval(prefix);
        let question = wire::RangeRequest { key, range_end, ..Default::default() };
        let answer: wire::RangeResponse = self.ask(Repeat::Harmless, RANGE, question)?;
        Ok(Snapshot { revision: revision_of(answer.header.as_ref()), entries: answer.kvs.into_iter().map(entry).collect() })
    }

    fn part(&self, prefix: &str, behind: Option<&str>, limit: usize) -> Result<Snapshot, StoreError> {
        let (mut key, range_end) = interval(prefix);
        if let Some(behind) = behind.filter(|behind| *behind >= prefix) {
            // The first key behind another one is that one with a zero byte.
            key = [behind.as_bytes(), &[0]].concat();
        }
        // For etcd, no limit is 0; and to a range whose begin comes behind its end, it says that there is nothing.
        if limit == 0 {
            return Ok(Snapshot { revision: self.revision()?, entries: Vec::new() });
        }
        let limit = limit.try_into().unwrap_or(i64::MAX);
        let question = wire::RangeRequest { key, range_end, limit, ..Default::default() };
        let answer: wire::RangeResponse = self.ask(Repeat::Harmless, RANGE, question)?;
        Ok(Snapshot { revision: revision_of(answer.header.as_ref()), entries: answer.kvs.into_iter().map(entry).collect() })
    }

    /// That there is an answer proves that most members agree.
    fn revision(&self) -> Result<Revision, StoreError> {
        let endpoints = self.endpoints.clone();
        self.wait(async move { newest(&endpoints).await })
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        transaction.check()?;
        let request = request(transaction);
        // What changes nothing can be asked again.
        let repeat = if request.success.is_empty() { Repeat::Harmless } else { Repeat::Never };
        let answer: wire::TxnResponse = match self.ask(repeat, TXN, request) {
            Err(StoreError::Refused(status)) if status.code() == Code::NotFound => {
                return Err(self.gone(transaction)?.map_or(StoreError::Refused(status), StoreError::NoLease));
            }
            answer => answer?,
        };
        outcome(transaction, answer)
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let endpoints = self.endpoints.clone();
        let runtime = self.runtime.clone();
        let prefix = prefix.to_owned();
        self.wait(async move { watch::begin(endpoints, &runtime, &prefix, after).await })
    }
}

/// What became of a transaction.
fn outcome(transaction: &Transaction, answer: wire::TxnResponse) -> Result<Outcome, StoreError> {
    if answer.succeeded {
        return Ok(Outcome::Committed(revision_of(answer.header.as_ref())));
    }
    let found = answer.responses.into_iter().map(|response| {
        let entry = response.range.and_then(|range| range.kvs.into_iter().next());
        entry.map(|entry| revision(entry.mod_revision))
    });
    let mut looked = transaction.conditions.iter().zip(found);
    let conflict = looked.find(|(condition, found)| !condition.holds(*found));
    let (condition, found) = conflict.ok_or(StoreError::Malformed("a transaction without a reason"))?;
    Ok(Outcome::Conflict { key: condition.key().into(), found })
}
