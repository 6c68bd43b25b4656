//! PID 1 of test guests, and helpers for lab hosts.
//!
//! As PID 1 it acts by the kernel command line:
//!
//! | word | meaning |
//! |---|---|
//! | `maru.test=poweroff` | print the facts, then power off (the default) |
//! | `maru.test=reboot`, `panic` | print the facts, then restart or crash |
//! | `maru.test=idle` | print the facts, again whenever they change; power off on the power button |
//! | `maru.test=shell` | a shell on the console |
//! | `maru.test=load` | write, verify, talk and watch the clocks until told otherwise, see below |
//! | `maru.test=busy` | use all that processors give, or `maru.disk`s |
//! | `maru.test=witness` | write to a disk who runs, and see whether someone else does: see [`witness`] |
//! | `maru.test=disk-verify` | check what an earlier `load` left on the disks, then power off |
//! | `maru.test=hostile` | write garbage into everything that the monitor shows, and prove that it survives: see [`hostile`] |
//! | `maru.root=vda` | go on as `/init` of the ext4 file system on this disk; needs `maru.modules=ext4` |
//! | `maru.modules=A,B` | more modules to load |
//! | `maru.no_modules` | load none but those: devices stay without drivers |
//! | `maru.ip=WHICH,ADDRESS/PREFIX` | address of a NIC, by number or MAC; repeatable |
//! | `maru.gateway=ADDRESS` | default route |
//! | `maru.disk=vda` | a disk to use; repeatable |
//! | `maru.disk_mib=64` | how much of each disk |
//! | `maru.seed=1` | which sequence of blocks |
//! | `maru.flushed=N` | `disk-verify`: every block up to number N must be there |
//! | `maru.echo=ADDRESS:PORT` | a peer that sends everything back; repeatable |
//! | `maru.listen=ADDRESS:PORT` | be such a peer |
//! | `maru.vsock=PORT` | exchange 1 MiB with the host's port over the socket device |
//! | `maru.mem=8` | MiB of memory to rewrite |
//! | `maru.pace_us=1000` | pause between operations |
//! | `maru.seconds=N` | end `load` after so long and power off |
//!
//! `load` prints every half second `maru-guest: ok disk=BLOCKS flushed=N[,N] net=BYTES net_gap_ms=LONGEST mem=PAGES gap_ms=LONGEST
//! mono=SECONDS t=UNIX_TIME`, and `maru-guest: FAIL WHAT` for ever once something was lost.

