//! VMs of `marud`: list, show, create, start, stop, and so on.

use api::client::Method;
use clap::{Args, Subcommand, ValueEnum};

use super::checkpoint::CheckpointCommand;
use super::cloud_init::CloudInitArgs;
use super::console::{self, ConsoleArgs};
use super::limit::{self, LimitArgs, Limits};
use super::usage::{self, UsageArgs};
use crate::options::{AUTO_START_FORM, AutoStartOption, MANAGED_DISK_FORM, MANAGED_NET_FORM, ManagedDisk, ManagedNet};
use crate::output::Output;
use crate::remote::{
    Connect, RemoteError, TaskArgs, fields, finish, guest_fields, show_one, shown_size, shown_time, spec_fields, table,
};
use crate::size::ByteSize;
use crate::vm::clone::CloneArgs;
use crate::vm::edit::EditArgs;
use crate::vm::transfer::{ExportArgs, ImportArgs};

/// Subcommands of `maru vm` that need `marud`.
#[derive(Debug, Subcommand)]
pub enum ManageCommand {
    /// List VMs
    List(ListArgs),
    /// Show a VM
    Show {
        /// Its name or id
        vm: String,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Create a VM; it is off
    Create(Box<CreateArgs>),
    /// Start VMs; those that are saved go on where they were
    Start(OperationArgs),
    /// Stop VMs: ask their guests to shut down, and end them by force when their time is over
    Stop(StopArgs),
    /// Reset VMs at once
    Reset(OperationArgs),
    /// Pause VMs
    Pause(OperationArgs),
    /// Let paused VMs go on
    Resume(OperationArgs),
    /// Look at a VM's console, and type
    Console(ConsoleArgs),
    /// Save VMs: their memory goes into files, and `start` lets them go on from there
    Save(OperationArgs),
    /// Checkpoints: states that a VM can go back to
    #[command(subcommand)]
    Checkpoint(CheckpointCommand),
    /// Drop what VMs were saved to: they are off then, as if their power had been cut
    Discard(OperationArgs),
    /// Explain where a VM of a cluster runs: what speaks for and against each host
    Explain(super::place::ExplainArgs),
    /// Move a VM to another host of the cluster
    Move(super::place::MoveArgs),
    /// Show or change what is wanted of the place of a VM in a cluster
    Placement(super::place::PlacementArgs),
    /// Delete VMs that are off
    Delete(DeleteArgs),
    /// Change a VM, also while it runs
    Edit(Box<EditArgs>),
    /// Change how much of the host a VM may have
    Limit(Box<LimitArgs>),
    /// Show what VMs have used, or have a meter begin anew
    Usage(UsageArgs),
    /// Make another VM like one that is off
    Clone(CloneArgs),
    /// Write a VM that is off to a directory
    Export(ExportArgs),
    /// Make a VM from a directory that one was exported to
    Import(ImportArgs),
}

/// How something is shown.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    pub connect: Connect,
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// `maru vm list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only VMs in this state
    #[arg(long, value_enum)]
    state: Option<StateOption>,
    #[command(flatten)]
    show: ShowArgs,
}

/// `--state`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum StateOption {
    /// Those that do not run
    Off,
    /// Those that run
    Running,
    /// Those that are paused
    Paused,
    /// Those that are saved
    Saved,
}

const CREATE_HELP: &str = "\
Files are in volumes of the host, which `maru volume list` shows: VOLUME:PATH.

EXAMPLES
  A system on a disk, with a network card on the virtual switch lan (maru switch create):
    maru vm create web --kernel local:vmlinuz --initrd local:initrd.img --cmdline 'root=/dev/vda1 ro' \\
        --disk local:web/root.vhdx --switch lan --cpus 2 --memory 2G
    maru vm start web

  A VM from an image (maru image import) that says what it boots, which cloud-init sets up at its first start; the same with a larger disk:
    maru vm create web --image debian12 --switch lan --user alice --ssh-key ~/.ssh/id_ed25519.pub
    maru vm create web --disk image=debian12,size=20G --net switch=lan,vlan=10

  The same with a new disk of 20 GiB, local:web/disk0.vhdx:
    maru vm create web --kernel local:vmlinuz --initrd local:initrd.img --disk size=20G --memory 2G --max-memory 8G";

