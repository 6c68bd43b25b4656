//! A `maru-vmm` for tests, without a VM: it takes the monitor's options and speaks the control protocol.
//!
//! Words of the kernel's command line say what it does: `fake=fail` ends at once with an error; `fake=deaf` does not react to the power
//! button; `fake=stubborn` answers neither that nor a request to stop; `fake=unsavable` cannot be saved;
//! `fake=keeps` gives no device back, and writes to its first disk that it was asked. A limit of 13 operations is refused;
//! with one of 14, there is no space.
//!
//! Network cards on a switch connect to it, and connect again when it comes back; no frame passes.
//!
//! Its guest's memory is a number, which grows when the guest goes on after it was restored, and is then appended to the first disk: a guest
//! that went on twice from one state has written the same number twice.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use disk::Format;
use disk::tool::{self, AnyFormat, Child, Job, RebaseContent};
use serde_json::Value;
use vmm::config::{DiskConfig, NetBackend, NetConfig, VmConfig};
use vmm::control::{
    Connection, DeviceStatus, Event, EventKind, Failure, Listener, Message, Reply, Request, RunStatus, SavedReport, Status,
};

struct Machine {
    config: VmConfig,
    paused: bool,
    hotplug_memory: u64,
    balloon: u64,
    restored: bool,
    memory: u64,
    sequence: u64,
    /// How often it was looked at: each time, its disks have done one write more.
    looks: u64,
    short_of_space: Option<String>,
    /// Connections of its network cards to their switch, by their ids.
    cables: HashMap<String, UnixStream>,
    subscribers: Vec<Arc<Connection>>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let find = |name: &str| arguments.iter().position(|argument| argument == name);
    let value = |name: &str| arguments[find(name).unwrap_or_else(|| panic!("no {name}")) + 1].clone();
    let json = fs::read(value("--config")).expect("the configuration");
    let config = VmConfig::from_json(&json).expect("a configuration");
    if config.boot.command_line.contains("fake=fail") {
        eprintln!("maru-vmm: cannot open the kernel: it has no head");
        exit(1);
    }
    let listener = Listener::bind(value("--control").as_ref()).expect("the control socket");
    let restored = find("--restore").is_some();
    let memory =
        if restored { fs::read_to_string(value("--restore")).expect("a saved VM").parse().expect("all of it") } else { born() };
    let paused = find("--paused").is_some();
    let machine = Machine {
        config,
        paused,
        restored,
        memory,
        hotplug_memory: 0,
        balloon: 0,
        sequence: 0,
        looks: 0,
        short_of_space: None,
        cables: HashMap::new(),
        subscribers: Vec::new(),
    };
    let nets = machine.config.nets.clone();
    let machine = Arc::new(Mutex::new(machine));
    for net in nets {
        if let Err(reason) = plug_in(&machine, &net) {
            eprintln!("maru-vmm: {reason}");
            exit(1);
        }
    }
    loop {
        let client = Arc::new(listener.accept().expect("a client"));
        let machine = machine.clone();
        thread::spawn(move || serve(&client, &machine));
    }
}

/// A number that no other guest begins with.
fn born() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_nanos() as u64
}

fn lock(machine: &Mutex<Machine>) -> MutexGuard<'_, Machine> {
    machine.lock().expect("no thread panicked")
}

/// Connects a network card to its switch, if it is on one.
fn connect(net: &NetConfig) -> Result<Option<UnixStream>, String> {
    let NetBackend::VhostUser(socket) = &net.backend else { return Ok(None) };
    UnixStream::connect(socket)
        .map(Some)
        .map_err(|error| format!("cannot connect to the switch at {}: {error}", socket.display()))
}

fn plug_in(machine: &Arc<Mutex<Machine>>, net: &NetConfig) -> Result<(), String> {
    let cable = connect(net)?;
    keep_plugged(machine.clone(), &mut lock(machine), net, cable);
    Ok(())
}

/// Keeps a network card connected, also when the switch comes back, until the card is removed.
fn keep_plugged(machine: Arc<Mutex<Machine>>, now: &mut Machine, net: &NetConfig, cable: Option<UnixStream>) {
    let Some(mut cable) = cable else { return };
    now.cables.insert(net.id.clone(), cable.try_clone().expect("a descriptor"));
    let net = net.clone();
    thread::spawn(move || {
        loop {
            // The switch says nothing, and then it is gone.
            let _ = cable.read(&mut [0; 64]);
            loop {
                let mut machine = lock(&machine);
                if !machine.cables.contains_key(&net.id) {
                    return;
                }
                if let Ok(Some(again)) = connect(&net) {
                    machine.cables.insert(net.id.clone(), again.try_clone().expect("a descriptor"));
                    cable = again;
                    break;
                }
                drop(machine);
                thread::sleep(Duration::from_millis(5));
            }
        }
    });
}

