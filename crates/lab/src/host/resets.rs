//! A host that resets itself gets a new QEMU.
//!
//! A processor that QEMU emulates keeps the clock's offset of a nested VM over a reset, if that VM was running: the host's clock then runs several
//! times too fast. A machine that was switched off and on has no such past.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use super::machine::State;
use super::power;
use super::qemu::HostSpec;
use super::qmp::Events;
use crate::cable::Cable;

/// Between two tries to reach a QEMU that has just been started.
const AGAIN: Duration = Duration::from_millis(10);

/// What a host is made of when it gets power.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub spec: HostSpec,
    pub cables: Vec<Arc<Cable>>,
    pub state: Weak<Mutex<State>>,
}

/// Watches the QEMU with this process number until it ends, or has reset the host.
pub(super) fn watch(parts: Parts, process: u32) -> io::Result<()> {
    thread::Builder::new().name("resets".into()).spawn(move || {
        let with_it = |then: &dyn Fn(&mut State) -> io::Result<()>| -> Option<io::Result<()>> {
            let state = parts.state.upgrade()?;
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.runs(process).then(|| then(&mut state))
        };
        let events = loop {
            match Events::connect(&parts.spec.events_socket()) {
                Ok(events) => break events,
                Err(_) if with_it(&|_| Ok(())).is_none() => return,
                Err(_) => thread::sleep(AGAIN),
            }
        };
        if events.of_guest("RESET") {
            let started = with_it(&|state| {
                state.kill();
                power::start(&parts, state)
            });
            if let Some(Err(error)) = started {
                // It stays off, as its user sees.
                eprintln!("{} was reset and cannot be started again: {error}", parts.spec.name);
            }
        }
    })?;
    Ok(())
}
