//! Hosts that become a cluster, with `marud` and etcd as they are, on addresses of this machine.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::time::Duration;

use api::client::{Client, ClientError, Method};
use api::{Cluster, ClusterStatus, StorePart};
use host::cluster::token::JoinToken;
use serde_json::json;
use support::cluster::{address, cluster, create, host, join, joined, post, status, token, until};
use support::{Asking, TestHost, spec};

fn voters(host: &TestHost) -> Vec<String> {
    let hosts = cluster(host).map(|cluster| cluster.hosts).unwrap_or_default();
    hosts.into_iter().filter(|host| host.store == StorePart::Voter).map(|host| host.name).collect()
}

fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result {
        Err(ClientError::Refused { error, .. }) => error.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn three_hosts_become_a_cluster_and_nothing_of_the_first_is_lost() {
    let first = host(0);
    let client = first.client();
    for name in ["a", "b"] {
        client.create(&spec(name, ""));
    }
    client.does("POST /vms/a/start");
    let pid = client.vm("a").pid;
    let made: api::CreatedToken = client.call(Method::POST, "/tokens", Some(&json!({"name": "eve", "role": "viewer"}))).unwrap();
    let before = (client.list::<api::Vm>("/vms").unwrap(), client.list::<api::Task>("/tasks").unwrap());
    let events = |client: &Client| -> Vec<String> {
        client.list::<api::Event>("/events").unwrap().into_iter().map(|event| event.text).collect()
    };
    let told = events(&client);

    let cluster_of_one = create(&first, "h1");
    assert_eq!(cluster_of_one.name, "test");
    let client = first.client_with(&made.secret);
    until("the VM that ran", || (client.vm("a").state == api::VmState::Running).then_some(()));
    assert_eq!(client.vm("a").pid, pid, "it went on");
    let after = (client.list::<api::Vm>("/vms").unwrap(), client.list::<api::Task>("/tasks").unwrap());
    assert_eq!(format!("{:?}", before.1), format!("{:?}", after.1));
    let specs = |vms: &[api::Vm]| vms.iter().map(|vm| (vm.id, vm.spec.clone())).collect::<Vec<_>>();
    assert_eq!(specs(&before.0), specs(&after.0));
    let now = events(&client);
    assert_eq!(now[..told.len()], told, "events in their order");
    let ids: Vec<u64> = client.list::<api::Event>("/events").unwrap().into_iter().map(|event| event.id).collect();
    assert!(ids.is_sorted_by(|one, other| one < other), "{ids:?}");
    assert!(first.directory.path().join("state").join(format!("single-host-before-{}", cluster_of_one.id)).exists());

    assert_eq!(code(post(&first.client(), "/cluster", &json!({}))), "in-cluster");
    first.client().does("POST /vms/a/stop");
    for name in ["a", "b"] {
        first.client().does(&format!("DELETE /vms/{name}?disks=keep"));
    }
    let (second, third) = (host(1), host(2));
    joined(&first, &second, "h2");
    assert_eq!(voters(&first), ["h1"], "two hosts have one member");
    joined(&first, &third, "h3");
    let all = ["h1", "h2", "h3"].map(String::from);
    for host in [&first, &second, &third] {
        until("three members", || (voters(host) == all).then_some(()));
    }
    // Any host answers everyone.
    let viewer = third.client_with(&made.secret);
    assert_eq!(viewer.get::<ClusterStatus>("/cluster").unwrap().cluster.unwrap().id, cluster_of_one.id);
    assert_eq!(code(post(&viewer, "/cluster/tokens", &json!({}))), "role");
}

/// A token that says something else, and is whole.
fn changed(token: &str, change: impl FnOnce(&mut JoinToken)) -> String {
    let mut token: JoinToken = token.parse().unwrap();
    change(&mut token);
    token.to_string()
}

#[test]
fn who_has_no_good_token_stays_outside_and_hears_why() {
    let (first, second, third) = (host(0), host(1), host(2));
    assert_eq!(code(post(&first.client(), "/cluster/tokens", &json!({}))), "no-cluster");
    create(&first, "h1");
    let good = token(&first);
    assert_eq!(code(join(&second, "h2", "maru-123")), "bad-token");
    assert_eq!(code(join(&second, "h2", &good[..good.len() - 1])), "bad-token");
    let wrong = changed(&good, |token| token.secret = "0".repeat(64));
    assert_eq!(code(join(&second, "h2", &wrong)), "wrong-token");
    let other_authority = changed(&good, |token| token.fingerprint = "0".repeat(64));
    assert_eq!(code(join(&second, "h2", &other_authority)), "stranger");
    // The third is alone, and its certificate is its own authority's.
    let elsewhere = changed(&good, |token| token.addresses = vec![format!("{}:8420", address(2)).parse().unwrap()]);
    assert_eq!(code(join(&second, "h2", &elsewhere)), "stranger");
    let nowhere = changed(&good, |token| token.addresses = vec![format!("{}:8421", address(2)).parse().unwrap()]);
    assert_eq!(code(join(&second, "h2", &nowhere)), "no-answer");
    assert_eq!(code(post(&first.client(), "/cluster/tokens", &json!({"valid_seconds": 0}))), "bad-time");
    let short: api::CreatedJoinToken =
        first.client().call(Method::POST, "/cluster/tokens", Some(&json!({"valid_seconds": 1}))).unwrap();
    until("its end", || (time::OffsetDateTime::now_utc() > short.expires_at).then_some(()));
    assert_eq!(code(join(&second, "h2", &short.token)), "token-expired");
    assert_eq!(code(join(&second, "h1", &good)), "name-taken");
    assert_eq!(code(join(&second, "h/2", &good)), "bad-name");
    let unreachable = post(&second.client(), "/cluster/join", &json!({"token": good, "addresses": ["192.0.2.77"]}));
    assert_eq!(code(unreachable), "bad-address");
    second.client().create(&spec("web", ""));
    assert_eq!(code(join(&second, "h2", &good)), "has-vms");
    second.client().does("DELETE /vms/web?disks=keep");
    assert!(status(&second).unwrap().cluster.is_none(), "nothing has changed");
    assert_eq!(cluster(&first).unwrap().hosts.len(), 1);

    // What the cluster thinks of clocks and versions.
    let asks = |change: serde_json::Value| {
        let token: JoinToken = good.parse().unwrap();
        let mut request = json!({
            "token": token.id, "join": uuid::Uuid::new_v4(), "host": "h9", "addresses": ["192.0.2.9"], "api_port": 8420,
            "client_port": 2379, "peer_port": 2380, "witness": false, "version": env!("CARGO_PKG_VERSION"),
            "at": time::OffsetDateTime::now_utc().format(&time::format_description::well_known::Rfc3339).unwrap(),
            "memory_mib": 1, "cpus": 1, "watchdog": false, "admin_sha256": "0".repeat(64),
        });
        request.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        code(post(&first.client_with(&token.secret), "/cluster/members", &request))
    };
    assert_eq!(asks(json!({"at": "2020-01-01T00:00:00Z"})), "clock");
    assert_eq!(asks(json!({"version": "99.1.0"})), "version");
    // The secret of a token of the API is none to join with.
    let request = json!({"host": "h9"});
    assert_eq!(code(post(&first.client(), "/cluster/members", &request)), "bad-body");
    // Who shows none hears of nothing else.
    let mut stranger = first.connect();
    let asks = "POST /api/v1/cluster/members HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
    stranger.write_all(asks.as_bytes()).unwrap();
    let mut answer = String::new();
    stranger.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("wrong-token"), "{answer}");

    join(&second, "h2", &good).unwrap();
    until("h2 in the cluster", || cluster(&second));
    assert_eq!(code(join(&third, "h3", &good)), "token-used");
    assert_eq!(code(join(&second, "h2", &good)), "in-cluster");
}