fn serve(client: &Arc<Connection>, machine: &Arc<Mutex<Machine>>) {
    let machine_of_client = machine;
    while let Ok(Some((request, mut fds))) = client.receive::<Request>() {
        let mut machine = lock(machine);
        let does = |word: &str| machine.config.boot.command_line.contains(word);
        let (deaf, stubborn) = (does("fake=deaf") || does("fake=stubborn"), does("fake=stubborn"));
        // A client that has gone needs no answer.
        let reply = |value: Value| drop(client.send(&Message::Reply(Reply::Ok(value)), &[]));
        match request {
            Request::Status => {
                machine.looks += 1;
                reply(serde_json::to_value(machine.status()).expect("plain"));
            }
            Request::Subscribe => {
                machine.subscribers.push(client.clone());
                reply(Value::Null);
            }
            Request::Pause | Request::Resume => {
                machine.short_of_space = None;
                machine.paused = request == Request::Pause;
                if !machine.paused && std::mem::take(&mut machine.restored) {
                    machine.go_on();
                }
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
                    machine.last_words();
                    machine.tell(EventKind::Ended { reason: "the guest powered off".into() });
                    exit(0);
                }
            }
            Request::Save if machine.config.boot.command_line.contains("fake=unsavable") => {
                machine.paused = true;
                let failure = Failure { message: "no space is left".into() };
                drop(client.send(&Message::Reply(Reply::Error(failure)), &[]));
            }
            Request::Save => {
                machine.paused = true;
                reply(serde_json::to_value(machine.save(fds)).expect("plain"));
            }
            Request::AddLayers { layers } => {
                assert!(machine.paused && layers.len() == fds.len());
                for layer in layers {
                    machine.disk(&layer.id).path = layer.path;
                }
                reply(Value::Null);
            }
            Request::ReplaceParents { id, parents } => {
                assert_eq!(parents.len(), fds.len());
                let path = machine.disk(&id).path.clone();
                tool::rebase(&path, Format::Vhdx, &parents[0], RebaseContent::Trust, &Job::default()).expect("a parent");
                reply(Value::Null);
            }
            Request::MergeLeaf { id, .. } => {
                let disk = machine.disk(&id);
                let parent = chain(&disk.path).remove(1);
                tool::merge(&disk.path, Format::Vhdx, Some(&parent), Child::Keep, &Job::default()).expect("a merge");
                disk.path = parent;
                reply(Value::Null);
            }
            Request::Stop if stubborn => {}
            Request::Stop => {
                reply(Value::Null);
                machine.last_words();
                machine.tell(EventKind::Ended { reason: "stopped on request".into() });
                exit(0);
            }
            Request::Console => {
                let socket = UnixStream::from(fds.remove(0));
                thread::spawn(move || console(socket));
                reply(Value::Null);
            }
            Request::GuestAgent => reply(serde_json::json!({"open": false})),
            Request::Config => reply(serde_json::to_value(&machine.config).expect("plain")),
            Request::AddDisk { disk, parents } => {
                assert_eq!(fds.len(), parents.len() + 1);
                machine.config.disks.push(disk);
                reply(Value::Null);
            }
            Request::AddNet { net } => {
                let plugged = connect(&net);
                match plugged {
                    Ok(cable) => {
                        keep_plugged(machine_of_client.clone(), &mut machine, &net, cable);
                        machine.config.nets.push(net);
                        reply(Value::Null);
                    }
                    Err(message) => drop(client.send(&Message::Reply(Reply::Error(Failure { message })), &[])),
                }
            }
            Request::Remove { id } => {
                reply(Value::Null);
                if does("fake=keeps") {
                    machine.write_to_disk("asked");
                } else {
                    machine.config.disks.retain(|disk| disk.id != id);
                    machine.config.nets.retain(|net| net.id != id);
                    if let Some(cable) = machine.cables.remove(&id) {
                        cable.shutdown(Shutdown::Both).expect("a connection");
                    }
                    machine.tell(EventKind::DeviceRemoved { id });
                }
            }
            Request::SetCpus { count } => {
                machine.config.cpus.count = count;
                reply(Value::Null);
            }
            Request::SetHotplugMemory { bytes } => {
                machine.hotplug_memory = bytes;
                reply(Value::Null);
            }
            Request::SetBalloon { bytes } => {
                machine.balloon = bytes;
                reply(Value::Null);
            }
            Request::SetLink { .. } => reply(Value::Null),
            Request::ResizeDisk { bytes: 0..1000, .. } => {
                let failure = Failure { message: "it cannot shrink; ask for more".into() };
                drop(client.send(&Message::Reply(Reply::Error(failure)), &[]));
            }
            Request::ResizeDisk { .. } => reply(Value::Null),
            Request::SetDiskLimits { limits, .. } if limits.iops.is_some_and(|rate| rate.per_second.get() == 13) => {
                let failure = Failure { message: "that brings bad luck".into() };
                let _ = client.send(&Message::Reply(Reply::Error(failure)), &[]);
            }
            Request::SetDiskLimits { id, limits } if limits.iops.is_some_and(|rate| rate.per_second.get() == 14) => {
                reply(Value::Null);
                machine.paused = true;
                machine.short_of_space = Some(id.clone());
                machine.tell(EventKind::Paused);
                machine.tell(EventKind::DiskFailed { id, reason: "no space is left".into() });
            }
            Request::SetDiskLimits { id, limits } => {
                machine.config.disks.iter_mut().filter(|disk| disk.id == id).for_each(|disk| disk.limits = limits);
                reply(Value::Null);
            }
            Request::SetNetLimits { id, limits } => {
                machine.config.nets.iter_mut().filter(|net| net.id == id).for_each(|net| net.limits = limits);
                reply(Value::Null);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Says hello, and what is typed.
fn console(mut socket: UnixStream) {
    // Who does not listen misses it.
    let _ = writeln!(socket, "process {} says hello", std::process::id());
    let mut typed = [0; 1024];
    while let Ok(length @ 1..) = socket.read(&mut typed) {
        if socket.write_all(&typed[..length].to_ascii_uppercase()).is_err() {
            return;
        }
    }
}

/// The files of a disk, if it is an image.
fn chain(path: &Path) -> Vec<PathBuf> {
    let format = AnyFormat::Own(Format::from_path(path));
    tool::info(path, format).expect("a disk").into_iter().map(|step| step.path).collect()
}

impl Machine {
    fn disk(&mut self, id: &str) -> &mut DiskConfig {
        self.config.disks.iter_mut().find(|disk| disk.id == id).expect("the disk")
    }

    fn status(&self) -> Status {
        Status {
            name: self.config.name.clone(),
            pid: std::process::id(),
            state: if self.paused { RunStatus::Paused } else { RunStatus::Running },
            cpus: self.config.cpus.count,
            memory: self.config.memory.size,
            hotplug_memory: self.hotplug_memory,
            balloon: self.balloon,
            confined: false,
            short_of_space: self.short_of_space.clone(),
            devices: self.devices(),
        }
    }

    fn devices(&self) -> Vec<DeviceStatus> {
        let counters = [("writes", self.looks), ("written-bytes", 4096 * self.looks)].map(|(name, value)| (name.into(), value));
        let device = |disk: &DiskConfig| DeviceStatus {
            id: disk.id.clone(),
            kind: "disk".into(),
            slot: 1,
            files: chain(&disk.path),
            counters: counters.clone().into(),
        };
        self.config.disks.iter().map(device).collect()
    }

    /// A hundred more writes, and that was all.
    fn last_words(&mut self) {
        self.looks += 100;
        let devices = self.devices();
        self.tell(EventKind::FinalCounters { devices });
    }

    fn save(&self, files: Vec<OwnedFd>) -> SavedReport {
        let [file] = <[OwnedFd; 1]>::try_from(files).expect("one file");
        let text = self.memory.to_string();
        File::from(file).write_all(text.as_bytes()).expect("room");
        SavedReport { bytes: text.len() as u64, took_ms: 1 }
    }

    fn go_on(&mut self) {
        self.memory += 1;
        self.write_to_disk(&self.memory.to_string());
    }

    fn write_to_disk(&self, line: &str) {
        if let Some(disk) = self.config.disks.first() {
            let mut file = File::options().append(true).open(&disk.path).expect("the disk");
            writeln!(file, "{line}").expect("room");
        }
    }

    fn tell(&mut self, kind: EventKind) {
        self.sequence += 1;
        let event = Message::Event(Event { sequence: self.sequence, kind });
        self.subscribers.retain(|client| client.send(&event, &[]).is_ok());
    }
}
