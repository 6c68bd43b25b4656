//! The host's NICs as the kernel command line describes them.

use std::time::{Duration, Instant};

use lab::pid1::{self, CommandLine, Ipv4Net, Nic, dhcp};

/// How long a NIC may take to appear after its driver was loaded.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sets up name, NICs, route and resolver; gives what did not work.
pub fn configure(line: &CommandLine) -> Vec<String> {
    let mut problems = Vec::new();
    let mut note = |result: Result<(), String>| problems.extend(result.err());
    if let Some(name) = line.get("maru.hostname") {
        note(pid1::set_hostname(name).map_err(|error| format!("cannot set the host name: {error}")));
        let hosts = format!("127.0.0.1 localhost {name}\n");
        note(std::fs::write("/etc/hosts", hosts).map_err(|error| format!("cannot write /etc/hosts: {error}")));
    }
    note(pid1::bring_up("lo", None).map_err(describe));
    for description in line.all("maru.nic") {
        note(set_up(description));
    }
    if let Some(gateway) = line.get("maru.gateway") {
        note(match gateway.parse() {
            Ok(gateway) => pid1::add_default_route(gateway).map_err(describe),
            Err(_) => Err(format!("maru.gateway={gateway}: not an IPv4 address")),
        });
    }
    if let Some(server) = line.get("maru.nameserver") {
        let text = format!("nameserver {server}\n");
        note(std::fs::write("/etc/resolv.conf", text).map_err(|error| format!("cannot write /etc/resolv.conf: {error}")));
    }
    problems
}

fn set_up(description: &str) -> Result<(), String> {
    let mut parts = description.splitn(3, ',');
    let (Some(name), Some(mac)) = (parts.next(), parts.next()) else {
        return Err(format!("maru.nic={description}: should be NAME,MAC[,ADDRESS/PREFIX|,dhcp]"));
    };
    let nic = find(mac).ok_or_else(|| format!("there is no NIC with address {mac} for {name}"))?;
    pid1::bring_up(&nic.name, Some(name)).map_err(describe)?;
    match parts.next() {
        // A service asks for it, so that the start does not wait for a server.
        Some("dhcp") | None => Ok(()),
        Some(address) => {
            let address: Ipv4Net = address.parse().map_err(describe)?;
            pid1::set_address(name, address).map_err(describe)
        }
    }
}

/// Keeps a leased address on a NIC, for ever.
pub fn lease(nic: &str) -> std::io::Result<()> {
    let wrong = || std::io::Error::other(format!("there is no NIC {nic}"));
    let text = pid1::nics().into_iter().find(|known| known.name == nic).ok_or_else(wrong)?.mac;
    let bytes: Vec<u8> = text.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let mac: [u8; 6] = bytes.try_into().map_err(|_| wrong())?;
    let mut lease = None;
    loop {
        match dhcp::ask(nic, mac, lease.as_ref()) {
            Ok(new) => {
                dhcp::apply(nic, &new).map_err(|error| std::io::Error::other(describe(error)))?;
                println!("maru: {nic} has {}/{} for {} s", new.net.address, new.net.prefix, new.time.as_secs());
                // RFC 2131 §4.4.5: renew after half the time.
                std::thread::sleep(new.time / 2);
                lease = Some(new);
            }
            Err(error) => {
                if lease.take().is_none() {
                    println!("maru: {nic}: {error}");
                }
                std::thread::sleep(PATIENCE);
            }
        }
    }
}

/// Drivers find their devices in the background; a NIC can appear a moment after its module was loaded.
fn find(mac: &str) -> Option<Nic> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = pid1::nics().into_iter().find(|nic| nic.mac.eq_ignore_ascii_case(mac));
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn describe(error: pid1::NetError) -> String {
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
