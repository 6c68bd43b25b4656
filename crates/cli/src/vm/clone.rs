//! `maru vm clone`.

use api::client::Method;
use clap::Args;

use super::manage::segment;
use crate::remote::{RemoteError, TaskArgs, finish};

const AFTER_HELP: &str = "\
EXAMPLES
  A second web server, and another one whose disks are in the volume fast:
    maru vm clone web web2
    maru vm clone web web3 --volume fast

  Ten desktops that share what they have in common:
    for i in 1 2 3 4 5 6 7 8 9 10; do maru vm clone master desk$i --linked; done

The new VM's disks are whole copies, in a directory of its name. On XFS and Btrfs they share their data until it is changed, and are there at
once. Its network cards have addresses of their own, and the TAPs of the other one's: give it others before both run (maru vm edit).";

/// `maru vm clone`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct CloneArgs {
    /// The VM to copy, by its name or id
    vm: String,
    /// The new VM's name
    name: String,
    /// Copy nothing: both go on in new files on top of what each disk is now
    #[arg(long)]
    linked: bool,
    /// The volume for its disks (where each disk is now when left out)
    #[arg(long)]
    volume: Option<String>,
    #[command(flatten)]
    task: TaskArgs,
}

/// Clones it.
pub fn run(args: CloneArgs) -> Result<(), RemoteError> {
    let client = args.task.connect.client()?;
    let wanted = api::CloneVm { name: args.name, linked: args.linked, volume: args.volume };
    let task = client.call(Method::POST, &format!("/vms/{}/clone", segment(&args.vm)), Some(&wanted))?;
    finish(&client, task, &args.task)
}
