//! Why `maru vm run` fails before or beside the VM itself.

use std::io;
use std::path::PathBuf;

use vmm::config::ConfigError;
use vmm::state::StateError;

use crate::options::OptionError;

/// Why a VM could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An option.
    #[error("{option} '{text}'")]
    Option {
        /// Which one.
        option: &'static str,
        /// What was given.
        text: String,
        /// What is wrong with it.
        #[source]
        source: OptionError,
    },
    /// Options that do not go together.
    #[error("these options do not make a VM")]
    Config(#[from] ConfigError),
    /// `--restore` with the name of a device that the saved VM does not have.
    #[error("{option}: the saved VM has no {kind} '{id}', it has {has}")]
    NoSuchDevice {
        /// The option.
        option: &'static str,
        /// Disk or network card.
        kind: &'static str,
        /// The name.
        id: String,
        /// The names that there are.
        has: String,
    },
    /// The saved VM cannot be opened.
    #[error("cannot open the saved VM {}", .path.display())]
    OpenSaved {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The saved VM cannot be read.
    #[error("cannot restore {}", .path.display())]
    ReadSaved {
        /// The file.
        path: PathBuf,
        /// Why.
        source: StateError,
    },
    /// The saved configuration makes no sense.
    #[error("cannot restore {}: the configuration in it cannot be used", .path.display())]
    SavedConfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ConfigError,
    },
    /// There is no monitor.
    #[error(
        "there is no monitor: maru-vmm is neither beside {} nor on PATH; install it there, or set MARU_VMM to its path",
        .maru.display()
    )]
    NoMonitor {
        /// This program.
        maru: PathBuf,
    },
    /// The monitor does not start.
    #[error("cannot start the monitor {}", .program.display())]
    Spawn {
        /// The monitor.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something of the host.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl RunError {
    /// For `map_err`: `what` was tried.
    pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
        move |source| RunError::Host { what, source }
    }

    /// The exit status that says this: 2 for wrong usage, otherwise 1.
    pub fn exit_status(&self) -> u8 {
        match self {
            RunError::Option { .. } | RunError::Config(_) | RunError::NoSuchDevice { .. } => 2,
            _ => 1,
        }
    }
}
