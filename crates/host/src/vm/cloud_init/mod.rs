//! What a guest is told at its first start: a small disk with the documents that cloud-init looks for (its data source NoCloud).
//!
//! The disk is made anew at each start, among the files of the running VM, and goes with them. Its content depends on nothing but what is stored.

mod iso;

use std::io::Write;
use std::net::IpAddr;

use serde_json::{Value, json};
use vmm::config::{DiskConfig, DiskFormat, DiskLimits, VmConfig};

use super::Surroundings;
use super::process::RunFiles;
use crate::auth::sha256;
use crate::records::{Cause, CloudInitRecord, CloudNetRecord, VmRecord};

/// The disk's name in the VM.
pub const DISK: &str = "cloud-init";
/// The label by which cloud-init knows the disk.
const LABEL: &str = "cidata";
/// The longest user data in bytes: what is stored has to fit into one record.
const MAX_USER_DATA: usize = 128 * 1024;
/// Keys, network cards with addresses, and addresses and name servers of each.
const MAX_LISTED: usize = 32;
/// The longest key, hash or name in bytes.
const MAX_TEXT: usize = 4096;

fn bad(message: impl Into<String>, way_out: &str) -> Cause {
    Cause::new("bad-cloud-init", message, way_out)
}

/// What is to be stored. Secrets are never told, so whoever changes something else does not have them: those that are there stay, as far as they still
/// fit.
pub fn record(wanted: &api::CloudInit, old: Option<&VmRecord>) -> CloudInitRecord {
    let mut record = CloudInitRecord::from(wanted);
    let Some(old) = old.and_then(|old| old.cloud_init.as_ref()) else { return record };
    let makes_own = record.user.is_some() || !record.ssh_keys.is_empty() || record.password_hash.is_some();
    if record.user_data.is_none() && !makes_own {
        record.user_data.clone_from(&old.user_data);
    }
    if record.user_data.is_none() && record.password_hash.is_none() && record.user == old.user {
        record.password_hash.clone_from(&old.password_hash);
    }
    record
}

/// Checks what a guest is to be told. Texts of it go into documents as values and never as they are, so they need only make sense.
pub fn check(wanted: &CloudInitRecord, vm: &VmRecord) -> Result<(), Cause> {
    let is_line = |text: &str| !text.is_empty() && text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
    if let Some(name) = &wanted.host_name {
        let label = |label: &str| {
            let fine = |c: char| c.is_ascii_alphanumeric() || c == '-';
            (1..=63).contains(&label.len()) && label.chars().all(fine) && !label.starts_with('-') && !label.ends_with('-')
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(bad(format!("'{}' is no host name", name.escape_debug()), "use letters, digits and '-' between dots"));
        }
    }
    if let Some(user) = &wanted.user {
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        if !(1..=32).contains(&user.len())
            || !user.chars().all(fine)
            || !user.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        {
            let message = format!("'{}' is no user's name", user.escape_debug());
            return Err(bad(message, "use up to 32 small letters, digits, '-' and '_'"));
        }
    }
    if wanted.ssh_keys.len() > MAX_LISTED || !wanted.ssh_keys.iter().all(|key| is_line(key) && key.contains(' ')) {
        return Err(bad("an SSH key is none", "give lines of an authorized_keys, like ssh-ed25519 AAAA..., 32 at most"));
    }
    // Not the hash itself: messages are in logs.
    if wanted.password_hash.as_ref().is_some_and(|hash| !is_line(hash) || !hash.starts_with('$') || hash.contains([' ', ':'])) {
        return Err(bad("the password's hash is none", "give what `mkpasswd --method=sha-512` prints, which begins with $6$"));
    }
    if wanted.password_hash.is_some() && wanted.user.is_none() {
        return Err(bad("there is a password and no user", "name the user whose password it is"));
    }
    if let Some(data) = &wanted.user_data {
        if data.len() > MAX_USER_DATA {
            return Err(bad(format!("user data of {} bytes", data.len()), "give it 128 KiB at most"));
        }
        if wanted.user.is_some() || !wanted.ssh_keys.is_empty() || wanted.password_hash.is_some() {
            return Err(bad("there are user data, and a user, keys or a password", "put these into the user data"));
        }
    }
    if wanted.nets.len() > MAX_LISTED {
        return Err(bad("there are too many network cards", "name each card of the VM once"));
    }
    for (index, net) in wanted.nets.iter().enumerate() {
        if !vm.nets.iter().any(|card| card.id == net.id) || wanted.nets[..index].iter().any(|other| other.id == net.id) {
            let message = format!("the VM has no network card '{}', or it is there twice", net.id.escape_debug());
            return Err(bad(message, "name each of its cards once, like net0"));
        }
        check_net(net)?;
    }
    if vm.disks.iter().any(|disk| disk.id == DISK) || vm.nets.iter().any(|net| net.id == DISK) {
        return Err(bad(
            format!("a device is called '{DISK}'"),
            "give it another id: that is the disk with what cloud-init finds",
        ));
    }
    Ok(())
}

