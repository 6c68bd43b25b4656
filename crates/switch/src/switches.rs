//! The switches of the process by name, and what may be connected to each.

use std::collections::BTreeMap;

use crate::control::{Backend, DEFAULT_SWITCH, SwitchConfig, SwitchKind};
use crate::pipeline::SwitchNumber;

/// The most switches of a process.
const MAX_SWITCHES: usize = 1024;

/// Why a switch could not be had or changed. Nothing changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// A name that is there already.
    #[error("there is a switch '{0}' already: choose another name, or remove it first")]
    Exists(String),
    /// A name that nothing has.
    #[error("there is no switch '{0}'")]
    None(String),
    /// A name that is none.
    #[error("a switch needs a name of 1 to 64 bytes")]
    Name,
    /// As many as there may be.
    #[error("there are {MAX_SWITCHES} switches, which is as many as there may be: remove one")]
    TooMany,
    /// It is in use.
    #[error("switch '{name}' has {ports} ports: remove them first")]
    HasPorts {
        /// The switch.
        name: String,
        /// How many.
        ports: usize,
    },
    /// The default one.
    #[error("switch '{DEFAULT_SWITCH}' is always there")]
    Default,
    /// A port that is not for such a switch.
    #[error("switch '{name}' is {kind}: take another switch for this port")]
    Kind {
        /// The switch.
        name: String,
        /// Its kind, and what that means.
        kind: &'static str,
    },
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// As it was asked for.
    pub config: SwitchConfig,
    /// The number of the worker that moves its frames.
    pub worker: usize,
}

/// All of them.
#[derive(Debug)]
pub struct Switches(BTreeMap<SwitchNumber, Named>);

impl Default for Switches {
    fn default() -> Switches {
        let config = SwitchConfig { name: DEFAULT_SWITCH.into(), kind: SwitchKind::External };
        Switches([(0, Named { config, worker: 0 })].into())
    }
}

impl Switches {
    /// Adds one, for the worker that has the fewest of so many.
    pub fn add(&mut self, switch: SwitchConfig, workers: usize) -> Result<(), SwitchError> {
        if !(1..=64).contains(&switch.name.len()) {
            return Err(SwitchError::Name);
        }
        if self.find(&switch.name).is_ok() {
            return Err(SwitchError::Exists(switch.name));
        }
        let mut numbers = 0..MAX_SWITCHES as SwitchNumber;
        let number = numbers.find(|number| !self.0.contains_key(number)).ok_or(SwitchError::TooMany)?;
        let load = |worker: &usize| self.0.values().filter(|switch| switch.worker == *worker).count();
        let worker = (0..workers).min_by_key(load).unwrap_or(0);
        self.0.insert(number, Named { config: switch, worker });
        Ok(())
    }

    /// Removes one that has so many ports, which must be none.
    pub fn remove(&mut self, name: &str, ports: usize) -> Result<(), SwitchError> {
        let (number, _) = self.find(name)?;
        if name == DEFAULT_SWITCH {
            return Err(SwitchError::Default);
        }
        if ports > 0 {
            return Err(SwitchError::HasPorts { name: name.into(), ports });
        }
        self.0.remove(&number);
        Ok(())
    }

    /// The number of the switch and of its worker, if a port with this behind it may be one of its.
    pub fn admit(&self, name: &str, backend: &Backend) -> Result<(SwitchNumber, usize), SwitchError> {
        let (number, switch) = self.find(name)?;
        let refused = |kind| Err(SwitchError::Kind { name: name.into(), kind });
        match (switch.config.kind, backend) {
            (SwitchKind::External, _) | (_, Backend::VhostUser { .. }) | (SwitchKind::Internal, Backend::Tap(_)) => {
                Ok((number, switch.worker))
            }
            (SwitchKind::Internal, _) => refused("internal: its ports are VMs and the host"),
            (SwitchKind::Private, _) => refused("private: its ports are VMs"),
        }
    }

    fn find(&self, name: &str) -> Result<(SwitchNumber, &Named), SwitchError> {
        self.iter().find(|(_, switch)| switch.config.name == name).ok_or_else(|| SwitchError::None(name.into()))
    }

    /// All of them, by number.
    pub fn iter(&self) -> impl Iterator<Item = (SwitchNumber, &Named)> {
        self.0.iter().map(|(number, switch)| (*number, switch))
    }

    /// Those that were added.
    pub fn added(&self) -> Vec<SwitchConfig> {
        self.0.values().map(|switch| &switch.config).filter(|config| config.name != DEFAULT_SWITCH).cloned().collect()
    }
}
