//! A `maru-vmm` for tests, without a VM: it takes the monitor's options and speaks the control protocol.
//!
//! Words of the kernel's command line say what it does: `fake=fail` ends at once with an error; `fake=deaf` does not react to the power
//! button; `fake=stubborn` answers neither that nor a request to stop.

use std::fs;
use std::process::exit;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use serde_json::Value;
use vmm::config::VmConfig;
use vmm::control::{Connection, Event, EventKind, Failure, Listener, Message, Reply, Request, RunStatus, Status};

struct Machine {
    config: VmConfig,
    paused: bool,
    sequence: u64,
    subscribers: Vec<Arc<Connection>>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let index = arguments.iter().position(|argument| argument == name).unwrap_or_else(|| panic!("no {name}"));
        arguments[index + 1].clone()
    };
    let json = fs::read(value("--config")).expect("the configuration");
    let config = VmConfig::from_json(&json).expect("a configuration");
    if config.boot.command_line.contains("fake=fail") {
        eprintln!("maru-vmm: cannot open the kernel: it has no head");
        exit(1);
    }
    let listener = Listener::bind(value("--control").as_ref()).expect("the control socket");
    let machine = Arc::new(Mutex::new(Machine { config, paused: false, sequence: 0, subscribers: Vec::new() }));
    loop {
        let client = Arc::new(listener.accept().expect("a client"));
        let machine = machine.clone();
        thread::spawn(move || serve(&client, &machine));
    }
}

fn lock(machine: &Mutex<Machine>) -> MutexGuard<'_, Machine> {
    machine.lock().expect("no thread panicked")
}

fn serve(client: &Arc<Connection>, machine: &Mutex<Machine>) {
    while let Ok(Some((request, _))) = client.receive::<Request>() {
        let mut machine = lock(machine);
        let does = |word: &str| machine.config.boot.command_line.contains(word);
        let (deaf, stubborn) = (does("fake=deaf") || does("fake=stubborn"), does("fake=stubborn"));
        // A client that has gone needs no answer.
        let reply = |value: Value| drop(client.send(&Message::Reply(Reply::Ok(value)), &[]));
        match request {
            Request::Status => reply(serde_json::to_value(machine.status()).expect("plain")),
            Request::Subscribe => {
                machine.subscribers.push(client.clone());
                reply(Value::Null);
            }
            Request::Pause | Request::Resume => {
                machine.paused = request == Request::Pause;
                let event = if machine.paused { EventKind::Paused } else { EventKind::Running };
                machine.tell(event);
                reply(Value::Null);
            }
            Request::Reset => {
                machine.tell(EventKind::Reset);
                reply(Value::Null);
            }
            Request::PowerButton => {
                reply(Value::Null);
                if !deaf {
                    machine.tell(EventKind::Ended { reason: "the guest powered off".into() });
                    exit(0);
                }
            }
            Request::Stop if stubborn => {}
            Request::Stop => {
                reply(Value::Null);
                machine.tell(EventKind::Ended { reason: "stopped on request".into() });
                exit(0);
            }
            Request::SetDiskLimits { limits, .. } if limits.iops.is_some_and(|rate| rate.per_second.get() == 13) => {
                let failure = Failure { message: "that brings bad luck".into() };
                let _ = client.send(&Message::Reply(Reply::Error(failure)), &[]);
            }
            Request::SetDiskLimits { id, limits } => {
                machine.config.disks.iter_mut().filter(|disk| disk.id == id).for_each(|disk| disk.limits = limits);
                reply(Value::Null);
            }
            Request::SetNetLimits { id, limits } => {
                machine.config.nets.iter_mut().filter(|net| net.id == id).for_each(|net| net.limits = limits);
                reply(Value::Null);
            }
            Request::Config => reply(serde_json::to_value(&machine.config).expect("plain")),
            other => panic!("{other:?}"),
        }
    }
}

impl Machine {
    fn status(&self) -> Status {
        Status {
            name: self.config.name.clone(),
            pid: std::process::id(),
            state: if self.paused { RunStatus::Paused } else { RunStatus::Running },
            cpus: self.config.cpus.count,
            memory: self.config.memory.size,
            hotplug_memory: 0,
            balloon: 0,
            confined: false,
            devices: Vec::new(),
        }
    }

    fn tell(&mut self, kind: EventKind) {
        self.sequence += 1;
        let event = Message::Event(Event { sequence: self.sequence, kind });
        self.subscribers.retain(|client| client.send(&event, &[]).is_ok());
    }
}
