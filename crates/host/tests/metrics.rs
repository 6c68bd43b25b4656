//! What Prometheus gets, and the dashboard that shows it.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use api::client::Client;
use serde_json::{Value, json};
use support::{Asking, TestHost, spec};

const DASHBOARD: &str = "../../dashboards/maru.json";

/// The samples by their names, with their labels and values; whatever is not of the form fails.
fn samples(text: &str) -> BTreeMap<String, Vec<(String, f64)>> {
    let mut samples: BTreeMap<String, Vec<(String, f64)>> = BTreeMap::new();
    let mut described = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            described.push(rest.split(' ').next().unwrap().to_owned());
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(described.iter().any(|known| known == name || known == base), "{name} has no type");
            samples.entry(name.into()).or_default().push((labels.trim_end_matches('}').into(), value.parse().unwrap()));
        }
    }
    samples
}

fn scrape(client: &Client) -> BTreeMap<String, Vec<(String, f64)>> {
    let mut response = client.send("GET".parse().unwrap(), "/metrics", &[], b"").unwrap();
    assert_eq!(response.status(), 200);
    samples(&response.body_mut().read_to_string().unwrap())
}

/// The names of Maru's metrics in what a dashboard asks for.
fn asked(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                if let (true, Some(text)) = (name == "expr" || name == "query", value.as_str()) {
                    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                    names.extend(words.filter(|word| word.starts_with("maru_") || word.starts_with("marud_")).map(String::from));
                }
                asked(value, names);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| asked(item, names)),
        _ => {}
    }
}

#[test]
fn each_number_is_there_and_the_dashboard_asks_for_no_other() {
    let host = TestHost::new();
    let client = host.client();
    std::fs::write(host.volume("root.raw"), [0; 4096]).unwrap();
    let mut wanted = spec("web", "");
    wanted["disks"] = json!([{"file": "local:root.raw"}]);
    wanted["nets"] = json!([{"tap": "tap0"}]);
    let limit = json!({"per_second": 500});
    wanted["resources"] = json!({"cpu_reserve_percent": 0, "disks": {"disk0": {"iops": limit, "bandwidth": limit}},
        "nets": {"net0": {"receive": limit}}});
    client.create(&wanted);
    client.does("POST /vms/web/start");
    client.get::<api::Usage>("/vms/web/usage").unwrap();
    let found = scrape(&client);
    let one = |name: &str| found[name][0].clone();
    assert!(one("maru_vm_state").0.contains("state=\"running\""), "{found:?}");
    assert!(one("maru_vm_disk_writes_total").1 >= 1.0);
    assert_eq!(one("maru_vm_disk_operations_limit"), ("vm=\"web\",device=\"disk0\"".into(), 500.0));
    assert_eq!(one("maru_vm_net_bandwidth_limit_bytes").0, "vm=\"web\",device=\"net0\",direction=\"receive\"");
    assert_eq!(one("maru_volume_provisioned_bytes"), ("volume=\"local\"".into(), 4096.0));
    assert_eq!(one("maru_host_memory_given_bytes").1, f64::from(64 << 20));
    let posted = found["marud_requests_total"].iter().find(|(labels, _)| labels.contains("POST") && labels.contains("201"));
    assert_eq!(posted.map(|(_, count)| *count), Some(1.0));
    assert!(one("marud_request_duration_seconds_count").1 >= 2.0);

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(DASHBOARD);
    let dashboard: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut names = Vec::new();
    asked(&dashboard, &mut names);
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(found.contains_key(&name), "the dashboard asks for {name}, which there is not");
    }
}

#[test]
fn a_viewer_sees_the_numbers_and_nobody_without_a_token() {
    let host = TestHost::new();
    let body = json!({"name": "prometheus", "role": "viewer"});
    let made: api::CreatedToken = host.client().call("POST".parse().unwrap(), "/tokens", Some(&body)).unwrap();
    assert!(scrape(&host.client_with(&made.secret)).contains_key("maru_host_cpus"));
    assert_eq!(host.client_with("maru-0").refusal("GET", "/metrics", &[], b""), (401, "no-token".into()));
    // Where Prometheus looks by itself.
    let top = host.top("/metrics", &made.secret);
    assert!(top.0 == 200 && top.1.contains("maru_host_cpus "), "{top:?}");
    assert_eq!(host.top("/metrics", "maru-0").0, 401);
}
