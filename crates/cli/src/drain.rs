//! `maru host drain`: a host that is to run nothing, for maintenance, or since it is switched off.

use std::thread::sleep;
use std::time::{Duration, Instant};

use api::client::{Client, Method};
use api::{Cluster, ClusterStatus, StorePart};
use clap::Args;

use crate::cluster::seconds;
use crate::host::want;
use crate::output::print;
use crate::remote::{Connect, Local, RemoteError};
use crate::vm::manage::segment;

/// How long the cluster may be silent before a host that is switched off goes on without it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the store's part on this host may take to go to another one, when its VMs have left.
const STORE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

const AFTER_HELP: &str = "\
With --for-shutdown, for the machine that it is called on, as the package's service maru-drain does when that is shut down or restarted. VMs that
other hosts can take go there, with their memory. What runs only here is saved, or shut down if it cannot be saved, and goes on when the host is
back. The drain ends then by itself, unless someone has drained the host before. Where the cluster's store would stop without this host, its part
goes to another one first. On a host of no cluster it does nothing.

EXAMPLES
  Before h2 is worked on, and after:
    maru host drain h2
    maru host resume h2

  What happens at a shutdown, by hand:
    maru host drain --for-shutdown --at-most 5m && poweroff";

/// `maru host drain`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct DrainArgs {
    /// Its name
    #[arg(required_unless_present = "for_shutdown", conflicts_with = "for_shutdown")]
    host: Option<String>,
    /// Empty this machine, which is about to be switched off or restarted, and wait until no VM is on it
    #[arg(long)]
    for_shutdown: bool,
    /// How long to wait: 90s, 30m, 1h
    #[arg(long, value_name = "TIME", default_value = "14m", requires = "for_shutdown", value_parser = seconds)]
    at_most: u32,
    #[command(flatten)]
    connect: Connect,
}

/// Why VMs are left.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// marud.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Nobody can decide where VMs go.
    #[error("the cluster's store takes no changes ({0}): VMs cannot leave this host, and end with it")]
    NoStore(String),
    /// It takes too long.
    #[error("{vms} VM(s) have not left this host within {seconds} s, and end with it")]
    Late {
        /// How many.
        vms: u32,
        /// The time.
        seconds: u32,
    },
}

/// Does it.
pub fn run(args: &DrainArgs) -> Result<(), DrainError> {
    match &args.host {
        Some(host) => Ok(want(&args.connect, host, "drain")?),
        None => leave(args.at_most),
    }
}

