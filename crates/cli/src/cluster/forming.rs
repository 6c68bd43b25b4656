//! Hosts that become a cluster, and cease to be of it.

use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use api::client::{Client, ClientError, Method};
use api::{Cluster, ClusterStatus};
use clap::Args;
use serde::Serialize;

use crate::output::{Output, print};
use crate::remote::{Connect, RemoteError, TokenArgs, fields, shown_time};

/// How long a `marud` that starts itself anew may be away. etcd is ready within seconds, and all that a host had is copied.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// `maru cluster create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The cluster's name
    #[arg(long)]
    name: Option<String>,
    /// The host's name in it, instead of its host name
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// An address of this host, one for each of one or two networks; the first is that of the store and the API
    #[arg(long, value_name = "IP")]
    address: Vec<IpAddr>,
    #[command(flatten)]
    connect: Connect,
}

/// `maru cluster join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    #[command(flatten)]
    token: TokenArgs,
    /// The host's name in the cluster, instead of its host name
    #[arg(long, value_name = "HOST")]
    name: Option<String>,
    /// An address of this host, one for each of one or two networks; the first is that of the store and the API
    #[arg(long, value_name = "IP")]
    address: Vec<IpAddr>,
    /// The host is to run no VMs, and be there for the store's majority
    #[arg(long)]
    witness: bool,
    #[command(flatten)]
    connect: Connect,
}

/// Why a cluster is not as it is to be.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// marud.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// What could not be done.
    #[error("{0}")]
    Failed(api::Error),
    /// It takes too long.
    #[error("{what} was asked for, and is not done after {} s{last}; `maru cluster status` shows how it goes on", PATIENCE.as_secs())]
    Slow {
        /// What.
        what: &'static str,
        /// What was seen last.
        last: String,
    },
}

impl From<ClientError> for ClusterError {
    fn from(error: ClientError) -> ClusterError {
        RemoteError::from(error).into()
    }
}

impl From<std::io::Error> for ClusterError {
    fn from(error: std::io::Error) -> ClusterError {
        RemoteError::from(error).into()
    }
}

impl From<serde_json::Error> for ClusterError {
    fn from(error: serde_json::Error) -> ClusterError {
        RemoteError::from(error).into()
    }
}

/// Reads `90s`, `30m`, `1h`, `2d` as seconds.
pub fn seconds(text: &str) -> Result<u32, String> {
    let wrong = || format!("'{text}' is no time: write a number and s, m, h or d behind it");
    let split = text.len().saturating_sub(1);
    let (number, unit) = text.split_at_checked(split).ok_or_else(wrong)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(wrong()),
    };
    number.parse::<u32>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

