use crate::vm::config;
use crate::volumes::Volumes;

use super::*;

fn vm(cloud_init: Value) -> Result<VmRecord, Cause> {
    let directory = tempfile::tempdir().unwrap();
    let mut volumes = Volumes::default();
    volumes.add(&format!("local={}", directory.path().display())).unwrap();
    std::fs::write(directory.path().join("vmlinuz"), "").unwrap();
    let spec = json!({
        "name": "web", "memory_bytes": 64 << 20, "boot": {"kernel": "local:vmlinuz"},
        "nets": [{"tap": "tap0"}, {"tap": "tap1"}], "cloud_init": cloud_init,
    });
    config::record(&serde_json::from_value(spec).unwrap(), &volumes, &[]).map(|wanted| wanted.vm)
}

fn documents(vm: &VmRecord) -> [Value; 3] {
    let wanted = vm.cloud_init.as_ref().unwrap();
    let text = String::from_utf8_lossy(&image(wanted, vm)).into_owned();
    let meta = &text[text.find("{\n  \"instance-id\"").unwrap()..];
    let meta = serde_json::Deserializer::from_str(meta).into_iter().next().unwrap().unwrap();
    let user = user_data(wanted);
    let user = serde_json::from_str(user.strip_prefix("#cloud-config\n").unwrap()).unwrap();
    [meta, serde_json::from_str(&network_config(wanted, vm)).unwrap(), user]
}

#[test]
fn everything_that_is_wanted_is_told_to_the_guest() {
    let vm = vm(json!({
        "user": "alice", "ssh_keys": ["ssh-ed25519 AAAA alice\u{2122}: \"x\""], "password_hash": "$6$salt$hash",
        "nets": [{"id": "net1", "addresses": ["10.0.0.5/24", "fd00::5/64"], "gateway": "10.0.0.1", "name_servers": ["9.9.9.9"]}],
    }));
    let vm = vm.unwrap();
    let [meta, network, user] = documents(&vm);
    assert_eq!(meta["local-hostname"], "web");
    assert!(meta["instance-id"].as_str().unwrap().starts_with(&vm.id.to_string()));
    assert_eq!(
        network["ethernets"]["net0"],
        json!({"match": {"macaddress": vm.nets[0].mac}, "dhcp4": true}),
        "what is not named uses DHCP"
    );
    let fixed = json!({
        "match": {"macaddress": vm.nets[1].mac}, "addresses": ["10.0.0.5/24", "fd00::5/64"], "gateway4": "10.0.0.1",
        "nameservers": {"addresses": ["9.9.9.9"]},
    });
    assert_eq!(network["ethernets"]["net1"], fixed);
    assert_eq!(user["user"], json!({"name": "alice", "lock_passwd": false, "hashed_passwd": "$6$salt$hash"}));
    assert_eq!(user["ssh_authorized_keys"], json!(["ssh-ed25519 AAAA alice\u{2122}: \"x\""]));
}

#[test]
fn another_vm_and_other_words_are_another_instance_and_a_start_is_not() {
    let vm = vm(json!({"host_name": "a.example"})).unwrap();
    let id = |vm: &VmRecord| documents(vm)[0]["instance-id"].clone();
    assert_eq!(id(&vm), id(&vm.clone()));
    let renamed = CloudInitRecord { host_name: Some("b.example".into()), ..Default::default() };
    assert_ne!(id(&vm), id(&VmRecord { cloud_init: Some(renamed), ..vm.clone() }));
    assert_ne!(id(&vm), id(&VmRecord { id: uuid::Uuid::new_v4(), ..vm.clone() }));
}

#[test]
fn secrets_are_told_to_the_guest_and_to_nobody_else() {
    for secret in [json!({"user": "alice", "password_hash": "$6$secret"}), json!({"user_data": "#!/bin/sh\n# $6$secret"})] {
        let vm = vm(secret).unwrap();
        let told = serde_json::to_string(&vm.spec()).unwrap();
        assert!(!format!("{vm:?} {:?} {told}", vm.spec()).contains("secret"), "{vm:?}");
        assert!(String::from_utf8_lossy(&image(vm.cloud_init.as_ref().unwrap(), &vm)).contains("$6$secret"));
    }
}

#[test]
fn secrets_stay_when_something_else_is_changed() {
    let with_password = vm(json!({"user": "alice", "password_hash": "$6$x"})).unwrap();
    let mut wanted = with_password.spec().cloud_init.unwrap();
    wanted.host_name = Some("new".into());
    assert_eq!(record(&wanted, Some(&with_password)).password_hash.as_deref(), Some("$6$x"));
    wanted.user = Some("bob".into());
    assert_eq!(record(&wanted, Some(&with_password)).password_hash, None);
    let with_data = vm(json!({"user_data": "#!x"})).unwrap();
    let wanted = with_data.spec().cloud_init.unwrap();
    assert_eq!(record(&wanted, Some(&with_data)).user_data.as_deref(), Some("#!x"));
    let other = api::CloudInit { user: Some("bob".into()), ..wanted };
    assert_eq!(record(&other, Some(&with_data)).user_data, None);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for wanted in [
        json!({"host_name": "a b"}),
        json!({"host_name": "-a"}),
        json!({"user": "root:x"}),
        json!({"user": ""}),
        json!({"ssh_keys": ["no-key"]}),
        json!({"ssh_keys": ["ssh-rsa A\nssh-rsa B"]}),
        json!({"user": "a", "password_hash": "plain"}),
        json!({"user": "a", "password_hash": "$6$a:b"}),
        json!({"password_hash": "$6$a"}),
        json!({"user_data": "x".repeat(MAX_USER_DATA + 1)}),
        json!({"user_data": "x", "user": "a"}),
        json!({"nets": [{"id": "net7"}]}),
        json!({"nets": [{"id": "net0"}, {"id": "net0"}]}),
        json!({"nets": [{"id": "net0", "addresses": ["10.0.0.5"]}]}),
        json!({"nets": [{"id": "net0", "addresses": ["10.0.0.5/33"]}]}),
        json!({"nets": [{"id": "net0", "gateway": "10.0.0.1"}]}),
        json!({"nets": [{"id": "net0", "name_servers": ["dns.example"]}]}),
    ] {
        assert_eq!(vm(wanted.clone()).unwrap_err().code, "bad-cloud-init", "{wanted}");
    }
}
