//! `maru cluster status`.

use api::{Cluster, ClusterHost, ClusterStatus, StorePart};

use crate::output::Output;
use crate::remote::{Connect, RemoteError, fields, show_one, shown_time, table};

/// Shows it.
pub fn show(connect: &Connect, output: Output) -> Result<(), RemoteError> {
    let status: ClusterStatus = connect.client()?.get("/cluster")?;
    connect.learn(&status)?;
    show_one(output, &status, || match (&status.cluster, &status.failure) {
        (Some(cluster), _) => text(cluster),
        (None, Some(failure)) => format!("this host is in no cluster: {failure}\n"),
        (None, None) => "this host is in no cluster: `maru cluster create` makes one, `maru cluster join` joins one\n".into(),
    })
}

fn text(cluster: &Cluster) -> String {
    let voters = || cluster.hosts.iter().filter(|host| host.store == StorePart::Voter);
    let (all, answering) = (voters().count(), voters().filter(|host| host.store_answers).count());
    let silent = if answering < all { format!(", of which {answering} answer") } else { String::new() };
    let store = match &cluster.store_failure {
        Some(failure) => format!("takes no changes: {failure}"),
        None => format!("{all} members with a vote{silent}; {} of them may fail", answering.saturating_sub(all / 2 + 1)),
    };
    let mut about = vec![
        ("cluster", format!("{} ({}), since {}", cluster.name, cluster.id, shown_time(cluster.created_at))),
        ("coordinator", cluster.coordinator.clone().unwrap_or_else(|| "none yet".into())),
        ("store", store),
    ];
    about.extend(cluster.waits.clone().map(|waits| ("waits for", waits)));
    let rows = cluster.hosts.iter().map(|host| row(cluster, host));
    let heads = ["HOST", "ADDRESSES", "STATE", "VMS", "STORE", "VERSION"];
    let mut text = format!("{}\n{}", fields(&about), table(heads, rows));
    for host in cluster.hosts.iter().filter(|host| host.damaged.is_some()) {
        text +=
            &format!("\n{}: its member of the store is made anew: {}\n", host.name, host.damaged.as_deref().unwrap_or_default());
    }
    text
}

fn row(cluster: &Cluster, host: &ClusterHost) -> [String; 6] {
    let own = if host.name == cluster.this_host { " (this)" } else { "" };
    let addresses: Vec<String> = host.addresses.iter().map(ToString::to_string).collect();
    let mut state = vec![if host.alive { "alive" } else { "not there" }];
    state.extend(host.leaving.then_some("leaves"));
    let drained = if host.drained_until_back { "drained until it is back" } else { "drained" };
    state.extend(host.drained.then_some(drained));
    state.extend(host.witness.then_some("witness"));
    let silent = host.store != StorePart::Client && !host.store_answers;
    let leads = match (host.leads, silent) {
        (_, true) => ", silent",
        (true, false) => ", leads",
        (false, false) => "",
    };
    let store = format!("{}{leads}", host.store);
    [format!("{}{own}", host.name), addresses.join(", "), state.join(", "), host.vms.to_string(), store, host.version.clone()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_who_is_there_and_what_is_waited_for() {
        let host = |name: &str, store, leads: bool| ClusterHost {
            name: name.into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            api_port: 8420,
            alive: !leads,
            drained: leads,
            drained_until_back: leads,
            vms: if leads { 0 } else { 3 },
            witness: false,
            leaving: false,
            version: "0.1.0".into(),
            store,
            store_answers: name < "h3",
            leads,
            damaged: None,
            certificates: 0,
        };
        let cluster = Cluster {
            id: uuid::Uuid::nil(),
            name: "plant".into(),
            created_at: time::OffsetDateTime::UNIX_EPOCH,
            this_host: "h1".into(),
            coordinator: Some("h1".into()),
            store_failure: None,
            waits: Some("h4 gets a copy of the store".into()),
            hosts: vec![
                host("h1", StorePart::Voter, false),
                host("h2", StorePart::Voter, true),
                host("h3", StorePart::Voter, false),
                host("h4", StorePart::Learner, false),
            ],
        };
        let expected = "\
cluster      plant (00000000-0000-0000-0000-000000000000), since 1970-01-01T00:00:00Z
coordinator  h1
store        3 members with a vote, of which 2 answer; 0 of them may fail
waits for    h4 gets a copy of the store

HOST       ADDRESSES  STATE                                VMS  STORE            VERSION
h1 (this)  192.0.2.1  alive                                3    voter            0.1.0
h2         192.0.2.1  not there, drained until it is back  0    voter, leads     0.1.0
h3         192.0.2.1  alive                                3    voter, silent    0.1.0
h4         192.0.2.1  alive                                3    learner, silent  0.1.0
";
        assert_eq!(text(&cluster), expected);
    }
}