/// Asks for something whose answer says nothing.
fn ask(client: &Client, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<(), ClusterError> {
    Ok(client.call::<Option<serde_json::Value>>(method, path, body).map(drop)?)
}

/// What was seen.
enum Seen<T> {
    Done(T),
    Failed(api::Error),
    Waits(Option<String>),
}

/// Looks again and again how a host stands to clusters, until that is as wanted. Its `marud` may be away for a while, and come back with
/// another authority and another token: both are read anew each time.
fn wait<T>(
    reach: impl Fn() -> Result<Client, RemoteError>,
    what: &'static str,
    look: impl Fn(ClusterStatus) -> Seen<T>,
) -> Result<T, ClusterError> {
    let start = Instant::now();
    let mut last = String::new();
    while start.elapsed() < PATIENCE {
        let status: Result<ClusterStatus, RemoteError> =
            reach().and_then(|client| client.get("/cluster").map_err(RemoteError::from));
        match status.map(&look) {
            Ok(Seen::Done(found)) => return Ok(found),
            Ok(Seen::Failed(failure)) => return Err(ClusterError::Failed(failure)),
            Ok(Seen::Waits(Some(waits))) if last != waits => {
                eprintln!("{waits}");
                last = waits;
            }
            Ok(Seen::Waits(_)) | Err(_) => {}
        }
        sleep(ASK_AGAIN);
    }
    let last = if last.is_empty() { last } else { format!(" ({last})") };
    Err(ClusterError::Slow { what, last })
}

/// In a cluster, or why not.
fn in_cluster(status: ClusterStatus) -> Seen<Cluster> {
    match (status.cluster, status.failure) {
        (Some(cluster), _) => Seen::Done(cluster),
        (None, Some(failure)) => Seen::Failed(failure),
        (None, None) => Seen::Waits(None),
    }
}

/// `maru cluster create`.
pub fn create(args: &CreateArgs) -> Result<(), ClusterError> {
    let body = api::NewCluster { name: args.name.clone(), host: args.host.clone(), addresses: args.address.clone() };
    ask(&args.connect.host()?, Method::POST, "/cluster", Some(&body))?;
    eprintln!("marud starts itself anew; VMs go on");
    let cluster = wait(|| args.connect.host(), "the cluster", in_cluster)?;
    Ok(print(&made(&cluster, "`maru cluster token` lets other hosts join"))?)
}

fn made(cluster: &Cluster, next: &str) -> String {
    fields(&[
        ("cluster", format!("{} ({})", cluster.name, cluster.id)),
        ("host", cluster.this_host.clone()),
        ("next", next.into()),
    ])
}

/// `maru cluster token`.
pub fn token(valid_seconds: u32, connect: &Connect, output: Output) -> Result<(), ClusterError> {
    let body = api::NewJoinToken { valid_seconds: Some(valid_seconds) };
    let made: api::CreatedJoinToken = connect.client()?.call(Method::POST, "/cluster/tokens", Some(&body))?;
    if output == Output::Text {
        eprintln!("valid until {}, for one host", shown_time(made.expires_at));
    }
    Ok(print(&output.render(&made, || format!("{}\n", made.token))?)?)
}

/// `maru cluster join`.
pub fn join(args: &JoinArgs) -> Result<(), ClusterError> {
    let client = args.connect.host()?;
    let body = api::JoinCluster {
        token: args.token.read().map_err(RemoteError::from)?,
        host: args.name.clone(),
        addresses: args.address.clone(),
        witness: args.witness,
    };
    ask(&client, Method::POST, "/cluster/join", Some(&body))?;
    if !args.connect.is_local()? {
        let text = "the host has joined, and proves itself by the cluster's authority from now on: add its context anew\n";
        return Ok(print(text)?);
    }
    eprintln!("the cluster has agreed; marud starts itself anew");
    let cluster = wait(|| args.connect.host(), "the host's place in the cluster", in_cluster)?;
    Ok(print(&made(&cluster, "`maru cluster status` shows all hosts"))?)
}

/// `maru cluster leave`.
pub fn leave(connect: &Connect) -> Result<(), ClusterError> {
    ask(&connect.host()?, Method::POST, "/cluster/leave", None::<&()>)?;
    if !connect.is_local()? {
        return Ok(print("the host is about to leave, and has another authority and another token then\n")?);
    }
    let gone = |status: ClusterStatus| match status.cluster {
        None => Seen::Done(()),
        Some(cluster) => Seen::Waits(cluster.waits),
    };
    wait(|| connect.host(), "that this host leaves", gone)?;
    Ok(print("this host is in no cluster any more\n")?)
}

/// `maru cluster remove`.
pub fn remove(host: &str, connect: &Connect) -> Result<(), ClusterError> {
    ask(&connect.client()?, Method::DELETE, &format!("/cluster/hosts/{host}"), None::<&()>)
}

/// `maru cluster rotate-certificates`.
pub fn rotate(connect: &Connect) -> Result<(), ClusterError> {
    let wanted: api::Certificates = connect.client()?.post("/cluster/certificates/rotate")?;
    let off = wait(
        || connect.client(),
        "new certificates",
        |status| {
            let hosts = status.cluster.map(|cluster| cluster.hosts).unwrap_or_default();
            let old = |host: &&api::ClusterHost| host.certificates < wanted.generation;
            let missing: Vec<&str> = hosts.iter().filter(old).filter(|host| host.alive).map(|host| host.name.as_str()).collect();
            match missing.is_empty() && !hosts.is_empty() {
                true => Seen::Done(hosts.iter().filter(old).map(|host| host.name.clone()).collect::<Vec<_>>()),
                false => Seen::Waits(Some(format!("waits for {}", missing.join(", ")))),
            }
        },
    )?;
    let later = if off.is_empty() { String::new() } else { format!("; {} when they are back", off.join(", ")) };
    Ok(print(&format!("all hosts that are there have new certificates{later}\n"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        assert_eq!([seconds("90s"), seconds("30m"), seconds("1h"), seconds("2d")], [Ok(90), Ok(1800), Ok(3600), Ok(172_800)]);
        for wrong in ["", "1", "h", "1w", "-1h", "1.5h", "99999d", "5€", "€"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