#[test]
fn a_host_that_goes_down_takes_vms_again_after_its_next_start_and_not_when_marud_starts_anew() {
    let mut first = host(0);
    create(&first, "h1");
    let own = |host: &TestHost| {
        let own = until("the host", || cluster(host)?.hosts.into_iter().find(|host| host.name == "h1" && host.alive));
        (own.drained, own.drained_until_back)
    };
    let drain =
        |host: &TestHost, how: &str| until("the drain", || host.client().post::<()>(&format!("/hosts/h1/drain{how}")).ok());
    assert_eq!(own(&first), (false, false));
    assert_eq!(code(first.client().post::<()>("/hosts/h9/drain?for_shutdown=true")), "not-own-host");
    drain(&first, "?for_shutdown=true");
    assert_eq!(own(&first), (true, true));
    first.kill();
    first.start();
    assert_eq!(own(&first), (true, true));
    first.reboot();
    until("it takes VMs again", || (own(&first) == (false, false)).then_some(()));

    // Whoever drains it decides when that ends, before and after.
    drain(&first, "");
    drain(&first, "?for_shutdown=true");
    assert_eq!(own(&first), (true, false));
    first.reboot();
    assert_eq!(own(&first), (true, false));
    first.client().post::<()>("/hosts/h1/resume").unwrap();
    assert_eq!(own(&first), (false, false));
}

