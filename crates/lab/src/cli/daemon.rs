//! The lab's background process.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use super::CliError;
use super::protocol::{Answer, CableStatus, Change, DaemonSpec, HostStatus, PowerAction, Request, SOCKET, StartEvent, Status};
use crate::agent::frame::{Decoder, Frame, Kind, Stream};
use crate::agent::{Event, Exec, ExitStatus, Input, Process, TerminalSize};
use crate::appliance::guest_image;
use crate::cable::{Conditions, Direction};
use crate::host::{Host, HostError};
use crate::{CABLES, Lab, Progress};

/// How long a host may take to shut down: the VMs of one of a cluster leave it first.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(900);

/// Emptied by `down`.
type Shared = Arc<RwLock<Option<Lab>>>;

/// Starts the lab, tells on standard output how that goes, then serves until `down`.
pub fn run(spec: &str) -> Result<ExitCode, CliError> {
    let local = |what: &str| {
        let what = what.to_owned();
        move |source| CliError::Local { what, source }
    };
    let spec: DaemonSpec = serde_json::from_str(spec).map_err(io::Error::from).map_err(local("read the lab's description"))?;
    // SAFETY: no arguments. Failing means this is a session's leader already, which is as good.
    unsafe { libc::setsid() };
    let lab = match start(&spec) {
        Ok(lab) => lab,
        Err(error) => {
            tell(&StartEvent::Failed(with_causes(&error)));
            return Ok(ExitCode::FAILURE);
        }
    };
    let listener = UnixListener::bind(lab.runtime_dir().join(SOCKET)).map_err(local("listen on the control socket"))?;
    tell(&StartEvent::Ready);
    close_standard_streams();
    let lab: Shared = Arc::new(RwLock::new(Some(lab)));
    for connection in listener.incoming().flatten() {
        let lab = lab.clone();
        // A client that goes away in the middle is its own business.
        thread::spawn(move || {
            let _ = serve(&lab, connection);
        });
    }
    Ok(ExitCode::SUCCESS)
}

fn start(spec: &DaemonSpec) -> Result<Lab, crate::LabError> {
    let mut lab = Lab::new().name(&spec.name).hosts(spec.hosts).memory_mib(spec.memory_mib).cpus(spec.cpus);
    for &mib in &spec.disks_mib {
        lab = lab.disk_mib(mib);
    }
    for &mib in &spec.shared_disks_mib {
        lab = lab.shared_disk(mib);
    }
    for (file, path) in &spec.programs {
        lab = lab.binary(file, path);
    }
    if spec.guest {
        tell(&StartEvent::Doing("making the test guest, unless it is there".into()));
        let image = guest_image()?;
        lab = lab.file(image.kernel, "/guest/vmlinuz").file(image.initramfs, "/guest/initramfs");
        lab = lab.kernel_words("maru.volume=guest=/guest");
    }
    if let Some(mib) = spec.state_disk_mib {
        lab = lab.state_disk_mib(mib);
    }
    if spec.shared_dir {
        lab = lab.shared_dir();
    }
    if spec.managed {
        lab = lab.managed();
        lab = match lab.clone().etcd() {
            Ok(with_etcd) => with_etcd,
            Err(error) => {
                tell(&StartEvent::Doing(format!("the hosts have no etcd: {}", with_causes(&error))));
                lab
            }
        };
    }
    let lab = lab.start_with(&mut |progress| match progress {
        Progress::Kernel => tell(&StartEvent::Doing("fetching the kernel, unless it is there".into())),
        Progress::Appliance => tell(&StartEvent::Doing("making the appliance, unless nothing has changed".into())),
        Progress::PoweredOn { host } => tell(&StartEvent::Doing(format!("{host} has power"))),
        Progress::Ready { host, time } => {
            tell(&StartEvent::HostReady { host: host.to_owned(), seconds: time.as_secs_f64() });
        }
    })?;
    if spec.cluster {
        lab.form_cluster(&mut |step| tell(&StartEvent::Doing(step.to_owned())))?;
    }
    Ok(lab)
}

