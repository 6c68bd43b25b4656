//! `maru image`: disks that VMs are made from.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use api::client::Method;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::ProgressBar;

use crate::output::{Output, new_bar};
use crate::remote::{Connect, RemoteError, TaskArgs, fields, finish, show_one, shown_size, shown_time, table};
use crate::vm::manage::segment;

const AFTER_HELP: &str = "\
An image is a disk that nobody changes. VMs that are made from it share it: each takes space for what it writes.

EXAMPLES
  A cloud image that is on this machine, with what VMs boot that are made from it; and two VMs:
    maru image upload debian12 debian-12-genericcloud-amd64.qcow2 \\
        --kernel local:vmlinuz --initrd local:initrd.img --cmdline 'root=/dev/vda1 ro'
    maru vm create web --image debian12
    maru vm create db --disk image=debian12,size=50G

  One that is in a volume of the host already, with its checksum:
    maru image import debian12 local:debian-12.qcow2 --sha256 $(cut -d' ' -f1 debian-12.qcow2.sha256)";

/// Subcommands of `maru image`.
#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub enum ImageCommand {
    /// List images
    List(ListArgs),
    /// Show an image, and the VMs that are based on it
    Show {
        /// Its name or id
        image: String,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Make an image from a file in a volume, which stays as it is
    Import(ImportArgs),
    /// Make an image from a file of this machine
    Upload(UploadArgs),
    /// Change an image's name, its description, or what VMs boot that are made from it
    Edit(EditArgs),
    /// Delete images that no VM is based on
    Delete {
        /// Their names or ids
        #[arg(required = true, value_name = "IMAGE")]
        image: Vec<String>,
        #[command(flatten)]
        connect: Connect,
    },
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

/// `maru image list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those in this volume
    #[arg(long)]
    volume: Option<String>,
    #[command(flatten)]
    show: ShowArgs,
}

/// What an image is to be.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// The volume for the image
    #[arg(long)]
    volume: Option<String>,
    /// What SHA-256 of the file must be
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// What the file means (found out by what is in it when left out)
    #[arg(long, value_enum)]
    format: Option<FormatOption>,
    /// What it is, for people
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
    #[command(flatten)]
    boot: BootArgs,
}

/// What VMs boot that are made from it and say nothing else.
#[derive(Debug, Args)]
pub struct BootArgs {
    /// The kernel of VMs that are made from it, if they name none
    #[arg(long, value_name = "VOLUME:PATH")]
    kernel: Option<String>,
    /// Their initial file system
    #[arg(long, value_name = "VOLUME:PATH", requires = "kernel")]
    initrd: Option<String>,
    /// Their kernel command line
    #[arg(long, value_name = "TEXT", requires = "kernel", allow_hyphen_values = true)]
    cmdline: Option<String>,
}

impl BootArgs {
    fn boot(&self) -> Option<api::Boot> {
        let command_line = self.cmdline.clone().unwrap_or_default();
        self.kernel.clone().map(|kernel| api::Boot { kernel, initrd: self.initrd.clone(), command_line })
    }
}

/// `--format`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FormatOption {
    /// The file is the disk
    Raw,
    /// QEMU's
    Qcow2,
    /// VMware's, in one file
    Vmdk,
    /// A VHD image
    Vhd,
    /// A VHDX image
    Vhdx,
}

impl From<FormatOption> for api::ImageFormat {
    fn from(format: FormatOption) -> api::ImageFormat {
        match format {
            FormatOption::Raw => api::ImageFormat::Raw,
            FormatOption::Qcow2 => api::ImageFormat::Qcow2,
            FormatOption::Vmdk => api::ImageFormat::Vmdk,
            FormatOption::Vhd => api::ImageFormat::Vhd,
            FormatOption::Vhdx => api::ImageFormat::Vhdx,
        }
    }
}

/// `maru image import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The new image's name
    name: String,
    /// The file: raw, qcow2, VMDK, VHD or VHDX, a disk that needs no other file
    #[arg(value_name = "VOLUME:PATH")]
    source: String,
    #[command(flatten)]
    new: NewArgs,
    #[command(flatten)]
    task: TaskArgs,
}

/// `maru image upload`.
#[derive(Debug, Args)]
pub struct UploadArgs {
    /// The new image's name
    name: String,
    /// The file: raw, qcow2, VMDK, VHD or VHDX, a disk that needs no other file
    file: PathBuf,
    #[command(flatten)]
    new: NewArgs,
    #[command(flatten)]
    task: TaskArgs,
}

/// `maru image edit`.
#[derive(Debug, Args)]
pub struct EditArgs {
    /// Its name or id
    image: String,
    /// Another name
    #[arg(long)]
    name: Option<String>,
    /// What it is, for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// VMs that are made from it have to name their kernel
    #[arg(long, conflicts_with = "kernel")]
    no_boot: bool,
    #[command(flatten)]
    boot: BootArgs,
    #[command(flatten)]
    show: ShowArgs,
}

