//! From options to a VM's configuration.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::str::FromStr;

use vmm::config::{BootConfig, VmConfig};
use vmm::cpu::CpuConfig;
use vmm::launch::command_line;
use vmm::state::{Reader, StateError};

use super::args::RunArgs;
use super::error::RunError;
use crate::options::{DiskOption, DiskOverride, NetOption, NetOverride, OptionError, absolute, default_mac};

/// The newest version of a saved configuration that is read here.
const SAVED_CONFIG_VERSION: u32 = 1;

/// The configuration of a VM that boots `kernel`.
pub fn boot(args: &RunArgs, kernel: &Path) -> Result<VmConfig, RunError> {
    let console = args.console.into();
    let disks = parse_all::<DiskOption>("--disk", &args.disks)?;
    let nets = parse_all::<NetOption>("--net", &args.nets)?;
    let config = VmConfig {
        name: args.name.clone(),
        cpus: CpuConfig { features: args.cpu_features.clone().map(|names| names.into_iter().collect()), ..args.cpus.0.clone() },
        memory: args.memory.0.clone(),
        boot: BootConfig {
            kernel: absolute(kernel),
            initrd: args.initrd.as_deref().map(absolute),
            command_line: command_line(&args.cmdline, console),
        },
        disks: disks.into_iter().enumerate().map(|(index, disk)| disk.config(|| format!("disk{index}"))).collect(),
        nets: nets
            .into_iter()
            .enumerate()
            .map(|(index, net)| net.config(|| format!("net{index}"), || default_mac(&args.name, index)))
            .collect(),
        console,
        rng: !args.no_rng,
        balloon: args.balloon,
        guest_agent: false,
        vsock: args.vsock.as_ref().map(|vsock| vsock.0.clone()),
        on_reset: args.on_reset.into(),
    };
    config.check()?;
    Ok(config)
}

/// The configuration of the VM that was saved in `file`, with what is elsewhere on this host.
pub fn saved(args: &RunArgs, file: &Path) -> Result<VmConfig, RunError> {
    let disks = parse_all::<DiskOverride>("--disk", &args.disks)?;
    let nets = parse_all::<NetOverride>("--net", &args.nets)?;
    let mut config = read_saved(file)?;
    for change in disks {
        match config.disks.iter_mut().find(|disk| disk.id == change.id) {
            Some(disk) => disk.move_to(change.path),
            None => {
                let has = names(config.disks.iter().map(|disk| disk.id.as_str()));
                return Err(RunError::NoSuchDevice { option: "--disk", kind: "disk", id: change.id, has });
            }
        }
    }
    for change in nets {
        match config.nets.iter_mut().find(|net| net.id == change.id) {
            Some(net) => net.backend = change.backend,
            None => {
                let has = names(config.nets.iter().map(|net| net.id.as_str()));
                return Err(RunError::NoSuchDevice { option: "--net", kind: "network card", id: change.id, has });
            }
        }
    }
    Ok(config)
}

fn read_saved(path: &Path) -> Result<VmConfig, RunError> {
    let file = File::open(path).map_err(|source| RunError::OpenSaved { path: path.into(), source })?;
    let read = || {
        let section = Reader::new(BufReader::new(file))?.next_section()?;
        let missing = || StateError::malformed("config", "it is not the first in the file");
        let section = section.filter(|section| section.kind == "config").ok_or_else(missing)?;
        section.check_version(SAVED_CONFIG_VERSION)?;
        Ok(section.payload)
    };
    let json = read().map_err(|source| RunError::ReadSaved { path: path.into(), source })?;
    VmConfig::from_json(&json).map_err(|source| RunError::SavedConfig { path: path.into(), source })
}

fn parse_all<T: FromStr<Err = OptionError>>(option: &'static str, texts: &[String]) -> Result<Vec<T>, RunError> {
    let parse = |text: &String| text.parse().map_err(|source| RunError::Option { option, text: text.clone(), source });
    texts.iter().map(parse).collect()
}

fn names<'a>(ids: impl Iterator<Item = &'a str>) -> String {
    let list: Vec<&str> = ids.collect();
    if list.is_empty() { "none".into() } else { list.join(", ") }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
