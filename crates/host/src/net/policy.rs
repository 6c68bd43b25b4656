//! Policies of ports: as the API has them, and as the switch is told them.

use serde_json::Value;
use switch::policy::PortPolicy;

use crate::records::Cause;
use crate::vm::resources::merge;

fn bad(message: impl Into<String>) -> Cause {
    Cause::new("bad-policy", message, "see docs/src/switch.md, or /api/v1/openapi.json, for what a policy says")
}

/// Checks a policy. Its port's address is not in it: that is the card's.
pub fn record(wanted: &api::PortPolicy) -> Result<PortPolicy, Cause> {
    let value = serde_json::to_value(wanted).map_err(|error| bad(error.to_string()))?;
    let policy: PortPolicy = serde_json::from_value(value).map_err(|error| bad(format!("that is no policy: {error}")))?;
    policy.check().map_err(|error| bad(error.to_string()))?;
    Ok(policy)
}

/// A policy as the API tells it.
pub fn told(policy: &PortPolicy) -> api::PortPolicy {
    let mut value = serde_json::to_value(policy).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("mac");
    }
    // Both have the same form: a test sees to it.
    serde_json::from_value(value).unwrap_or_default()
}

/// What a policy is after a change: `change` takes its place, or is merged into it (RFC 7396).
pub fn changed(policy: &PortPolicy, change: &Value, replace: bool) -> Result<PortPolicy, Cause> {
    let mut wanted = serde_json::to_value(told(policy)).map_err(|error| bad(error.to_string()))?;
    if replace {
        wanted.clone_from(change);
    } else {
        merge(&mut wanted, change);
    }
    let wanted: api::PortPolicy = serde_json::from_value(wanted).map_err(|error| bad(format!("that is no policy: {error}")))?;
    record(&wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// All that a policy can say.
    fn everything() -> Value {
        json!({
            "mac-spoofing": "allow", "dhcp-server": "deny", "router": "deny", "storm-limit": 5,
            "bandwidth": {"max-out-bps": 9000, "max-in-bps": 8000, "burst-bytes": 1, "min-out-bps": 8001, "weight": 9, "capacity-bps": 8002},
            "mirroring": "source",
            "max-stations": 3, "max-connections": 4,
            "vlan": {"mode": "trunk", "native": 7, "allowed": [{"first": 10, "last": 19}]},
            "acl": [
                {"action": "meter", "address": "any-ip"},
                {"action": "deny", "direction": "inbound", "address": {"remote-ip": "10.0.0.0/8"}},
                {"action": "allow", "address": {"local-mac": "52:54:00:00:00:01"}},
            ],
            "extended-acl": [{
                "effect": {"allow-stateful": {"idle-timeout-s": 60}}, "direction": "outbound", "weight": 10, "local": "10.0.0.5/32",
                "remote": "10.0.0.0/8", "protocol": 6, "local-ports": {"first": 1, "last": 2}, "remote-ports": {"first": 3, "last": 3},
            }],
        })
    }

    #[test]
    fn the_api_and_the_switch_have_the_same_words() {
        let wanted: api::PortPolicy = serde_json::from_value(everything()).unwrap();
        let policy = record(&wanted).unwrap();
        assert_eq!(told(&policy), wanted);
        assert_eq!(serde_json::to_value(&wanted).unwrap(), everything());
        // What the switch knows and the API does not would be lost.
        let keys = |value: Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let of_switch = keys(serde_json::to_value(PortPolicy::default()).unwrap());
        let of_api = keys(serde_json::to_value(api::PortPolicy::default()).unwrap());
        assert_eq!(of_switch.into_iter().filter(|key| key != "mac").collect::<Vec<_>>(), of_api);
        for vlan in [
            json!({"mode": "untagged"}),
            json!({"mode": "access", "vlan": 1}),
            json!({"mode": "isolated", "primary": 1, "secondary": 2}),
            json!({"mode": "community", "primary": 1, "secondary": 2}),
            json!({"mode": "promiscuous", "primary": 1, "secondaries": [2, 3]}),
        ] {
            let policy = changed(&PortPolicy::default(), &json!({ "vlan": vlan }), false).unwrap();
            assert_eq!(serde_json::to_value(told(&policy)).unwrap()["vlan"], vlan);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        let refused = |change: Value| changed(&PortPolicy::default(), &change, false).unwrap_err().message;
        assert!(refused(json!({"vlan": {"mode": "access", "vlan": 4095}})).contains("no VLAN 4095"));
        assert!(refused(json!({"valn": 1})).contains("valn"));
        assert!(refused(json!({"acl": [{"action": "deny", "address": {"local-ip": "10.0.0.0/33"}}]})).contains("10.0.0.0/33"));
        assert!(refused(json!({"acl": [{"action": "meter", "address": "any-mac"}]})).contains("meter"));
        assert!(refused(json!({"mac": "52:54:00:00:00:01"})).contains("mac"));
        let rule = |weight: u32| json!({"effect": "deny", "direction": "inbound", "weight": weight});
        assert!(refused(json!({"extended-acl": [rule(1), rule(1)]})).contains("weight 1"));
        let many: Vec<Value> = (0..65_537).map(rule).collect();
        assert!(refused(json!({ "extended-acl": many })).contains("at most 65536"));
    }
}
