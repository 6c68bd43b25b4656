//! VMs that run while their host becomes a cluster: the lease under which they do, from its grant until the [runtime](super::Runtime) renews it.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};

use ::cluster::records::{AliveRecord, alive_key};
use ::cluster::{Config, Guarded, HostId, Moment};
use store::record::to_bytes;
use store::{EtcdStore, LeaseId, Leases, Store, StoreError, Transaction};

use super::guard::now;

/// A lease that is renewed.
pub struct Handover {
    lease: LeaseId,
    end: Sender<()>,
    thread: JoinHandle<Moment>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The thread that renews it.
    #[error("the host's lease cannot be renewed")]
    Thread(#[from] io::Error),
}

impl Handover {
    /// Takes a lease for this host, and renews it.
    pub fn begin(etcd: Arc<EtcdStore>, host: &str) -> Result<Handover, HandoverError> {
        let config = Config::new(HostId::from(host));
        let lives = config.ttl.saturating_sub(config.margin);
        let mut deadline = now() + lives;
        let lease = etcd.grant(config.ttl)?.id;
        let alive = to_bytes(&AliveRecord { incarnation: lease });
        etcd.commit(&Transaction::new().put_under(alive_key(&config.host), alive, lease))?;
        let (end, ended) = channel();
        let renew = move || {
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(config.renew_every) {
                let sent = now();
                match etcd.keep_alive(lease) {
                    Ok(_) => deadline = sent + lives,
                    Err(error) => tracing::debug!("the lease is not renewed: {error}"),
                }
            }
            deadline
        };
        let thread = thread::Builder::new().name("handover".into()).spawn(renew)?;
        Ok(Handover { lease, end, thread })
    }

    /// The lease.
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// Ends to renew it; gives until when it can be relied on.
    pub fn end(self) -> Guarded {
        drop(self.end);
        // Without what it says, nothing can be relied on.
        Guarded { lease: self.lease, deadline: self.thread.join().unwrap_or_default() }
    }
}
