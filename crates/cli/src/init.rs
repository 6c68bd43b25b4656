//! `maru host init`: makes a machine a host.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::output::{Output, print};
use crate::remote::{Local, fields};

/// How long `marud` may take to answer after it was started.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(100);

const AFTER_HELP: &str = "\
Checks the machine, has systemd start marud now and at each boot, waits until it answers, and prints what clients need. Doing it again
changes nothing. Without systemd, start marud yourself before.

EXAMPLES
  On the host, as root:
    maru host init

  Elsewhere, with tls/ca.pem of the host and a token in files:
    maru context add h1 --server https://h1:8420 --ca ca.pem --token-file h1.token";

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
    certificate_authority: String,
    fingerprint_sha256: String,
    admin_token: String,
    admin_token_file: String,
}

/// Does it.
pub fn run(args: &InitArgs) -> anyhow::Result<()> {
    let report = check::run(&check::Options::default());
    if report.exit_code() != 0 && !args.force {
        bail!("VMs do not run on this machine: `maru host check` says why. --force goes on nevertheless");
    }
    if Path::new("/run/systemd/system").is_dir() {
        let started = Command::new("systemctl").args(["enable", "--now", "--quiet", "marud.service"]).status();
        if !started.context("cannot run systemctl")?.success() {
            bail!(
                "systemd cannot start marud: `systemctl status marud` says why. Is the package maru installed, and are you root?"
            );
        }
    }
    let host = wait()?;
    let local = Local::find()?;
    let ready = Ready {
        address: format!("https://{}:{}", host.name, api::DEFAULT_PORT),
        fingerprint_sha256: api::client::fingerprint(&fs::read(&local.authority)?)
            .context("the certificate authority is none")?,
        certificate_authority: local.authority.display().to_string(),
        admin_token: local.secret,
        admin_token_file: local.token.display().to_string(),
    };
    Ok(print(&args.output.render(&ready, || {
        fields(&[
            ("address", ready.address.clone()),
            ("authority", ready.certificate_authority.clone()),
            ("SHA-256", ready.fingerprint_sha256.clone()),
            ("admin token", ready.admin_token.clone()),
            ("kept in", ready.admin_token_file.clone()),
        ])
    })?)?)
}

/// Waits until the `marud` of this machine answers.
fn wait() -> anyhow::Result<api::HostInfo> {
    let start = Instant::now();
    loop {
        let asked = Local::find().and_then(|local| Ok(local.client()?.get("/host")?));
        match asked {
            Ok(host) => return Ok(host),
            Err(_) if start.elapsed() < PATIENCE && Path::new("/run/systemd/system").is_dir() => sleep(ASK_AGAIN),
            Err(error) => {
                return Err(error)
                    .context("marud is to be started, as root, by your init system: it ends no VM when it is ended");
            }
        }
    }
}