/// What was seen.
enum Seen {
    /// There is nothing to wait for.
    Ready(&'static str),
    /// So many VMs are here.
    Vms(u32),
    /// None is, but most of the store.
    Store,
    /// Nothing can be decided.
    NoStore(String),
}

/// Has all VMs leave this machine, and waits until they have.
fn leave(seconds: u32) -> Result<(), DrainError> {
    let local = match Local::find() {
        Err(RemoteError::NoServer(_)) => return Ok(print("marud has never run here\n").map_err(RemoteError::from)?),
        local => local?,
    };
    let client = local.client()?;
    let (begun, mut heard) = (Instant::now(), Instant::now());
    let (mut is_asked, mut left, mut without_vms) = (false, None, None);
    loop {
        match look(&client, &mut is_asked) {
            Ok(Seen::Ready(text)) => return Ok(print(text).map_err(RemoteError::from)?),
            Ok(Seen::Vms(vms)) => {
                heard = Instant::now();
                if left.replace(vms) != Some(vms) {
                    eprintln!("{vms} VM(s) are still here");
                }
            }
            Ok(Seen::Store) => {
                heard = Instant::now();
                if without_vms.get_or_insert(heard).elapsed() >= STORE {
                    let text = "no VM is on this host. The cluster's store takes no changes until it is back: too few other hosts have it\n";
                    return Ok(print(text).map_err(RemoteError::from)?);
                }
            }
            Ok(Seen::NoStore(reason)) if heard.elapsed() >= PATIENCE => return Err(DrainError::NoStore(reason)),
            Ok(Seen::NoStore(_)) => {}
            Err(error) if heard.elapsed() < PATIENCE && may_pass(&error) => {}
            Err(error) => return Err(error.into()),
        }
        if begun.elapsed() >= Duration::from_secs(seconds.into()) {
            return Err(DrainError::Late { vms: left.unwrap_or_default(), seconds });
        }
        sleep(LOOK);
    }
}

fn may_pass(error: &RemoteError) -> bool {
    matches!(error, RemoteError::Client(error) if error.may_pass())
}

/// Asks for the drain, until that is taken, and looks how far it is.
fn look(client: &Client, is_asked: &mut bool) -> Result<Seen, RemoteError> {
    let status: ClusterStatus = client.get("/cluster")?;
    let Some(cluster) = status.cluster else { return Ok(Seen::Ready("this host is in no cluster: its VMs end with it\n")) };
    if let Some(reason) = cluster.store_failure {
        return Ok(Seen::NoStore(reason));
    }
    if !*is_asked {
        let path = format!("/hosts/{}/drain?for_shutdown=true", segment(&cluster.this_host));
        client.call::<()>(Method::POST, &path, None::<&()>)?;
        *is_asked = true;
    }
    match own_vms(&cluster) {
        0 if goes_on_without(&cluster) => Ok(Seen::Ready("no VM is on this host\n")),
        0 => Ok(Seen::Store),
        vms => Ok(Seen::Vms(vms)),
    }
}

/// Whether the store takes changes when this host is off, or nobody is there to take its part.
fn goes_on_without(cluster: &Cluster) -> bool {
    let voters = cluster.hosts.iter().filter(|host| host.store == StorePart::Voter);
    let others = || cluster.hosts.iter().filter(|host| host.name != cluster.this_host);
    let answering = others().filter(|host| host.store == StorePart::Voter && host.store_answers).count();
    answering * 2 > voters.count() || !others().any(|host| host.alive && !host.drained && !host.leaving)
}

fn own_vms(cluster: &Cluster) -> u32 {
    cluster.hosts.iter().find(|host| host.name == cluster.this_host).map_or(0, |host| host.vms)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cluster as h1 tells it, of hosts with their part in the store, and whether they are there and take VMs.
    fn cluster(hosts: &[(&str, StorePart, bool)]) -> Cluster {
        let host = |(name, store, active): &(&str, StorePart, bool)| api::ClusterHost {
            name: (*name).into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            api_port: 8420,
            alive: *active,
            drained: *name == "h1",
            drained_until_back: *name == "h1",
            vms: 0,
            witness: false,
            leaving: false,
            version: "0.1.0".into(),
            store: *store,
            store_answers: *active && *store == StorePart::Voter,
            leads: false,
            damaged: None,
            certificates: 0,
        };
        Cluster {
            id: uuid::Uuid::nil(),
            name: "plant".into(),
            created_at: time::OffsetDateTime::UNIX_EPOCH,
            this_host: "h1".into(),
            coordinator: None,
            store_failure: None,
            waits: None,
            hosts: hosts.iter().map(host).collect(),
        }
    }

    #[test]
    fn a_host_with_most_of_the_store_waits_for_another_one_to_take_it() {
        use StorePart::{Client, Learner, Voter};
        let goes_on = |hosts: &[(&str, StorePart, bool)]| goes_on_without(&cluster(hosts));
        assert!(goes_on(&[("h1", Voter, true), ("h2", Voter, true), ("h3", Voter, true)]));
        assert!(!goes_on(&[("h1", Voter, true), ("h2", Voter, true), ("h3", Voter, false)]));
        assert!(!goes_on(&[("h1", Voter, true), ("h2", Client, true)]));
        assert!(!goes_on(&[("h1", Voter, true), ("h2", Learner, true)]));
        assert!(goes_on(&[("h1", Client, true), ("h2", Voter, true)]));
        assert!(goes_on(&[("h1", Voter, true), ("h2", Client, false)]), "nobody can take it");
        assert!(goes_on(&[("h1", Voter, true)]));
    }
}
