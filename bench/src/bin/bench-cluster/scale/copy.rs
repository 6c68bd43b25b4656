//! A copy of etcd, and the watch that feeds it and some hosts.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use cluster::Event;
use cluster::view::is_known;
use store::{EtcdStore, Replica, Store, Watch};

use super::host::Input;
use super::world::World;

/// Copies etcd, and tells these hosts what changes in it, for ever.
pub fn begin(client: EtcdStore, hosts: Vec<Sender<Input>>, world: Arc<World>) -> anyhow::Result<Arc<Replica<EtcdStore>>> {
    let replica = Arc::new(Replica::new(Arc::new(client))?);
    let watch = replica.watch("", replica.revision()?)?;
    std::thread::Builder::new().name("watch".into()).spawn(move || tell(watch, &hosts, &world))?;
    Ok(replica)
}

fn tell(mut watch: Watch, hosts: &[Sender<Input>], world: &World) {
    while let Some((revision, mut changes)) = watch.next_transaction() {
        world.load.told.add(changes.len() as u64);
        changes.retain(|change| is_known(&change.key));
        if changes.is_empty() {
            continue;
        }
        for host in hosts {
            // One that has lost its power does not listen.
            let _ = host.send(Input::Event(Event::Changed { revision, changes: changes.clone() }));
        }
    }
}