mod busy;
mod button;
mod echo;
mod facts;
mod frames;
mod hostile;
mod kvm_check;
mod load;
mod unit;
mod vsock;
mod witness;

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use lab::pid1::{self, CommandLine, Ipv4Net, PowerAction};

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init();
        let error = pid1::power(PowerAction::Off);
        println!("maru-guest: cannot power off: {error}");
        // PID 1 must not end.
        loop {
            thread::park();
        }
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["echo", "--listen", address] => echo::serve(address),
        ["frames", nics @ ..] => frames::run(nics),
        ["unix-echo", path] => vsock::serve(std::path::Path::new(path)),
        ["kvm-check"] => kvm_check::run().map(|exit| println!("a virtual machine ran and ended with {exit}")),
        ["facts"] => {
            facts::print();
            Ok(())
        }
        _ => Err(io::Error::other(
            "usage: maru-guest echo --listen ADDRESS:PORT | frames NIC... | unix-echo PATH | kvm-check | facts",
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("maru-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn init() {
    let unmounted = pid1::mount_system();
    println!("maru-guest: init at {:.2}", pid1::uptime_seconds());
    for (what, error) in unmounted {
        println!("maru-guest: cannot mount {what}: {error}");
    }
    let line = CommandLine::of_kernel();
    if line.get("maru.no_modules").is_none() {
        for (module, error) in pid1::load_boot_modules() {
            println!("maru-guest: cannot load {module}: {error}");
        }
    }
    for module in line.get("maru.modules").unwrap_or_default().split(',').filter(|name| !name.is_empty()) {
        if let Err(error) = pid1::load_module(module, "") {
            println!("maru-guest: cannot load {module}: {error}");
        }
    }
    move_to_virtio_console(&line);
    facts::wait_for_devices(&line);
    if let Some(disk) = line.get("maru.root") {
        println!("maru-guest: FAIL no root on {disk}: {}", enter_root(disk));
        return;
    }
    set_up_network(&line);
    // Whoever has read the facts may press the button.
    button::watch();
    facts::print();
    if let Some(address) = line.get("maru.listen").map(str::to_owned) {
        thread::spawn(move || {
            if let Err(error) = echo::serve(&address) {
                println!("maru-guest: FAIL listening on {address}: {error}");
            }
        });
    }
    if let Some(port) = line.get("maru.vsock").and_then(|port| port.parse().ok()) {
        vsock::check(port);
    }
    match line.get("maru.test").unwrap_or("poweroff") {
        "poweroff" => {}
        "reboot" => println!("maru-guest: cannot restart: {}", pid1::power(PowerAction::Reboot)),
        "panic" => crash(),
        "idle" => idle(),
        "shell" => shell(),
        "load" => load::run(&line),
        "busy" => busy::run(&line),
        "witness" => witness::run(&line),
        "disk-verify" => load::verify_disks(&line),
        "hostile" => hostile::run(&line),
        other => println!("maru-guest: FAIL there is no maru.test={other}"),
    }
}

fn set_up_network(line: &CommandLine) {
    let describe = |error: pid1::NetError| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    let set_up = |description: &str| -> Result<(), String> {
        let (which, address) = description.split_once(',').ok_or("should be WHICH,ADDRESS/PREFIX")?;
        let address: Ipv4Net = address.parse().map_err(describe)?;
        let nics = pid1::nics();
        let nic = match which.parse::<usize>() {
            Ok(number) => nics.get(number),
            Err(_) => nics.iter().find(|nic| nic.mac.eq_ignore_ascii_case(which)),
        };
        let nic = nic.ok_or_else(|| format!("there is no such NIC among {nics:?}"))?;
        pid1::bring_up(&nic.name, None).and_then(|()| pid1::set_address(&nic.name, address)).map_err(describe)
    };
    if let Err(error) = pid1::bring_up("lo", None) {
        println!("maru-guest: {}", describe(error));
    }
    for description in line.all("maru.ip") {
        if let Err(why) = set_up(description) {
            println!("maru-guest: FAIL maru.ip={description}: {why}");
        }
    }
    if let Some(gateway) = line.get("maru.gateway").and_then(|gateway| gateway.parse().ok())
        && let Err(error) = pid1::add_default_route(gateway)
    {
        println!("maru-guest: FAIL {}", describe(error));
    }
}

/// Returns only if that is impossible.
fn enter_root(disk: &str) -> io::Error {
    match pid1::enter_root(&format!("/dev/{disk}")) {
        Ok(()) => Command::new("/init").exec(),
        Err(error) => error,
    }
}

fn crash() {
    let _ = std::fs::write("/proc/sys/kernel/sysrq", "1");
    if let Err(error) = std::fs::write("/proc/sysrq-trigger", "c") {
        println!("maru-guest: FAIL cannot crash: {error}");
    }
}

fn idle() -> ! {
    let mut last = facts::gather();
    loop {
        thread::sleep(Duration::from_millis(500));
        bring_processors_online();
        let now = facts::gather();
        if now != last {
            facts::print();
            last = now;
        }
    }
}

/// The driver of a virtio console is a module: what was opened before it was loaded is another console.
fn move_to_virtio_console(line: &CommandLine) {
    if line.all("console").last() != Some("hvc0") {
        return;
    }
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/hvc0") {
        Ok(console) => {
            for standard in 0..3 {
                // SAFETY: both are open descriptors; the old one of each standard stream is replaced.
                unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&console), standard) };
            }
        }
        Err(error) => println!("maru-guest: FAIL /dev/hvc0: {error}"),
    }
}

/// Processors that were added wait for somebody to switch them on: here, udev is missing.
fn bring_processors_online() {
    for entry in std::fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten() {
        let switch = entry.path().join("online");
        if std::fs::read_to_string(&switch).is_ok_and(|state| state.trim() == "0") {
            let _ = std::fs::write(&switch, "1");
        }
    }
}

fn shell() {
    let shell = Command::new("/bin/busybox").args(["setsid", "-c", "sh"]).env("PATH", "/bin").env("HOME", "/root").status();
    println!("maru-guest: the shell has ended: {shell:?}");
}
