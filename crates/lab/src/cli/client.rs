//! The commands, as clients of the daemon.

use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use super::protocol::{Answer, CableStatus, Change, DaemonSpec, Request, SOCKET, StartEvent, Status};
use super::screen::RawTerminal;
use super::{CliError, Cut, Format, OneWay, Up, screen};
use crate::agent::ExitStatus;
use crate::agent::frame::{Decoder, Frame, Kind, Stream};
use crate::appliance::{PROGRAMS, program};
use crate::cable::{Conditions, Direction};
use crate::dirs;

/// What hosts of a cluster get for their state and the store, if nothing else is said.
const CLUSTER_STATE_MIB: u64 = 512;

fn local(what: impl Into<String>) -> impl FnOnce(io::Error) -> CliError {
    let what = what.into();
    move |source| CliError::Local { what, source }
}

/// The daemon runs in another directory.
pub fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(local(format!("use {}", path.display())))
}

fn runtime_dir(name: &str) -> Result<PathBuf, CliError> {
    Ok(dirs::runtime_base().map_err(local("use the directory of the labs' sockets"))?.join(name))
}

fn connect(name: &str) -> Result<UnixStream, CliError> {
    UnixStream::connect(runtime_dir(name)?.join(SOCKET)).map_err(|_| CliError::NotRunning(name.to_owned()))
}

/// Sends a request; gives the answer and the connection, from which nothing beyond the answer was read.
fn start_request(name: &str, request: &Request) -> Result<(Answer, UnixStream), CliError> {
    let broken = |source| CliError::Connection { name: name.to_owned(), source };
    let mut connection = connect(name)?;
    let line = serde_json::to_string(request).map_err(io::Error::from).map_err(broken)?;
    connection.write_all(format!("{line}\n").as_bytes()).map_err(broken)?;
    let mut answer = String::new();
    BufReader::with_capacity(1, &connection).read_line(&mut answer).map_err(broken)?;
    match serde_json::from_str(&answer).map_err(io::Error::from).map_err(broken)? {
        Answer::Refused(why) => Err(CliError::Refused(why)),
        answer => Ok((answer, connection)),
    }
}

/// Sends a request and gives the answer.
pub fn ask(name: &str, request: &Request) -> Result<Answer, CliError> {
    start_request(name, request).map(|(answer, _)| answer)
}

/// Starts a daemon and shows how it gets on.
pub fn up(up: Up) -> Result<ExitCode, CliError> {
    let name = up.lab.name;
    if dirs::living_owner(&runtime_dir(&name)?).is_some() {
        return Err(CliError::AlreadyRunning(name));
    }
    let mut programs: Vec<(String, String)> =
        PROGRAMS.iter().filter_map(|name| Some((program(name)?.display().to_string(), format!("/bin/{name}")))).collect();
    for (file, path) in up.binary {
        programs.push((absolute(Path::new(&file))?.display().to_string(), path));
    }
    let spec = DaemonSpec {
        name: name.clone(),
        hosts: up.hosts,
        memory_mib: u32::try_from(up.memory).unwrap_or(u32::MAX),
        cpus: up.cpus,
        disks_mib: up.disk,
        shared_disks_mib: up.shared_disk,
        state_disk_mib: up.state_disk.or(up.cluster.then_some(CLUSTER_STATE_MIB)),
        shared_dir: up.shared_dir || up.cluster,
        programs,
        guest: up.guest,
        managed: up.managed || up.cluster,
        cluster: up.cluster,
        witness: up.witness,
    };
    let spec = serde_json::to_string(&spec).map_err(io::Error::from).map_err(local("describe the lab"))?;
    let own = std::env::current_exe().map_err(local("find this program"))?;
    // Whatever led to this subcommand leads to the daemon: nothing, or `lab`.
    let before: Vec<String> = std::env::args().skip(1).take_while(|word| word != "up").collect();
    let mut daemon = Command::new(own)
        .args(before)
        .args(["daemon", &spec])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(local("start the lab's background process"))?;
    let lines = BufReader::new(daemon.stdout.take().ok_or_else(|| CliError::Start("it has no output".into()))?).lines();
    for line in lines.map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(StartEvent::Doing(what)) => eprintln!("{what}"),
            Ok(StartEvent::HostReady { host, seconds }) => eprintln!("{host} is up, {seconds:.1} s after power-on"),
            Ok(StartEvent::Failed(why)) => return Err(CliError::Start(why)),
            Ok(StartEvent::Ready) => {
                println!("the lab {name} is up: try `maru lab status` and `maru lab console h1`");
                return Ok(ExitCode::SUCCESS);
            }
            Err(_) => eprintln!("{line}"),
        }
    }
    Err(CliError::Start("its background process ended without a word".into()))
}

/// Shows the lab.
pub fn status(name: &str, format: Format) -> Result<ExitCode, CliError> {
    let Answer::Status(status) = ask(name, &Request::Status)? else {
        return Err(CliError::Refused("the daemon is of another version: use `maru lab down` and `maru lab up`".into()));
    };
    match format {
        Format::Json => {
            let text = serde_json::to_string_pretty(&status).map_err(io::Error::from).map_err(local("write JSON"))?;
            println!("{text}");
        }
        Format::Table => print_table(&status),
    }
    Ok(ExitCode::SUCCESS)
}

