//! `maru host init`: makes a machine a host.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::output::{Output, print};
use crate::remote::{Local, RemoteError, fields};

/// How long `marud` may take to answer after it was started.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(100);

const AFTER_HELP: &str = "\
Checks the machine, has systemd start marud now and at each boot, waits until it answers, and prints what clients need. Doing it again
changes nothing. Without systemd, start marud yourself before.

For clients that know the host by yet another name or address, give marud --name NAME, in /etc/default/marud, and have it started anew
(systemctl restart marud): so, too, when the host's address has changed.

EXAMPLES
  On the host, as root:
    maru host init

  Elsewhere, with tls/ca.pem of the host and a token in files:
    maru context add h1 --server https://192.0.2.10:8420 --ca ca.pem --token-file h1.token";

/// `maru host init`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct InitArgs {
    /// Go on also if VMs do not run on this machine
    #[arg(long)]
    force: bool,
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// What clients need.
#[derive(serde::Serialize)]
struct Ready {
    address: String,
    address_by_name: String,
    certificate_authority: String,
    fingerprint_sha256: String,
    admin_token: String,
    admin_token_file: String,
}

/// Does it.
pub fn run(args: &InitArgs) -> anyhow::Result<()> {
    // What is a host already has been checked.
    if !args.force && ask().is_err() {
        let report = check::run(&check::Options::default());
        if report.exit_code() != 0 {
            bail!("{}\n`maru host check` says more; --force goes on nevertheless", report.summary);
        }
    }
    if has_systemd() {
        let started = Command::new("systemctl").args(["enable", "--now", "--quiet", "marud.service"]).status();
        if !started.context("cannot run systemctl")?.success() {
            bail!(
                "systemd cannot start marud: `systemctl status marud` says why. Is the package maru installed, and are you root?"
            );
        }
    }
    let host = wait()?;
    let local = Local::find()?;
    let port = local.address.port();
    let ready = Ready {
        address: address(&outward(&host.names).unwrap_or_else(|| host.name.clone()), port),
        address_by_name: address(&host.name, port),
        fingerprint_sha256: api::client::fingerprint(&fs::read(&local.authority)?)
            .context("the certificate authority is none")?,
        certificate_authority: local.authority.display().to_string(),
        admin_token: local.secret,
        admin_token_file: local.token.display().to_string(),
    };
    Ok(print(&args.output.render(&ready, || {
        fields(&[
            ("address", ready.address.clone()),
            ("by name", ready.address_by_name.clone()),
            ("authority", ready.certificate_authority.clone()),
            ("SHA-256", ready.fingerprint_sha256.clone()),
            ("admin token", ready.admin_token.clone()),
            ("kept in", ready.admin_token_file.clone()),
        ])
    })?)?)
}

fn address(name: &str, port: u16) -> String {
    format!("https://{name}:{port}")
}

/// The first of a host's names that is an address which others may reach, as it is written in a URL: one of IPv4, if there is one.
fn outward(names: &[String]) -> Option<String> {
    let addresses = names.iter().filter_map(|name| name.parse().ok()).filter(|address: &IpAddr| !address.is_loopback());
    addresses.min_by_key(IpAddr::is_ipv6).map(|address| match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    })
}

fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Asks the `marud` of this machine.
fn ask() -> Result<api::HostInfo, RemoteError> {
    Local::find().and_then(|local| Ok(local.client()?.get("/host")?))
}

/// Waits until it answers.
fn wait() -> anyhow::Result<api::HostInfo> {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(host) => return Ok(host),
            Err(_) if start.elapsed() < PATIENCE && has_systemd() => sleep(ASK_AGAIN),
            Err(error) => {
                return Err(error)
                    .context("marud is to be started, as root, by your init system: it ends no VM when it is ended");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_one_that_others_reach() {
        let of = |names: &[&str]| outward(&names.iter().map(|name| name.to_string()).collect::<Vec<_>>());
        assert_eq!(of(&["127.0.0.1", "2001:db8::7", "192.0.2.10", "::1", "h1"]).as_deref(), Some("192.0.2.10"));
        assert_eq!(of(&["2001:db8::7", "localhost"]).as_deref(), Some("[2001:db8::7]"));
        assert_eq!(of(&["127.0.0.1", "::1", "h1", "localhost"]), None);
    }
}
