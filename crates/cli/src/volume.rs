//! `maru volume`: where a host keeps files of VMs.

use api::client::Method;
use clap::{Args, Subcommand};

use crate::output::Output;
use crate::remote::{Connect, RemoteError, fields, show_one, shown_size, table};

const AFTER_HELP: &str = "\
A file in a volume is written VOLUME:PATH, like local:web/root.vhdx. Thin disks take space as they are written: what they would take if they
were full is provisioned, and may be more than there is. Alarms say in time when that becomes a problem.

EXAMPLES
  A file system that is mounted at /srv/big, with a warning from 70 % on:
    maru volume create big /srv/big --warning 70%
    maru volume show big";

/// Subcommands of `maru volume`.
#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub enum VolumeCommand {
    /// List volumes, with their space
    List(ShowArgs),
    /// Show a volume
    Show {
        /// Its name
        volume: String,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Make a directory of the host a volume; whoever may create VMs can use all files in it
    Create {
        /// Its name: letters, digits, '-' and '_'
        name: String,
        /// The directory, from / on; it must be there
        path: String,
        /// All hosts of the cluster see the same files there, as in a mounted share: VMs can run on any of them then
        #[arg(long)]
        shared: bool,
        #[command(flatten)]
        alarms: AlarmArgs,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Change when a volume's alarms come
    Edit {
        /// Its name
        volume: String,
        #[command(flatten)]
        alarms: AlarmArgs,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Give up a volume that no VM uses; its files stay
    Delete {
        /// Its name
        volume: String,
        #[command(flatten)]
        connect: Connect,
    },
}

/// When alarms come.
#[derive(Debug, Args)]
pub struct AlarmArgs {
    /// From how much of it on there is a warning (80%)
    #[arg(long, value_name = "PERCENT%", value_parser = percent)]
    warning: Option<u8>,
    /// From how much of it on it is nearly full (95%)
    #[arg(long, value_name = "PERCENT%", value_parser = percent)]
    critical: Option<u8>,
}

/// How something is shown.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    connect: Connect,
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok();
    number.filter(|number| (1..=100).contains(number)).ok_or_else(|| format!("'{text}' is no part of a volume: write 80%"))
}

/// Does it.
pub fn run(command: &VolumeCommand) -> Result<(), RemoteError> {
    match command {
        VolumeCommand::List(args) => list(args),
        VolumeCommand::Show { volume, show } => {
            let volume = show.connect.client()?.get(&format!("/volumes/{volume}"))?;
            show_one(show.output, &volume, || described(&volume))
        }
        VolumeCommand::Create { name, path, shared, alarms, show } => {
            let wanted = api::NewVolume {
                name: name.clone(),
                path: path.clone(),
                shared: *shared,
                warning_percent: alarms.warning,
                critical_percent: alarms.critical,
            };
            let volume = show.connect.client()?.call(Method::POST, "/volumes", Some(&wanted))?;
            show_one(show.output, &volume, || described(&volume))
        }
        VolumeCommand::Edit { volume, alarms, show } => {
            let wanted = api::VolumeChange { warning_percent: alarms.warning, critical_percent: alarms.critical };
            let volume = show.connect.client()?.call(Method::PATCH, &format!("/volumes/{volume}"), Some(&wanted))?;
            show_one(show.output, &volume, || described(&volume))
        }
        VolumeCommand::Delete { volume, connect } => {
            Ok(connect.client()?.call(Method::DELETE, &format!("/volumes/{volume}"), None::<&()>)?)
        }
    }
}

fn list(args: &ShowArgs) -> Result<(), RemoteError> {
    let volumes: Vec<api::Volume> = args.connect.client()?.list("/volumes")?;
    show_one(args.output, &volumes, || {
        let row = |volume: &api::Volume| {
            let sizes = [volume.total_bytes, volume.free_bytes, volume.allocated_bytes, volume.provisioned_bytes].map(shown_size);
            let [total, free, allocated, provisioned] = sizes;
            let state = volume.error.as_ref().map_or_else(|| volume.level.to_string(), |_| "not there".into());
            [volume.name.clone(), state, total, free, allocated, provisioned, volume.path.clone()]
        };
        table(["NAME", "STATE", "SIZE", "FREE", "DISKS TAKE", "PROVISIONED", "PATH"], volumes.iter().map(row))
    })
}

fn described(volume: &api::Volume) -> String {
    let mut shown = vec![
        ("name", volume.name.clone()),
        ("path", volume.path.clone()),
        ("from", if volume.managed { "the API" } else { "marud's command line" }.into()),
        ("state", volume.level.to_string()),
    ];
    shown.extend(volume.error.clone().map(|error| ("error", error)));
    let provisioned =
        format!("{}, {:.0} % of what there is for disks", shown_size(volume.provisioned_bytes), volume.provisioned_percent);
    shown.extend([
        ("size", shown_size(volume.total_bytes)),
        ("free", shown_size(volume.free_bytes)),
        ("disks take", shown_size(volume.allocated_bytes)),
        ("provisioned", provisioned),
        ("alarms", format!("a warning at {} %, nearly full at {} %", volume.warning_percent, volume.critical_percent)),
    ]);
    fields(&shown)
}