fn print_table(status: &Status) {
    println!("lab {} on {}, logs in {}", status.name, status.accelerator, status.state_dir.display());
    println!("{:<6} {:<7} {:>5} {:>10} {:>6}  CABLES", "HOST", "POWER", "CPUS", "MEMORY", "DISKS");
    for host in &status.hosts {
        let cables: Vec<String> = host.cables.iter().map(describe).collect();
        let memory = format!("{} MiB", host.memory_mib);
        let power = host.power.to_string();
        println!("{:<6} {:<7} {:>5} {:>10} {:>6}  {}", host.name, power, host.cpus, memory, host.disks, cables.join(", "));
    }
}

fn describe(cable: &CableStatus) -> String {
    let way = |conditions: &Conditions| {
        let mut words = Vec::new();
        if conditions.cut {
            words.push("cut".to_owned());
        }
        if conditions.loss_percent > 0.0 {
            words.push(format!("loss {} %", conditions.loss_percent));
        }
        if !conditions.delay.is_zero() {
            words.push(format!("delay {:?}", conditions.delay));
        }
        if let Some(rate) = conditions.bits_per_second {
            words.push(format!("{} Mbit/s", rate as f64 / 1e6));
        }
        words.join(" ")
    };
    let (from, to) = (way(&cable.from_host), way(&cable.to_host));
    let address = cable.address;
    match (from.as_str(), to.as_str()) {
        ("", "") => address.to_string(),
        (from, to) if from == to => format!("{address} ({from})"),
        (from, "") => format!("{address} (sends: {from})"),
        ("", to) => format!("{address} (receives: {to})"),
        (from, to) => format!("{address} (sends: {from}; receives: {to})"),
    }
}

/// Shows where a host's port can be reached.
pub fn forward(name: &str, host: String, port: u16) -> Result<ExitCode, CliError> {
    if let Answer::Address(address) = ask(name, &Request::Forward { host, port })? {
        println!("{address}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Cuts a cable or makes it worse.
pub fn cut(cut: Cut) -> Result<ExitCode, CliError> {
    let direction = match cut.one_way {
        None => Direction::Both,
        Some(OneWay::From) => Direction::FromHost,
        Some(OneWay::To) => Direction::ToHost,
    };
    let change = Change {
        cut: cut.loss.is_none() && cut.delay.is_none() && cut.rate.is_none(),
        loss_percent: cut.loss,
        delay_us: cut.delay.map(|delay| u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)),
        bits_per_second: cut.rate,
    };
    ask(&cut.lab.name, &Request::Change { host: cut.host, cable: cut.cable, direction, change })?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a program in a host with this process's standard streams, and gives its exit code.
pub fn exec(name: &str, host: String, argv: Vec<String>, tty: bool) -> Result<ExitCode, CliError> {
    let terminal = if tty { Some(screen::size()) } else { None };
    let term = std::env::var("TERM").unwrap_or_else(|_| "linux".into());
    let env = if tty { vec![("TERM".to_owned(), term)] } else { Vec::new() };
    let (_, mut connection) = start_request(name, &Request::Exec { host, argv, env, terminal })?;
    let broken = |source| CliError::Connection { name: name.to_owned(), source };
    let raw = if tty && io::stdin().is_terminal() { RawTerminal::enter() } else { None };
    let to_program = connection.try_clone().map_err(broken)?;
    thread::spawn(move || send_input(to_program));
    if raw.is_some() {
        let to_program = connection.try_clone().map_err(broken)?;
        thread::spawn(move || {
            screen::watch_size(|size| (&to_program).write_all(&Frame::new(Kind::Resize, 0, size.encode()).encode()))
        });
    }
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        while let Some(frame) = decoder.next_frame() {
            match (frame.kind, frame.stream) {
                (Kind::Data, Stream::Err) => show(&mut io::stderr().lock(), &frame.payload),
                (Kind::Data, _) => show(&mut io::stdout().lock(), &frame.payload),
                (Kind::Exit, _) => {
                    drop(raw);
                    return exit_code(&frame.payload);
                }
                _ => {}
            }
        }
        match connection.read(&mut buffer) {
            Ok(0) => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => decoder.feed(&buffer[..count]),
            Err(error) => return Err(broken(error)),
        }
    }
}

/// Whoever reads our output may be gone; the program's exit code counts all the same.
fn show(out: &mut impl Write, bytes: &[u8]) {
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

fn exit_code(payload: &[u8]) -> Result<ExitCode, CliError> {
    match serde_json::from_slice(payload) {
        Ok(ExitStatus::Code(code)) => Ok(ExitCode::from(code as u8)),
        // As a shell says it.
        Ok(ExitStatus::Signal(signal)) => Ok(ExitCode::from(128u8.saturating_add(signal as u8))),
        Ok(ExitStatus::Failed(why)) => Err(CliError::Refused(why)),
        Err(error) => Err(CliError::Refused(format!("the daemon's answer cannot be read: {error}"))),
    }
}

fn send_input(mut connection: UnixStream) {
    let mut buffer = vec![0; 16 * 1024];
    let mut input = io::stdin();
    while let Ok(count @ 1..) = input.read(&mut buffer) {
        if connection.write_all(&Frame::new(Kind::Data, 0, buffer[..count].to_vec()).encode()).is_err() {
            return;
        }
    }
    let _ = connection.write_all(&Frame::new(Kind::End, 0, Vec::new()).encode());
}