/// Does it.
pub fn run(command: ImageCommand) -> Result<(), RemoteError> {
    match command {
        ImageCommand::List(args) => list(&args),
        ImageCommand::Show { image, show } => {
            let image = show.connect.client()?.get(&path(&image))?;
            show_one(show.output, &image, || described(&image))
        }
        ImageCommand::Import(args) => import(args),
        ImageCommand::Upload(args) => upload(&args),
        ImageCommand::Edit(args) => edit(args),
        ImageCommand::Delete { image, connect } => {
            let client = connect.client()?;
            image.iter().try_for_each(|image| Ok(client.call(Method::DELETE, &path(image), None::<&()>)?))
        }
    }
}

fn path(image: &str) -> String {
    format!("/images/{}", segment(image))
}

fn list(args: &ListArgs) -> Result<(), RemoteError> {
    let only = args.volume.as_deref().map_or_else(String::new, |volume| format!("?volume={}", segment(volume)));
    let images: Vec<api::Image> = args.show.connect.client()?.list(&format!("/images{only}"))?;
    show_one(args.show.output, &images, || {
        let row = |image: &api::Image| {
            let [size, takes] = [image.virtual_bytes, image.file_bytes].map(shown_size);
            [image.name.clone(), image.volume.clone(), size, takes, image.vms.len().to_string(), image.description.clone()]
        };
        table(["NAME", "VOLUME", "SIZE", "TAKES", "VMS", "DESCRIPTION"], images.iter().map(row))
    })
}

fn import(args: ImportArgs) -> Result<(), RemoteError> {
    let client = args.task.connect.client()?;
    let wanted = api::NewImage {
        name: args.name,
        source: args.source,
        boot: args.new.boot.boot(),
        volume: args.new.volume,
        sha256: args.new.sha256,
        format: args.new.format.map(Into::into),
        description: args.new.description,
    };
    let task = client.call(Method::POST, "/images", Some(&wanted))?;
    finish(&client, task, &args.task)
}

fn upload(args: &UploadArgs) -> Result<(), RemoteError> {
    let client = args.task.connect.client()?;
    let unusable = |source| RemoteError::File { path: args.file.clone(), source };
    let (file, bytes) = open(&args.file).map_err(unusable)?;
    let new = &args.new;
    let format = new.format.map(|format| serde_json::to_value(api::ImageFormat::from(format))).transpose()?;
    let description = Some(new.description.clone()).filter(|text| !text.is_empty());
    let parameters = [
        ("volume", new.volume.clone()),
        ("sha256", new.sha256.clone()),
        ("format", format.and_then(|format| format.as_str().map(String::from))),
        ("description", description),
        ("kernel", new.boot.kernel.clone()),
        ("initrd", new.boot.initrd.clone()),
        ("command_line", new.boot.cmdline.clone()),
    ];
    let given = parameters.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", segment(&value?))));
    let query = given.collect::<Vec<_>>().join("&");
    let bar = new_bar(bytes);
    let sent = client.upload::<api::Task>(&format!("{}?{query}", path(&args.name)), Shown { file, bar: bar.clone() }, bytes);
    bar.finish_and_clear();
    let (task, sent) = sent?;
    finish(&client, task, &args.task)?;
    if !args.task.no_wait {
        let image: api::Image = client.get(&path(&args.name))?;
        if image.sha256 != sent {
            return Err(RemoteError::NotWhatWasSent { found: image.sha256, sent });
        }
    }
    Ok(())
}

fn open(path: &Path) -> std::io::Result<(File, u64)> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

/// A file that shows how much of it was read.
struct Shown {
    file: File,
    bar: ProgressBar,
}

impl Read for Shown {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.bar.inc(length as u64);
        Ok(length)
    }
}

fn edit(args: EditArgs) -> Result<(), RemoteError> {
    let boot = if args.no_boot { Some(None) } else { args.boot.boot().map(Some) };
    let change = api::ImageChange { name: args.name, description: args.description, boot };
    if change == api::ImageChange::default() {
        return Err(RemoteError::NothingToDo);
    }
    let image = args.show.connect.client()?.call(Method::PATCH, &path(&args.image), Some(&change))?;
    show_one(args.show.output, &image, || described(&image))
}

fn described(image: &api::Image) -> String {
    let mut shown = vec![("name", image.name.clone()), ("id", image.id.to_string())];
    if !image.description.is_empty() {
        shown.push(("description", image.description.clone()));
    }
    shown.extend([
        ("file", image.file.clone()),
        ("size", shown_size(image.virtual_bytes)),
        ("takes", shown_size(image.file_bytes)),
        ("made from", format!("{} ({}, {})", image.source, image.source_format, shown_size(image.source_bytes))),
        ("SHA-256", image.sha256.clone()),
        ("created", format!("{}, by {}", shown_time(image.created_at), image.created_by)),
    ]);
    if let Some(boot) = &image.boot {
        shown.push(("kernel", boot.kernel.clone()));
        shown.extend(boot.initrd.clone().map(|initrd| ("initrd", initrd)));
        shown.push(("command line", boot.command_line.clone()));
    }
    if !image.vms.is_empty() {
        shown.push(("VMs", image.vms.join(", ")));
    }
    shown.extend(image.error.clone().map(|error| ("error", error)));
    fields(&shown)
}
