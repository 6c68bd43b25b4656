//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use lexopt::prelude::*;

const HELP: &str = "\
bench-cluster: how long a cluster's decisions take, and what they cost its store

  --hosts N      hosts (128)
  --vms N        VMs (20000)
  --lose N       hosts that are lost at once (4)
  --drain N      hosts that are drained (8)
  --only PART    core: a node without etcd; etcd: a node for each host, and three members of etcd (both)
  --watches N    watches of etcd, each with a copy of it, that the hosts share: each host of a cluster has its own, and all of
                 these are in this one program (16)
  --start-ms N   how long a VM takes to start (500)
  --save-ms N    how long a VM takes to be saved (500)
  --dir DIR      where the members of etcd keep their data (a new directory in the one for temporary files)
";

/// Which measurements are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    Both,
    Core,
    Etcd,
}

/// What is measured.
pub struct Options {
    pub hosts: usize,
    pub vms: usize,
    pub lose: usize,
    pub drain: usize,
    pub parts: Parts,
    pub watches: usize,
    pub start: Duration,
    pub save: Duration,
    pub directory: PathBuf,
}

/// Reads the command line; `None` if nothing but help was wanted.
pub fn parse() -> anyhow::Result<Option<Options>> {
    let mut options = Options {
        hosts: 128,
        vms: 20_000,
        lose: 4,
        drain: 8,
        parts: Parts::Both,
        watches: 16,
        start: Duration::from_millis(500),
        save: Duration::from_millis(500),
        directory: std::env::temp_dir(),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("hosts") => options.hosts = parser.value()?.parse()?,
            Long("vms") => options.vms = parser.value()?.parse()?,
            Long("lose") => options.lose = parser.value()?.parse()?,
            Long("drain") => options.drain = parser.value()?.parse()?,
            Long("only") => {
                options.parts = parser.value()?.parse_with(|text| match text {
                    "core" => Ok(Parts::Core),
                    "etcd" => Ok(Parts::Etcd),
                    _ => Err("core or etcd"),
                })?;
            }
            Long("watches") => options.watches = parser.value()?.parse()?,
            Long("start-ms") => options.start = Duration::from_millis(parser.value()?.parse()?),
            Long("save-ms") => options.save = Duration::from_millis(parser.value()?.parse()?),
            Long("dir") => options.directory = parser.value()?.into(),
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    ensure!(options.lose + options.drain < options.hosts, "there have to be more hosts than are lost and drained");
    ensure!((1..=options.hosts).contains(&options.watches), "there are between one watch and one for each host");
    Ok(Some(options))
}