/// `maru vm create`.
#[derive(Debug, Args)]
#[command(after_help = CREATE_HELP)]
pub struct CreateArgs {
    /// Its name
    name: String,
    /// The image that its first disk is made from
    #[arg(long)]
    image: Option<String>,
    /// Kernel to boot: a bzImage (vmlinuz), or an ELF kernel with a PVH entry (the image's when left out)
    #[arg(long, value_name = "VOLUME:PATH", default_value = "", hide_default_value = true)]
    kernel: String,
    /// Initial file system (initramfs)
    #[arg(long, value_name = "VOLUME:PATH")]
    initrd: Option<String>,
    /// Kernel command line; `console=` for the console is added if there is none
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    cmdline: String,
    /// A disk; may be given several times
    #[arg(long = "disk", value_name = MANAGED_DISK_FORM)]
    disks: Vec<ManagedDisk>,
    /// A network card on this virtual switch; may be given several times
    #[arg(long = "switch", value_name = "SWITCH")]
    switches: Vec<String>,
    /// A network card on a virtual switch or a TAP of the host, with more to say; may be given several times
    #[arg(long = "net", value_name = MANAGED_NET_FORM)]
    nets: Vec<ManagedNet>,
    /// Virtual CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Virtual CPUs that it may have later
    #[arg(long, value_name = "N")]
    max_cpus: Option<u32>,
    /// Memory, with the unit K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: ByteSize,
    /// Memory that it may have later, while it runs
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<ByteSize>,
    /// All that the guest may see of the processors, such as sse2,avx, on whichever host (see `maru-vmm --cpu-features`)
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    cpu_features: Option<Vec<String>>,
    /// Add a balloon, which gives memory that the guest does not use back to the host
    #[arg(long)]
    balloon: bool,
    /// No port for a guest agent
    #[arg(long)]
    no_guest_agent: bool,
    #[command(flatten)]
    cloud_init: CloudInitArgs,
    /// Whether to start it with its host, how long after the one before it, and in which order
    #[arg(long, value_name = AUTO_START_FORM)]
    auto_start: Option<AutoStartOption>,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    show: ShowArgs,
}

/// An operation on VMs.
#[derive(Debug, Args)]
pub struct OperationArgs {
    /// Their names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
    #[command(flatten)]
    task: TaskArgs,
}

/// `maru vm stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Their names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
    /// End it at once, as if its power were cut
    #[arg(long, conflicts_with = "grace")]
    force: bool,
    /// How long its guest has to shut down, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    grace: u32,
    #[command(flatten)]
    task: TaskArgs,
}

/// `maru vm delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Their names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
    /// What happens to the files of its disks; needed if it has disks
    #[arg(long, value_enum)]
    disks: Option<DisksOption>,
    #[command(flatten)]
    task: TaskArgs,
}

/// `--disks`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DisksOption {
    /// They stay
    Keep,
    /// They are deleted, too
    Delete,
}

/// Does it.
pub fn run(command: ManageCommand) -> Result<(), RemoteError> {
    match command {
        ManageCommand::List(args) => list(&args),
        ManageCommand::Show { vm, show } => {
            let vm = show.connect.client()?.get(&format!("/vms/{}", segment(&vm)))?;
            show_one(show.output, &vm, || described(&vm))
        }
        ManageCommand::Create(args) => create(*args),
        ManageCommand::Start(args) => operate(Method::POST, &args.vms, "/start", &args.task),
        ManageCommand::Reset(args) => operate(Method::POST, &args.vms, "/reset", &args.task),
        ManageCommand::Pause(args) => operate(Method::POST, &args.vms, "/pause", &args.task),
        ManageCommand::Resume(args) => operate(Method::POST, &args.vms, "/resume", &args.task),
        ManageCommand::Console(args) => console::run(&args),
        ManageCommand::Save(args) => operate(Method::POST, &args.vms, "/save", &args.task),
        ManageCommand::Checkpoint(command) => super::checkpoint::run(command),
        ManageCommand::Discard(args) => operate(Method::POST, &args.vms, "/discard-saved", &args.task),
        ManageCommand::Stop(StopArgs { vms, force: true, task, .. }) => operate(Method::POST, &vms, "/stop?force=true", &task),
        ManageCommand::Stop(StopArgs { vms, grace, task, .. }) => {
            operate(Method::POST, &vms, &format!("/stop?grace={grace}"), &task)
        }
        ManageCommand::Explain(args) => super::place::explain(&args),
        ManageCommand::Move(args) => super::place::move_vm(&args),
        ManageCommand::Placement(args) => super::place::placement(&args),
        ManageCommand::Edit(args) => super::edit::run(*args),
        ManageCommand::Limit(args) => limit::run(&args),
        ManageCommand::Usage(args) => usage::run(&args),
        ManageCommand::Clone(args) => super::clone::run(args),
        ManageCommand::Export(args) => super::transfer::export(args),
        ManageCommand::Import(args) => super::transfer::import(args),
        ManageCommand::Delete(DeleteArgs { vms, disks, task }) => {
            let what = match disks {
                None => "",
                Some(DisksOption::Keep) => "?disks=keep",
                Some(DisksOption::Delete) => "?disks=delete",
            };
            operate(Method::DELETE, &vms, what, &task)
        }
    }
}

