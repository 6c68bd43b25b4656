//! The console device and the handle that the host's side has on it.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use prost::Message;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::control::{OpenListener, Port, PortState};
use super::host::{ConsoleInput, ConsoleOutput, PENDING_INPUT_BYTES};
use super::queue::ConsoleQueues;
use super::state::ConsoleState;
use crate::devices::ring::{ConfigSignal, IdleQueues, read_config, take_rings};
use crate::sandbox::ThreadKind;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, DeviceType, RestoreError, VirtioDevice};

/// The driver may ask for the terminal's size (`VIRTIO_CONSOLE_F_SIZE`).
const FEATURE_SIZE: u64 = 1 << 0;
/// The driver may learn the port's name, and tell when a program has opened it (`VIRTIO_CONSOLE_F_MULTIPORT`).
const FEATURE_MULTIPORT: u64 = 1 << 1;
/// A driver without queues, early at boot or in a panic, may print through the configuration space
/// (`VIRTIO_CONSOLE_F_EMERG_WRITE`).
const FEATURE_EMERGENCY_WRITE: u64 = 1 << 2;

/// Offset of `emerg_wr` in the configuration space.
const EMERGENCY_WRITE: u64 = 8;

const QUEUE_SIZE: u16 = 256;

/// What device, worker and handle have in common.
pub(super) struct Shared {
    input: Mutex<VecDeque<u8>>,
    /// Signalled when there is new input.
    pub wake: EventFd,
    pub output: ConsoleOutput,
    /// Bytes of absurdly long buffers that were not printed.
    pub dropped: AtomicU64,
    size: Mutex<(u16, u16)>,
    config: ConfigSignal,
    /// If it is no console, but a port for a program of the guest.
    pub port: Option<Port>,
}

impl Shared {
    pub fn input(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.input.lock().expect("console input lock")
    }

    fn size(&self) -> MutexGuard<'_, (u16, u16)> {
        self.size.lock().expect("console size lock")
    }
}

/// A virtio console with one port: for people, or one that has a name, for a program of the guest.
pub struct Console {
    shared: Arc<Shared>,
    active: Option<(Worker<ConsoleQueues>, IdleQueues)>,
}

/// The host's hand on a console. Clones are the same console.
#[derive(Clone)]
pub struct ConsoleHandle {
    shared: Arc<Shared>,
}

impl Console {
    /// A console that prints to `output`. Fails when the process is out of descriptors.
    pub fn new(output: ConsoleOutput) -> io::Result<Console> {
        Console::make(output, None)
    }

    /// A port for a program of the guest, which finds it by `name`. `listener` is told when the program opens or closes it.
    pub fn with_name(name: &'static str, output: ConsoleOutput, listener: OpenListener) -> io::Result<Console> {
        Console::make(output, Some(Port::new(name, listener)))
    }

    fn make(output: ConsoleOutput, port: Option<Port>) -> io::Result<Console> {
        let shared = Shared {
            input: Mutex::default(),
            wake: EventFd::new(EFD_NONBLOCK)?,
            output,
            dropped: AtomicU64::new(0),
            size: Mutex::new((80, 25)),
            config: ConfigSignal::default(),
            port,
        };
        Ok(Console { shared: Arc::new(shared), active: None })
    }

    /// A handle for input and terminal size.
    pub fn handle(&self) -> ConsoleHandle {
        ConsoleHandle { shared: self.shared.clone() }
    }
}

impl ConsoleHandle {
    /// Tells the guest that the terminal has another size.
    pub fn set_size(&self, columns: u16, rows: u16) {
        let mut size = self.shared.size();
        if *size != (columns, rows) {
            *size = (columns, rows);
            drop(size);
            self.shared.config.changed();
        }
    }

    /// Whether a program of the guest has opened the port, if it is one for programs.
    pub fn is_open(&self) -> bool {
        self.shared.port.as_ref().is_some_and(|port| port.state().is_open)
    }

