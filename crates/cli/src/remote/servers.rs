//! The servers of a context: those that the user has named, and those that the cluster has told of. Each of them answers for all.
//!
//! ```text
//!   answered less than ten minutes ago ──▶ named by the user ──▶ told by the cluster, at most eight
//! ```
//!
//! Who has named a host wants that one. So another one that has answered instead comes first for a while only: a host that is dead costs its
//! timeout once in that time, and one that is back is asked again.

use std::net::SocketAddr;

use api::{Cluster, ClusterStatus};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

/// For how long a server that has answered in the place of others is asked first.
const FIRST_FOR: Duration = Duration::minutes(10);
/// After this time the cluster is asked anew who its hosts are.
const KNOWN_FOR: Duration = Duration::hours(12);
/// How many hosts of a cluster are remembered: they do not all fail at once, and each that is tried takes two seconds.
const MOST: usize = 8;

/// Servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Servers {
    /// The one that the user has named first.
    server: String,
    /// The others that the user has named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    more: Vec<String>,
    /// What the cluster has told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    told: Option<Told>,
    /// Which one has answered in the place of another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answered: Option<Answered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    servers: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answered {
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    server: String,
}

impl Servers {
    /// Those that the user has named; one at least.
    pub fn named(server: String, more: Vec<String>) -> Servers {
        Servers { server, more, told: None, answered: None }
    }

    /// The one that the user has named first, and how many others there are.
    pub fn first(&self) -> (&str, usize) {
        (&self.server, self.all(OffsetDateTime::UNIX_EPOCH).len() - 1)
    }

    /// The only one that the user has named.
    pub fn only(&self) -> Option<&str> {
        self.more.is_empty().then_some(&self.server)
    }

    /// All, in the order in which they are to be asked.
    pub fn all(&self, now: OffsetDateTime) -> Vec<String> {
        let answered = self.answered.as_ref().filter(|answered| is_within(answered.at, now, FIRST_FOR));
        let told = self.told.iter().flat_map(|told| &told.servers);
        let mut all = Vec::new();
        for server in answered.map(|answered| &answered.server).into_iter().chain([&self.server]).chain(&self.more).chain(told) {
            if !all.contains(server) {
                all.push(server.clone());
            }
        }
        all
    }

    /// Whether it is time to ask who the cluster's hosts are.
    pub fn are_old(&self, now: OffsetDateTime) -> bool {
        self.told.as_ref().is_none_or(|told| !is_within(told.at, now, KNOWN_FOR))
    }

    /// Takes up what the host that was asked says of its cluster.
    pub fn learn(&mut self, status: &ClusterStatus, now: OffsetDateTime) {
        let servers = status.cluster.as_ref().map(servers_of).unwrap_or_default();
        self.told = Some(Told { at: now, servers });
    }

    /// There was no answer to the question who the cluster's hosts are: what is known stays.
    pub fn learn_nothing(&mut self, now: OffsetDateTime) {
        let servers = self.told.take().map(|told| told.servers).unwrap_or_default();
        self.told = Some(Told { at: now, servers });
    }

    /// Remembers the server that has answered in the place of another one.
    pub fn note(&mut self, server: &str, now: OffsetDateTime) {
        self.answered = Some(Answered { at: now, server: server.into() });
    }
}

/// Clocks are set, also back.
fn is_within(at: OffsetDateTime, now: OffsetDateTime, limit: Duration) -> bool {
    (Duration::ZERO..limit).contains(&(now - at))
}

/// The addresses of the API of a cluster's hosts, those that are there first.
fn servers_of(cluster: &Cluster) -> Vec<String> {
    let mut hosts: Vec<_> = cluster.hosts.iter().filter(|host| !host.leaving).collect();
    hosts.sort_by_key(|host| !host.alive);
    let url = |host: &&api::ClusterHost| Some(format!("https://{}", SocketAddr::new(*host.addresses.first()?, host.api_port)));
    hosts.iter().filter_map(url).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn host(name: &str, address: &str, alive: bool) -> api::ClusterHost {
        api::ClusterHost {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            api_port: 8420,
            alive,
            drained: false,
            drained_until_back: false,
            vms: 0,
            witness: false,
            leaving: name == "leaving",
            version: "0.1.0".into(),
            store: api::StorePart::Voter,
            store_answers: true,
            leads: false,
            damaged: None,
            certificates: 0,
        }
    }

    fn status(hosts: Vec<api::ClusterHost>) -> ClusterStatus {
        let cluster = Cluster {
            id: uuid::Uuid::nil(),
            name: "plant".into(),
            created_at: NOW,
            this_host: "h1".into(),
            coordinator: None,
            store_failure: None,
            waits: None,
            hosts,
        };
        ClusterStatus { cluster: Some(cluster), failure: None }
    }

    #[test]
    fn hosts_that_are_there_come_before_those_that_are_not_and_behind_those_that_were_named() {
        let mut servers = Servers::named("https://h1:8420".into(), vec!["https://h2:8420".into()]);
        let hosts = vec![
            host("h1", "192.0.2.1", false),
            host("h2", "2001:db8::2", true),
            host("leaving", "192.0.2.3", true),
            host("h4", "192.0.2.4", true),
        ];
        servers.learn(&status(hosts), NOW);
        let told = ["https://[2001:db8::2]:8420", "https://192.0.2.4:8420", "https://192.0.2.1:8420"];
        assert_eq!(servers.all(NOW), [&["https://h1:8420", "https://h2:8420"][..], &told].concat());
        assert_eq!(servers.first(), ("https://h1:8420", 4));
    }

    #[test]
    fn who_has_answered_for_another_one_comes_first_for_ten_minutes() {
        let mut servers = Servers::named("a".into(), vec!["b".into()]);
        servers.note("b", NOW);
        assert_eq!(servers.all(NOW + Duration::minutes(9)), ["b", "a"]);
        assert_eq!(servers.all(NOW + Duration::minutes(10)), ["a", "b"]);
        assert_eq!(servers.all(NOW - Duration::minutes(1)), ["a", "b"], "the clock was set back");
    }

    #[test]
    fn a_large_cluster_is_remembered_in_part() {
        let mut servers = Servers::named("a".into(), Vec::new());
        servers.learn(&status((0..64).map(|number| host("h", &format!("192.0.2.{number}"), number > 9)).collect()), NOW);
        assert_eq!(servers.first().1, MOST);
        assert_eq!(servers.all(NOW)[1], "https://192.0.2.10:8420");
    }

    #[test]
    fn the_cluster_is_asked_again_after_half_a_day_and_what_is_known_is_kept_when_it_does_not_say() {
        let mut servers = Servers::named("a".into(), Vec::new());
        assert!(servers.are_old(NOW));
        servers.learn(&status(vec![host("h2", "192.0.2.2", true)]), NOW);
        assert!(!servers.are_old(NOW + Duration::hours(11)) && servers.are_old(NOW + Duration::hours(12)));
        servers.learn_nothing(NOW + Duration::hours(12));
        assert!(!servers.are_old(NOW + Duration::hours(23)));
        assert_eq!(servers.first().1, 1);
    }
}