fn tell(event: &StartEvent) {
    let line = serde_json::to_string(event).unwrap_or_default();
    let mut out = io::stdout().lock();
    // Whoever started us may have gone; the lab starts all the same.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Lets go of the terminal and of the pipe to `maru lab up`.
fn close_standard_streams() {
    if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        for stream in 0..=2 {
            // SAFETY: both are open descriptors; dup2 replaces the second in one step.
            unsafe { libc::dup2(null.as_raw_fd(), stream) };
        }
    }
}

/// An error with its causes on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn serve(shared: &Shared, mut connection: UnixStream) -> io::Result<()> {
    let mut line = String::new();
    // Byte by byte beyond the line nothing may be taken: frames can follow.
    BufReader::with_capacity(1, &connection).read_line(&mut line)?;
    let request: Request = serde_json::from_str(&line)?;
    let reply = |mut connection: &UnixStream, answer: &Answer| {
        connection.write_all(format!("{}\n", serde_json::to_string(answer)?).as_bytes())
    };
    if let Request::Down = request {
        down(shared);
        reply(&connection, &Answer::Done)?;
        std::process::exit(0);
    }
    let guard = shared.read().unwrap_or_else(PoisonError::into_inner);
    let Some(lab) = guard.as_ref() else {
        return reply(&connection, &Answer::Refused("the lab is going down".into()));
    };
    if let Request::Exec { host, argv, env, terminal } = request {
        let exec = env.into_iter().fold(Exec::new(argv), |exec, (name, value)| exec.env(name, value));
        let exec = terminal.into_iter().fold(exec, Exec::terminal);
        let process = find(lab, &host).and_then(|host| host.spawn(exec).map_err(|error| with_causes(&error)));
        drop(guard);
        return match process {
            Ok(process) => {
                reply(&connection, &Answer::Done)?;
                relay(process, &mut connection)
            }
            Err(why) => reply(&connection, &Answer::Refused(why)),
        };
    }
    let answer = carry_out(lab, request).unwrap_or_else(Answer::Refused);
    drop(guard);
    reply(&connection, &answer)
}

fn down(shared: &Shared) {
    // Whoever waits for a host to come up stops waiting when it is off.
    if let Some(lab) = shared.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
        lab.hosts().iter().for_each(Host::power_cut);
    }
    drop(shared.write().unwrap_or_else(PoisonError::into_inner).take());
}

fn find<'a>(lab: &'a Lab, name: &str) -> Result<&'a Host, String> {
    let unknown = || {
        let names: Vec<&str> = lab.hosts().iter().map(Host::name).collect();
        format!("there is no host {name}; there are {}", names.join(", "))
    };
    lab.hosts().iter().find(|host| host.name() == name).ok_or_else(unknown)
}

fn carry_out(lab: &Lab, request: Request) -> Result<Answer, String> {
    let failed = |error: HostError| with_causes(&error);
    match request {
        Request::Status => return Ok(Answer::Status(status(lab))),
        Request::Push { host, local, path } => find(lab, &host)?.push(&local, &path).map_err(failed)?,
        Request::Pull { host, path, local } => find(lab, &host)?.pull(&path, &local).map_err(failed)?,
        Request::Power { host, action } => power(find(lab, &host)?, action).map_err(failed)?,
        Request::Forward { host, port } => {
            return Ok(Answer::Address(find(lab, &host)?.forward(port).map_err(failed)?.to_string()));
        }
        Request::Change { host, cable, direction, change } => {
            on_cables(lab, &host, cable, move |conditions| apply(change, conditions), direction)?;
        }
        Request::Restore { host, cable } => {
            on_cables(lab, &host, cable, |conditions| *conditions = Conditions::default(), Direction::Both)?;
        }
        Request::Capture { cable, file } => {
            check_cable(cable)?;
            match file {
                Some(file) => {
                    lab.cable(cable).pcap(&file).map_err(|error| format!("cannot write {}: {error}", file.display()))?
                }
                None => lab.cable(cable).pcap_end(),
            }
        }
        Request::Exec { .. } | Request::Down => {}
    }
    Ok(Answer::Done)
}

