//! That this host is there: its lease, `alive/HOST`, and the coordinator's place when it is free.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ::cluster::HostId;
use ::cluster::records::{AliveRecord, COORDINATOR_KEY, CoordinatorRecord, Holder, alive_key};
use store::etcd::EtcdStore;
use store::record::{self, to_bytes};
use store::{LeaseId, Leases, Store, StoreError, Transaction};

/// How long a lease lives.
const TTL: Duration = Duration::from_secs(5);
/// How often it is renewed.
const RENEW: Duration = Duration::from_millis(500);

/// Keeps the lease.
pub struct Presence {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Presence {
    /// Begins.
    pub fn start(etcd: Arc<EtcdStore>, host: &str) -> io::Result<Presence> {
        let (ends, host) = (Arc::new(AtomicBool::new(false)), HostId::from(host));
        let stop = ends.clone();
        let thread = thread::Builder::new().name("presence".into()).spawn(move || {
            let mut lease = None;
            while !stop.load(Ordering::Relaxed) {
                if let Err(error) = round(&etcd, &host, &mut lease) {
                    tracing::debug!("the host's lease: {error}");
                }
                thread::park_timeout(RENEW);
            }
            if let Some(lease) = lease {
                // It ends by itself otherwise.
                let _ = etcd.revoke(lease);
            }
        })?;
        Ok(Presence { ends, thread: Some(thread) })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It has ended in any case.
            let _ = thread.join();
        }
    }
}

fn round(etcd: &EtcdStore, host: &HostId, lease: &mut Option<LeaseId>) -> Result<(), StoreError> {
    match *lease {
        Some(id) => match etcd.keep_alive(id) {
            Err(StoreError::NoLease(_)) => *lease = None,
            renewed => drop(renewed?),
        },
        None => {
            let id = etcd.grant(TTL)?.id;
            let alive = to_bytes(&AliveRecord { incarnation: id });
            etcd.commit(&Transaction::new().put_under(alive_key(host), alive, id))?;
            *lease = Some(id);
        }
    }
    let Some(incarnation) = *lease else { return Ok(()) };
    let found = etcd.get(COORDINATOR_KEY)?;
    let holder = found.as_ref().and_then(|entry| record::from_entry::<CoordinatorRecord>(entry).ok());
    if let Some(holder) = holder {
        let alive = etcd.get(&alive_key(&holder.record.holder.host))?;
        let lives = alive.and_then(|entry| record::from_entry::<AliveRecord>(&entry).ok());
        if lives.is_some_and(|alive| alive.record.incarnation == holder.record.holder.incarnation) {
            return Ok(());
        }
    }
    let take = match &found {
        Some(entry) => Transaction::new().unchanged(COORDINATOR_KEY, entry.revision),
        None => Transaction::new().absent(COORDINATOR_KEY),
    };
    let own = CoordinatorRecord { holder: Holder { host: host.clone(), incarnation } };
    etcd.commit(&take.put(COORDINATOR_KEY, to_bytes(&own))).map(drop)
}
