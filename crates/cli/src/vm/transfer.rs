//! `maru vm export` and `maru vm import`.

use api::client::Method;
use clap::Args;

use super::manage::segment;
use crate::remote::{RemoteError, TaskArgs, finish};

const EXPORT_HELP: &str = "\
EXAMPLES
  To take it to another host:
    maru vm export web local:exports/web
    rsync -aS /var/lib/maru/volumes/local/exports/web/ h2:/var/lib/maru/volumes/local/exports/web/
    maru vm import local:exports/web --context h2

The directory has the kernel, each disk as one file, and manifest.json with the VM's specification and the checksums of all files.";

/// `maru vm export`.
#[derive(Debug, Args)]
#[command(after_help = EXPORT_HELP)]
pub struct ExportArgs {
    /// Its name or id
    vm: String,
    /// The directory to make
    #[arg(value_name = "VOLUME:PATH")]
    to: String,
    #[command(flatten)]
    task: TaskArgs,
}

const IMPORT_HELP: &str = "\
EXAMPLES
  A copy of it, under another name:
    maru vm import local:exports/web --name web2

  With its files where they are:
    maru vm import local:exports/web --register";

/// `maru vm import`.
#[derive(Debug, Args)]
#[command(after_help = IMPORT_HELP)]
pub struct ImportArgs {
    /// The directory
    #[arg(value_name = "VOLUME:PATH")]
    from: String,
    /// Its name here (as it was when left out)
    #[arg(long)]
    name: Option<String>,
    /// Use its files where they are, instead of copies
    #[arg(long, conflicts_with = "volume")]
    register: bool,
    /// The volume for the copies (that of the directory when left out)
    #[arg(long)]
    volume: Option<String>,
    #[command(flatten)]
    task: TaskArgs,
}

/// Exports a VM.
pub fn export(args: ExportArgs) -> Result<(), RemoteError> {
    let client = args.task.connect.client()?;
    let wanted = api::ExportVm { to: args.to };
    let task = client.call(Method::POST, &format!("/vms/{}/export", segment(&args.vm)), Some(&wanted))?;
    finish(&client, task, &args.task)
}

/// Imports one.
pub fn import(args: ImportArgs) -> Result<(), RemoteError> {
    let client = args.task.connect.client()?;
    let mode = if args.register { api::ImportMode::Register } else { api::ImportMode::Copy };
    let wanted = api::ImportVm { from: args.from, name: args.name, mode, volume: args.volume };
    let task = client.call(Method::POST, "/vms/import", Some(&wanted))?;
    finish(&client, task, &args.task)
}