fn check_net(net: &CloudNetRecord) -> Result<(), Cause> {
    let is_address = |text: &String| text.parse::<IpAddr>().is_ok();
    let has_prefix = |text: &String| {
        let parts = text
            .split_once('/')
            .and_then(|(address, length)| Some((address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?)));
        parts.is_some_and(|(address, length)| length <= if address.is_ipv4() { 32 } else { 128 })
    };
    if net.addresses.len() > MAX_LISTED || !net.addresses.iter().all(has_prefix) {
        return Err(bad(format!("an address of '{}' is none", net.id), "write each with its prefix, like 10.0.0.5/24"));
    }
    if net.name_servers.len() > MAX_LISTED || !net.name_servers.iter().chain(&net.gateway).all(is_address) {
        return Err(bad(format!("the gateway or a name server of '{}' is no address", net.id), "write addresses, like 10.0.0.1"));
    }
    if net.addresses.is_empty() && net.gateway.is_some() {
        return Err(bad(format!("'{}' has a gateway and no address", net.id), "give it an address, or leave it all to DHCP"));
    }
    Ok(())
}

/// Adds the disk to what a monitor is told, if the VM is to have it, and makes it.
pub fn attach(surroundings: &Surroundings, vm: &VmRecord, config: &mut VmConfig) -> Result<(), Cause> {
    let Some(wanted) = &vm.cloud_init else { return Ok(()) };
    let image = image(wanted, vm);
    let path = RunFiles::of(surroundings, vm.id).cloud_init();
    let made = RunFiles::of(surroundings, vm.id).make_directory().and_then(|()| {
        let mut file = super::process::private_file(&path)?;
        file.write_all(&image)
    });
    made.map_err(|error| {
        let message = format!("the disk for cloud-init cannot be written to {}: {error}", path.display());
        Cause::new("not-started", message, "see what stands in the way on the host, and try again")
    })?;
    config.disks.push(DiskConfig {
        id: DISK.into(),
        path,
        format: Some(DiskFormat::Raw),
        read_only: true,
        direct: false,
        queues: 1,
        serial: None,
        slot: None,
        copy_on_read: false,
        limits: DiskLimits::default(),
    });
    config.check().map_err(|error| bad(error.to_string(), "change that"))
}

fn image(wanted: &CloudInitRecord, vm: &VmRecord) -> Vec<u8> {
    let (user, network) = (user_data(wanted), network_config(wanted, vm));
    let host_name = wanted.host_name.as_deref().unwrap_or(&vm.name);
    // Another VM, or something else to be told: another instance, to which all of it is done.
    let told = sha256(format!("{host_name}\0{network}\0{user}").as_bytes());
    let meta = document(&json!({ "instance-id": format!("{}-{}", vm.id, &told[..16]), "local-hostname": host_name }));
    iso::image(LABEL, &[("meta-data", meta.as_bytes()), ("network-config", network.as_bytes()), ("user-data", user.as_bytes())])
}

/// JSON is YAML.
fn document(value: &Value) -> String {
    format!("{value:#}\n")
}

fn user_data(wanted: &CloudInitRecord) -> String {
    if let Some(data) = &wanted.user_data {
        return data.clone();
    }
    let mut user = json!({});
    if let Some(name) = &wanted.user {
        user["name"] = json!(name);
    }
    if let Some(hash) = &wanted.password_hash {
        user["lock_passwd"] = json!(false);
        user["hashed_passwd"] = json!(hash);
    }
    let mut config = json!({});
    if user != json!({}) {
        config["user"] = user;
    }
    if !wanted.ssh_keys.is_empty() {
        config["ssh_authorized_keys"] = json!(wanted.ssh_keys);
    }
    format!("#cloud-config\n{}", document(&config))
}

/// Version 2, which cloud-init makes into whatever the system has.
fn network_config(wanted: &CloudInitRecord, vm: &VmRecord) -> String {
    let mut cards = serde_json::Map::new();
    for card in &vm.nets {
        let mut told = json!({ "match": { "macaddress": card.mac } });
        match wanted.nets.iter().find(|net| net.id == card.id) {
            Some(net) if !net.addresses.is_empty() => {
                told["addresses"] = json!(net.addresses);
                if let Some(gateway) = &net.gateway {
                    told[if gateway.contains(':') { "gateway6" } else { "gateway4" }] = json!(gateway);
                }
            }
            _ => told["dhcp4"] = json!(true),
        }
        if let Some(net) = wanted.nets.iter().find(|net| net.id == card.id && !net.name_servers.is_empty()) {
            told["nameservers"] = json!({ "addresses": net.name_servers });
        }
        cards.insert(card.id.clone(), told);
    }
    document(&json!({ "version": 2, "ethernets": cards }))
}

#[cfg(test)]
mod tests;
