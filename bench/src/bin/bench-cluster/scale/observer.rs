//! Someone who looks at the cluster from outside, by a watch of its own, and sees when something is so.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use cluster::view::is_known;
use cluster::{HostId, View};
use store::{EtcdStore, Replica, Snapshot, Store, Watch};

/// What it knows.
pub struct Observer {
    view: View,
    watch: Watch,
}

impl Observer {
    pub fn new(replica: &Replica<EtcdStore>) -> anyhow::Result<Observer> {
        let Snapshot { revision, mut entries } = replica.range("")?;
        entries.retain(|entry| is_known(&entry.key));
        let mut view = View::default();
        view.replace(&Snapshot { revision, entries });
        Ok(Observer { view, watch: replica.watch("", revision)? })
    }

    pub fn view(&self) -> &View {
        &self.view
    }

    /// Waits until something is so, and says when that was seen.
    pub fn until(&mut self, what: &str, patience: Duration, is_so: impl Fn(&View) -> bool) -> anyhow::Result<Instant> {
        let end = Instant::now() + patience;
        while !is_so(&self.view) {
            if let Some(error) = self.watch.ended() {
                bail!("the watch has ended: {error}");
            }
            let left = end.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "{what}: that has not come within {patience:?}");
            if let Some((revision, mut changes)) = self.watch.next_transaction_within(left) {
                changes.retain(|change| is_known(&change.key));
                self.view.change(revision, &changes);
            }
        }
        Ok(Instant::now())
    }
}

/// The host that gives VMs to hosts.
pub fn coordinator(view: &View) -> Option<HostId> {
    let holder = &view.coordinator()?.record.holder;
    view.lives(holder).then(|| holder.host.clone())
}