fn power(host: &Host, action: PowerAction) -> Result<(), HostError> {
    match action {
        PowerAction::On => host.power_on().map(|_| ()),
        PowerAction::Off => {
            host.power_cut();
            Ok(())
        }
        PowerAction::Reset => host.reset().and_then(|()| host.wait_ready()).map(|_| ()),
        PowerAction::Shutdown => host.shut_down(SHUTDOWN_LIMIT),
        PowerAction::Freeze => host.freeze(),
        PowerAction::Thaw => host.thaw(),
    }
}

fn apply(change: Change, conditions: &mut Conditions) {
    conditions.cut |= change.cut;
    if let Some(percent) = change.loss_percent {
        conditions.loss_percent = percent;
    }
    if let Some(delay) = change.delay_us {
        conditions.delay = Duration::from_micros(delay);
    }
    if change.bits_per_second.is_some() {
        conditions.bits_per_second = change.bits_per_second;
    }
}

fn check_cable(cable: usize) -> Result<(), String> {
    if cable < CABLES { Ok(()) } else { Err(format!("there is no cable net {cable}; there are 0 to {}", CABLES - 1)) }
}

fn on_cables(
    lab: &Lab,
    host: &str,
    cable: Option<usize>,
    change: impl Fn(&mut Conditions) + Send + Copy + 'static,
    direction: Direction,
) -> Result<(), String> {
    let index = find(lab, host)?.spec().index;
    cable.map_or(Ok(()), check_cable)?;
    for n in (0..CABLES).filter(|&n| cable.is_none_or(|cable| cable == n)) {
        lab.cable(n).change(index, direction, change);
    }
    Ok(())
}

fn status(lab: &Lab) -> Status {
    let host_status = |host: &Host| {
        let spec = host.spec();
        let cable_status = |n: usize| {
            let (from_host, to_host) = lab.cable(n).conditions(spec.index);
            let counters = lab.cable(n).counters(spec.index);
            CableStatus { address: host.address(n), mac: spec.cable_mac(n), from_host, to_host, counters }
        };
        HostStatus {
            name: spec.name.clone(),
            power: host.power_state(),
            memory_mib: spec.memory_mib,
            cpus: spec.cpus,
            disks: spec.disks.len(),
            serial_log: host.serial_log(),
            cables: (0..CABLES).map(cable_status).collect(),
        }
    };
    Status {
        name: lab.name().to_owned(),
        accelerator: lab.hosts().first().map(|host| format!("{:?}", host.spec().accelerator)).unwrap_or_default(),
        state_dir: lab.state_dir().to_owned(),
        hosts: lab.hosts().iter().map(host_status).collect(),
    }
}

/// Joins a program to a client until it ends. A client that goes away takes the program with it.
fn relay(mut process: Process, connection: &mut UnixStream) -> io::Result<()> {
    let (input, from_client) = (process.input(), connection.try_clone()?);
    thread::spawn(move || feed(&input, from_client));
    loop {
        let frame = match process.next_event(None) {
            Ok(Some(Event::Stdout(payload))) => Frame { kind: Kind::Data, stream: Stream::Out, channel: 0, payload },
            Ok(Some(Event::Stderr(payload))) => Frame { kind: Kind::Data, stream: Stream::Err, channel: 0, payload },
            Ok(Some(Event::Exit(status))) => {
                return connection.write_all(&Frame::new(Kind::Exit, 0, serde_json::to_vec(&status)?).encode());
            }
            Ok(None) => continue,
            Err(error) => {
                let status = ExitStatus::Failed(error.to_string());
                return connection.write_all(&Frame::new(Kind::Exit, 0, serde_json::to_vec(&status)?).encode());
            }
        };
        connection.write_all(&frame.encode())?;
    }
}

/// Ends with the connection. What fails here shows on the program's other side.
fn feed(input: &Input, mut from_client: UnixStream) {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from_client.read(&mut buffer) {
        decoder.feed(&buffer[..count]);
        while let Some(frame) = decoder.next_frame() {
            let _ = match frame.kind {
                Kind::Data => input.write(&frame.payload),
                Kind::End => input.close(),
                Kind::Signal => input.signal(frame.number().unwrap_or(0) as i32),
                Kind::Resize => TerminalSize::decode(&frame.payload).map_or(Ok(()), |size| input.resize(size)),
                _ => Ok(()),
            };
        }
    }
    let _ = input.signal(libc::SIGKILL);
}