#[test]
fn a_host_that_is_killed_while_it_becomes_a_cluster_is_one_or_the_other() {
    for round in 0..8 {
        let mut first = host(0);
        first.client().create(&spec("web", ""));
        let asked = post(&first.client(), "/cluster", &json!({"host": "h1"}));
        assert!(asked.is_ok(), "{asked:?}");
        // From before it starts anew to when it is there.
        std::thread::sleep(Duration::from_millis(350 * round));
        first.kill();
        // Whatever was begun is done, or begun again.
        first.start();
        let made = until("an answer", || status(&first));
        assert_eq!(made.failure, None, "round {round}");
        assert_eq!(first.client().vm("web").spec.name, "web", "round {round}");
        assert_eq!(made.cluster.map(|cluster| cluster.hosts.len()), Some(1), "round {round}: it was promised");
    }
}

#[test]
fn a_host_that_is_killed_while_it_joins_can_join_with_the_same_token() {
    let first = host(0);
    create(&first, "h1");
    for (round, name) in ["h2", "h3", "h4"].into_iter().enumerate() {
        let mut joiner = host(1);
        let token = token(&first);
        let asking = {
            let (client, token) = (joiner.client(), token.clone());
            std::thread::spawn(move || post(&client, "/cluster/join", &json!({"token": token, "host": name})))
        };
        std::thread::sleep(Duration::from_millis(25 * u64::try_from(round).unwrap()));
        joiner.kill();
        let _ = asking.join().unwrap();
        joiner.start();
        if until("an answer", || status(&joiner)).cluster.is_none() {
            join(&joiner, name, &token).unwrap();
        }
        until("its place", || cluster(&joiner).filter(|cluster| cluster.this_host == name));
        // For the next one at this address.
        joiner.kill();
        let remove = || first.client().call::<()>(Method::DELETE, &format!("/cluster/hosts/{name}"), None::<&()>);
        until("the end of its lease", || remove().ok());
    }
}

#[test]
fn hosts_leave_are_removed_and_come_back() {
    let (first, mut second, third) = (host(0), host(1), host(2));
    create(&first, "h1");
    joined(&first, &second, "h2");
    joined(&first, &third, "h3");
    until("three members", || (voters(&first).len() == 3).then_some(()));
    assert_eq!(code(post(&third.client(), "/cluster/leave", &json!(null))), "not-drained");
    let refused = first.client().call::<()>(Method::DELETE, "/cluster/hosts/h2", None::<&()>);
    assert_eq!(code(refused), "host-alive");
    first.client().post::<Option<serde_json::Value>>("/hosts/h3/drain").unwrap();
    until("a drained host", || post(&third.client(), "/cluster/leave", &json!(null)).ok());
    until("h3 alone", || status(&third).filter(|status| status.cluster.is_none()));
    assert_ne!(
        fs::read(first.directory.path().join("state/tls/ca.pem")).unwrap(),
        fs::read(third.directory.path().join("state/tls/ca.pem")).unwrap(),
        "it has nothing of the cluster's"
    );
    let settled = || cluster(&first).filter(|cluster| cluster.hosts.len() == 2);
    until("one member of two hosts", || settled().filter(|_| voters(&first).len() == 1));

    // The other one may have the member: then it moves first.
    if voters(&first) == ["h2"] {
        first.client().post::<Option<serde_json::Value>>("/hosts/h2/drain").unwrap();
        until("the member on h1", || (voters(&first) == ["h1"]).then_some(()));
    }
    second.kill();
    let remove = || first.client().call::<()>(Method::DELETE, "/cluster/hosts/h2", None::<&()>);
    until("the end of its lease", || remove().ok());
    assert_eq!(cluster(&first).unwrap().hosts.len(), 1);
    joined(&first, &third, "h3");
    // The removed one knows it, and begins anew.
    second.start();
    leave_by_force(&second);
    joined(&third, &second, "h2");
    until("three members", || (voters(&second).len() == 3).then_some(()));
}

/// What `maru cluster leave --force` does.
fn leave_by_force(host: &TestHost) {
    let file = host.directory.path().join("state/forming.json");
    fs::write(&file, json!({"kind": "forming", "version": 1, "data": "leave"}).to_string()).unwrap();
    until("a host of its own", || status(host).filter(|status| status.cluster.is_none()));
}