/// Asks for an operation on all of the VMs before it waits for any: they do not wait for each other. One that is refused or fails stops none
/// of the others.
fn operate(method: Method, vms: &[String], what: &str, args: &TaskArgs) -> Result<(), RemoteError> {
    let client = args.connect.client()?;
    let ask = |vm: &String| client.call(method.clone(), &format!("/vms/{}{what}", segment(vm)), None::<&()>);
    if let [vm] = vms {
        return finish(&client, ask(vm)?, args);
    }
    let asked: Vec<_> = vms.iter().map(ask).collect();
    let ends = asked.into_iter().map(|task| finish(&client, task?, args));
    let mut failed = 0;
    for (vm, end) in vms.iter().zip(ends) {
        match end {
            Err(error) if !error.is_broken_pipe() => {
                eprintln!("{vm}: {}", vmm::error_chain(&error));
                failed += 1;
            }
            end => end?,
        }
    }
    if failed > 0 { Err(RemoteError::NotAll { failed, of: vms.len() }) } else { Ok(()) }
}

/// A name as a part of an address.
pub fn segment(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn list(args: &ListArgs) -> Result<(), RemoteError> {
    let path = match args.state {
        None => "/vms",
        Some(StateOption::Off) => "/vms?state=off",
        Some(StateOption::Running) => "/vms?state=running",
        Some(StateOption::Paused) => "/vms?state=paused",
        Some(StateOption::Saved) => "/vms?state=saved",
    };
    let vms: Vec<api::Vm> = args.show.connect.client()?.list(path)?;
    show_one(args.show.output, &vms, || {
        let row = |vm: &api::Vm| {
            // What runs it, or in a cluster, where.
            let place = vm.host.clone().or(vm.pid.map(|pid| pid.to_string())).unwrap_or_else(|| "-".into());
            let memory = shown_size(vm.spec.memory_bytes);
            [vm.spec.name.clone(), vm.state.to_string(), vm.spec.cpus.to_string(), memory, place, vm.id.to_string()]
        };
        let place = if vms.iter().any(|vm| vm.host.is_some()) { "HOST" } else { "PID" };
        table(["NAME", "STATE", "CPUS", "MEMORY", place, "ID"], vms.iter().map(row))
    })
}

fn create(args: CreateArgs) -> Result<(), RemoteError> {
    let on_switches = args.switches.into_iter().map(|switch| api::Net { switch: Some(switch), ..api::Net::default() });
    let first = args.image.map(|image| api::Disk { image: Some(image), ..api::Disk::default() });
    let spec = api::VmSpec {
        name: args.name,
        cpus: args.cpus,
        max_cpus: args.max_cpus,
        memory_bytes: args.memory.0,
        max_memory_bytes: args.max_memory.map(|size| size.0),
        cpu_features: args.cpu_features.map(|names| names.into_iter().collect()),
        boot: api::Boot { kernel: args.kernel, initrd: args.initrd, command_line: args.cmdline },
        disks: first.into_iter().chain(args.disks.into_iter().map(|disk| disk.0)).collect(),
        nets: on_switches.chain(args.nets.into_iter().map(|net| net.0)).collect(),
        console: api::Console::default(),
        balloon: args.balloon,
        guest_agent: !args.no_guest_agent,
        cloud_init: args.cloud_init.read()?,
        balloon_bytes: 0,
        auto_start: args.auto_start.map(|option| option.0).unwrap_or_default(),
        resources: args.limits.resources(),
    };
    let vm: api::Vm = args.show.connect.client()?.call(Method::POST, "/vms", Some(&spec))?;
    show_one(args.show.output, &vm, || format!("{}: created, {}\n", vm.spec.name, vm.id))
}

fn described(vm: &api::Vm) -> String {
    let mut shown = vec![("name", vm.spec.name.clone()), ("id", vm.id.to_string()), ("state", vm.state.to_string())];
    shown.extend(vm.pid.map(|pid| ("process", pid.to_string())));
    shown.extend(vm.guest.iter().flat_map(guest_fields));
    shown.extend(spec_fields(&vm.spec));
    for chain in &vm.chains {
        let files = chain.files.iter().map(|it| format!("{} ({})", it.file, shown_size(it.bytes)));
        shown.push(("chain", format!("{}: {}", chain.disk, files.collect::<Vec<_>>().join(" on "))));
    }
    shown.push(("created", shown_time(vm.created_at)));
    shown.extend(vm.started_at.map(|at| ("started", shown_time(at))));
    shown
        .extend(vm.saved.as_ref().map(|it| ("saved", format!("{}, {} in {}", shown_time(it.at), shown_size(it.bytes), it.file))));
    shown.extend(vm.last_end.as_ref().map(|end| ("last end", format!("{}, {}", shown_time(end.at), end.reason))));
    fields(&shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leaves_its_place_in_the_address() {
        assert_eq!(segment("web-1.a_B"), "web-1.a_B");
        assert_eq!(segment("../tokens/x?y#z é"), "..%2Ftokens%2Fx%3Fy%23z%20%C3%A9");
    }
}
