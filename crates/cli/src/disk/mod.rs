//! `maru disk`: disks that are files: made, looked at, converted. One file for each verb; the work is done by `disk::tool`.

mod attach;
mod check;
mod compact;
mod compare;
mod convert;
mod copy;
mod create;
mod format;
mod info;
mod map;
mod merge;
mod progress;
mod rebase;
mod resize;

use std::process::ExitCode;

use clap::Subcommand;

/// Subcommands of `maru disk`.
#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Make a new, empty disk
    Create(create::CreateArgs),
    /// Show what a disk is
    Info(info::InfoArgs),
    /// Look for damage, and repair it
    Check(check::CheckArgs),
    /// Copy a disk into a new one of any format
    Convert(convert::ConvertArgs),
    /// Give a disk another size
    Resize(resize::ResizeArgs),
    /// Compare what two disks hold
    Compare(compare::CompareArgs),
    /// Show where each part of a disk is
    Map(map::MapArgs),
    /// Write what a child holds into its parent
    Merge(merge::MergeArgs),
    /// Make an image's file as small as what it holds
    Compact(compact::CompactArgs),
    /// Give a child another parent
    Rebase(rebase::RebaseArgs),
    /// Copy a disk's file as it is
    Copy(copy::CopyArgs),
    /// Make a disk a block device of this machine
    Attach(attach::AttachArgs),
    /// Take the block device of a disk away again
    Detach(attach::DetachArgs),
}

/// Does it; answers the exit status.
pub fn run(command: DiskCommand) -> anyhow::Result<ExitCode> {
    match command {
        DiskCommand::Create(args) => create::run(args)?,
        DiskCommand::Info(args) => info::run(&args)?,
        DiskCommand::Check(args) => return Ok(check::run(&args)?),
        DiskCommand::Convert(args) => convert::run(args)?,
        DiskCommand::Resize(args) => resize::run(&args)?,
        DiskCommand::Compare(args) => return compare::run(&args),
        DiskCommand::Map(args) => map::run(&args)?,
        DiskCommand::Merge(args) => merge::run(&args)?,
        DiskCommand::Compact(args) => compact::run(&args)?,
        DiskCommand::Rebase(args) => rebase::run(&args)?,
        DiskCommand::Copy(args) => copy::run(&args)?,
        DiskCommand::Attach(args) => return attach::attach(&args),
        DiskCommand::Detach(args) => attach::detach(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}