/// The certificate that a host shows.
fn shown(host: &TestHost) -> Vec<u8> {
    let mut stream = host.connect();
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

#[test]
fn certificates_are_exchanged_while_all_goes_on() {
    let (first, second) = (host(0), host(1));
    create(&first, "h1");
    joined(&first, &second, "h2");
    let before = [shown(&first), shown(&second)];
    let wanted: api::Certificates = second.client().post("/cluster/certificates/rotate").unwrap();
    let is_done = |cluster: &Cluster| cluster.hosts.iter().all(|host| host.certificates == wanted.generation);
    until("new certificates", || cluster(&first).filter(is_done));
    let after = [shown(&first), shown(&second)];
    assert!(before.iter().zip(&after).all(|(before, after)| before != after));
    // Both still reach the store, with connections that are made now.
    let ended = etcds(&first);
    ended.iter().for_each(|pid| support::end(*pid));
    until("another etcd", || etcds(&first).first().filter(|pid| !ended.contains(pid)).copied());
    for host in [&first, &second] {
        until("a store that takes changes", || cluster(host).filter(|cluster| cluster.store_failure.is_none()));
    }
    token(&second);
    token(&first);
}

/// Ids of a host's etcd.
fn etcds(host: &TestHost) -> Vec<u32> {
    let data = host.directory.path().join("state/etcd");
    let ours = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.split('\0').next().is_some_and(|name| name.ends_with("etcd")) && line.contains(data.to_str().unwrap())
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(ours).collect()
}

#[test]
fn a_member_that_ends_is_started_again_and_one_whose_data_are_damaged_is_made_anew() {
    let (first, second, mut third) = (host(0), host(1), host(2));
    create(&first, "h1");
    joined(&first, &second, "h2");
    joined(&first, &third, "h3");
    until("three members", || (voters(&first).len() == 3).then_some(()));
    let before = until("its etcd", || etcds(&first).first().copied());
    support::end(before);
    until("another etcd", || etcds(&first).first().copied().filter(|pid| *pid != before));
    until("a store that takes changes", || cluster(&first).filter(|cluster| cluster.store_failure.is_none()));

    third.kill();
    until("its end", || etcds(&third).is_empty().then_some(()));
    let data = third.directory.path().join("state/etcd/data/member/snap/db");
    let length = fs::metadata(&data).unwrap().len();
    fs::write(&data, vec![0x5a; usize::try_from(length).unwrap()]).unwrap();
    third.start();
    let client = first.client();
    let told =
        || client.list::<api::Event>("/events").unwrap().into_iter().any(|event| event.text.contains("is to be made anew"));
    until("the damage to be told", || told().then_some(()));
    let whole = |cluster: &Cluster| cluster.hosts.iter().all(|host| host.store == StorePart::Voter && host.damaged.is_none());
    until("three members again", || cluster(&first).filter(whole));
}

#[test]
fn one_host_goes_on_when_the_others_are_lost_for_ever() {
    let (mut first, mut second, mut third) = (host(0), host(1), host(2));
    create(&first, "h1");
    joined(&first, &second, "h2");
    joined(&first, &third, "h3");
    until("three members", || (voters(&first).len() == 3).then_some(()));
    let last: api::CreatedToken =
        first.client().call(Method::POST, "/tokens", Some(&json!({"name": "last", "role": "viewer"}))).unwrap();
    let backups = first.directory.path().join("state/backups");
    let backup = until("a backup", || {
        let found = fs::read_dir(&backups).ok()?.flatten().map(|entry| entry.path());
        found.into_iter().find(|path| path.extension().is_some_and(|end| end == "etcd"))
    });
    second.kill();
    third.kill();
    let old = cluster(&first).unwrap().id;
    let restore = |host: &TestHost, backup: serde_json::Value| {
        let file = host.directory.path().join("state/restore.json");
        fs::write(&file, json!({"kind": "restore", "version": 1, "data": {"backup": backup}}).to_string()).unwrap();
        until("the restore to be done", || (!file.exists()).then_some(()));
    };
    restore(&first, json!(null));
    let alone = |cluster: &Cluster| cluster.hosts.len() == 1 && cluster.store_failure.is_none() && cluster.id != old;
    until("a cluster of one", || cluster(&first).filter(alone));
    // What was done last is there, since most had agreed to it.
    first.client_with(&last.secret).get::<ClusterStatus>("/cluster").unwrap();
    // Others come back as new ones.
    second.start();
    leave_by_force(&second);
    joined(&first, &second, "h2");
    second.kill();

    // From a backup, when marud does not run.
    first.kill();
    let file = first.directory.path().join("state/restore.json");
    fs::write(&file, json!({"kind": "restore", "version": 1, "data": {"backup": backup}}).to_string()).unwrap();
    first.start();
    let restored = until("a cluster of one", || cluster(&first));
    assert_eq!(restored.hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>(), ["h1"]);
    // A backup that is none leaves everything as it was.
    let none = first.directory.path().join("none.etcd");
    fs::write(&none, "not a backup").unwrap();
    restore(&first, json!(none));
    until("the same cluster", || cluster(&first).filter(|cluster| cluster.id == restored.id));
}
