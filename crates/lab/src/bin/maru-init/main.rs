//! PID 1 of the appliance.
//!
//! ```text
//!   mount ─► modules ─► processors ─► name, NICs ─► services ─► reap, restart ─► (SIGUSR2, SIGTERM) drain ─► stop services ─► power
//! ```
//!
//! Configuration comes from the kernel command line, because the appliance has no disk of its own:
//!
//! | word | meaning |
//! |---|---|
//! | `maru.hostname=NAME` | the host's name |
//! | `maru.nic=NAME,MAC[,ADDRESS/PREFIX or ,dhcp]` | rename the NIC with this MAC, switch it on, give it an address; repeatable |
//! | `maru.gateway=ADDRESS` | default route |
//! | `maru.nameserver=ADDRESS` | resolver |
//! | `maru.boot_processor=kernel` | programs run on the other processors only |
//! | `maru.mount=TYPE,SOURCE,DIRECTORY` | mount a file system before services start; repeatable |
//! | `maru.lab=1` | start the exec agent on the virtio-serial port |
//! | `maru.marud=1` | start `marud`, for clients that know the host by its fixed addresses, too |
//! | `maru.volume=NAME=DIRECTORY` | a volume of `marud`; repeatable |
//!
//! The agent gives root to whoever holds the other end of that port, so it runs only where the command line asks for it,
//! and never listens on a network.

mod network;
mod services;

use lab::pid1;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if std::process::id() == 1 {
        return init();
    }
    let result = match words.as_slice() {
        ["agent"] => lab::agent::serve(),
        ["modprobe", name] => pid1::load_module(name, ""),
        ["modprobe", name, parameters @ ..] => pid1::load_module(name, &parameters.join(" ")),
        ["dhcp", nic] => network::lease(nic),
        ["poweroff"] => services::ask_init(libc::SIGUSR2),
        ["reboot"] => services::ask_init(libc::SIGTERM),
        _ => Err(std::io::Error::other("usage: maru-init agent | dhcp NIC | modprobe NAME [PARAMETER...] | poweroff | reboot")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("maru-init: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the processors that the kernel was told to leave alone (`maxcpus=`).
fn start_processors() -> Option<std::io::Error> {
    let start = || {
        for entry in std::fs::read_dir("/sys/devices/system/cpu")? {
            // The first processor has no such file: it cannot be stopped.
            let switch = entry?.path().join("online");
            if switch.exists() && std::fs::read(&switch)?.starts_with(b"0") {
                std::fs::write(switch, "1")?;
            }
        }
        Ok(())
    };
    start().err()
}

/// Keeps this process, and so everything that it starts, off the first processor.
fn leave_first_processor() -> std::io::Result<()> {
    // SAFETY: a set of processors is plain bits, of which all zeroes are valid; sched_getaffinity writes within the given size.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let size = std::mem::size_of_val(&set);
    // SAFETY: `set` lives through the call and is `size` bytes long.
    let result = unsafe { libc::sched_getaffinity(0, size, &mut set) };
    if result != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: processor 0 is a bit of every set.
    unsafe { libc::CPU_CLR(0, &mut set) };
    // SAFETY: as for reading it; the call only reads.
    match unsafe { libc::sched_setaffinity(0, size, &set) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Gives everybody the rights that udev gives: who uses the device is still asked what he may do.
fn open_to_all(device: &str) -> std::io::Result<()> {
    std::fs::set_permissions(device, std::os::unix::fs::PermissionsExt::from_mode(0o666))
}

/// Mounts what `maru.mount` names, and loads the module that it needs before.
fn mount(description: &str) -> Result<(), String> {
    let mut parts = description.splitn(3, ',');
    let (Some(kind), Some(source), Some(directory)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!("maru.mount={description}: should be TYPE,SOURCE,DIRECTORY"));
    };
    // A file system may be part of the kernel. If its module is not there, mounting says so.
    let _ = pid1::load_module(kind, "");
    pid1::mount_when_there(source, directory, kind).map_err(|error| format!("cannot mount {source} at {directory}: {error}"))
}

fn init() -> ExitCode {
    let mut problems: Vec<String> =
        pid1::mount_system().into_iter().map(|(what, error)| format!("cannot mount {what}: {error}")).collect();
    let line = pid1::CommandLine::of_kernel();
    let signals = services::block_signals();
    // Guest memory is shared memory, for which large pages are off unless asked for. A kernel without them has no such file.
    let _ = std::fs::write("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise");
    for (module, error) in pid1::load_boot_modules() {
        problems.push(format!("cannot load module {module}: {error}"));
    }
    problems.extend(start_processors().into_iter().map(|error| format!("a processor does not start: {error}")));
    if line.get("maru.boot_processor") == Some("kernel")
        && let Err(error) = leave_first_processor()
    {
        problems.push(format!("programs run on the first processor too: {error}"));
    }
    if !std::path::Path::new("/dev/kvm").exists() {
        problems.push("there is no /dev/kvm: this processor has no virtualization, or the firmware has switched it off".into());
    }
    problems.extend(network::configure(&line));
    let unmounted: Vec<String> = line.all("maru.mount").filter_map(|description| mount(description).err()).collect();
    // Network cards of VMs are on TAPs, which whoever creates VMs makes, and virtual switches, which do not run as root.
    if services::manages(&line)
        && let Err(error) = pid1::load_module("tun", "").and_then(|()| open_to_all("/dev/net/tun"))
    {
        problems.push(format!("VMs cannot have network cards: {error}"));
    }
    // Behind whoever guards the leases of VMs. A machine with a watchdog of its own has it already.
    if services::manages(&line)
        && !std::path::Path::new("/dev/watchdog").exists()
        && let Err(error) = pid1::load_module("softdog", "")
    {
        problems.push(format!("there is no watchdog: {error}"));
    }
    // What would write its state into memory now would seem to have lost all of it.
    let managing = unmounted.is_empty() && services::manages(&line);
    problems.extend(unmounted);
    let mut table = services::Table::start(&line, managing);
    for problem in problems {
        println!("maru: {problem}");
    }
    println!("maru: ready {:.2} s after start", pid1::uptime_seconds());
    let action = table.supervise(&signals);
    println!("maru: shutting down");
    if managing {
        table.stop_managing();
    }
    table.stop();
    let error = pid1::power(action);
    println!("maru: the kernel refuses to switch off: {error}");
    ExitCode::FAILURE
}