    /// Bytes that the guest meant to print in buffers longer than a console takes at once, 1 MiB, and that were dropped.
    pub fn dropped_bytes(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl ConsoleInput for ConsoleHandle {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        // What is said to a program that is not there is not kept for the next one.
        if self.shared.port.is_some() && !self.is_open() {
            return bytes.len();
        }
        let mut input = self.shared.input();
        let taken = bytes.len().min(PENDING_INPUT_BYTES - input.len());
        input.extend(&bytes[..taken]);
        drop(input);
        // A full eventfd wakes just as well.
        let _ = self.shared.wake.write(1);
        taken
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; if self.shared.port.is_some() { 4 } else { 2 }]
    }

    fn device_features(&self) -> u64 {
        if self.shared.port.is_some() { FEATURE_MULTIPORT } else { FEATURE_SIZE | FEATURE_EMERGENCY_WRITE }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let (columns, rows) = *self.shared.size();
        let mut config = [0; 12];
        config[0..2].copy_from_slice(&columns.to_le_bytes());
        config[2..4].copy_from_slice(&rows.to_le_bytes());
        config[4..8].copy_from_slice(&1u32.to_le_bytes());
        read_config(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (EMERGENCY_WRITE, Some(byte), None) = (offset, data.first(), &self.shared.port) {
            self.shared.output.put(&[*byte]);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let interrupt = activation.interrupt.clone();
        // A driver that knows one port only does without the control queues.
        let has_control = activation.features & self.device_features() & FEATURE_MULTIPORT != 0;
        let (rings, idle) = take_rings(activation, if has_control { &[0, 1, 2, 3] } else { &[0, 1] })?;
        let mut rings = rings.into_iter();
        let (Some(receive), Some(transmit)) = (rings.next(), rings.next()) else { return Err(ActivateError::MissingQueue(0)) };
        let queues = ConsoleQueues { receive, transmit, control: rings.next().zip(rings.next()), shared: self.shared.clone() };
        let worker = Worker::spawn(ThreadKind::Misc, "console".into(), queues)
            .map_err(|source| ActivateError::Host { what: "the console's thread could not be started".into(), source })?;
        self.active = Some((worker, idle));
        self.shared.config.attach(interrupt);
        Ok(())
    }

    fn quiesce(&mut self) -> Vec<(u16, Queue)> {
        self.shared.config.detach();
        let Some((worker, mut queues)) = self.active.take() else { return Vec::new() };
        if let Some(stopped) = worker.stop() {
            queues.extend([stopped.receive.into_queue(), stopped.transmit.into_queue()]);
            queues.extend(stopped.control.into_iter().flat_map(|(to, from)| [to.into_queue(), from.into_queue()]));
        }
        queues.sort_by_key(|(index, _)| *index);
        queues
    }

    fn reset(&mut self) {
        if let Some(port) = &self.shared.port {
            port.set(PortState::default());
            self.shared.input().clear();
        }
    }

    fn save(&self) -> Vec<u8> {
        let (columns, rows) = *self.shared.size();
        let pending_input = self.shared.input().iter().copied().collect();
        let port = self.shared.port.as_ref().map(|port| *port.state()).unwrap_or_default();
        ConsoleState {
            pending_input,
            columns: columns.into(),
            rows: rows.into(),
            pending_control: port.pending,
            port_is_open: port.is_open,
        }
        .encode_to_vec()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let malformed = |reason: String| RestoreError::Malformed { device: "console", reason };
        let state = ConsoleState::decode(state).map_err(|error| malformed(error.to_string()))?;
        if state.pending_input.len() > PENDING_INPUT_BYTES {
            return Err(malformed("more pending input than is ever kept".into()));
        }
        let size = |value| u16::try_from(value).map_err(|_| malformed("the terminal is too large".into()));
        let port = PortState::from_saved(state.pending_control, state.port_is_open);
        let port = port.ok_or_else(|| malformed("there is an unknown control message".into()))?;
        *self.shared.size() = (size(state.columns)?, size(state.rows)?);
        if let Some(own) = &self.shared.port {
            own.set(port);
        }
        *self.shared.input() = state.pending_input.into();
        Ok(())
    }
}
