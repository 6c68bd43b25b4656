//! `maru disk info`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use disk::tool::{self, DiskInfo, ParentInfo};
use disk::{Access, Holder};
use serde::Serialize;

use super::format::FormatName;
use crate::output::{Output, print};
use crate::size::ByteSize;

const AFTER_HELP: &str = "\
EXAMPLES
  maru disk info root.vhdx
  maru disk info root.vhdx -o json | jq '.[].virtual_size'";

/// Show what a disk is, with all its parents
///
/// Only reads, and takes no lock: the disk may be in use.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct InfoArgs {
    /// The disk
    path: PathBuf,
    /// What the file means (by its extension when left out)
    #[arg(long, value_enum)]
    format: Option<FormatName>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Prints what the disk is.
pub fn run(args: &InfoArgs) -> anyhow::Result<()> {
    let chain = tool::info(&args.path, FormatName::or_extension(args.format, &args.path))?;
    let views: Vec<_> = chain.iter().map(View::from).collect();
    let text = || chain.iter().map(render).collect::<Vec<_>>().join("\n");
    Ok(print(&args.output.render(&views, text)?)?)
}

fn render(disk: &DiskInfo) -> String {
    let mut text = format!("{}\n", disk.path.display());
    let mut line = |name: &str, value: String| {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "  {:<16}{value}", format!("{name}:"));
    };
    let kind = disk.disk_type.map(|it| format!(", {it}")).unwrap_or_default();
    line("format", format!("{}{kind}", disk.format));
    line("virtual size", exact(disk.virtual_size));
    line("on disk", format!("{} (file of {})", ByteSize(disk.disk_usage), ByteSize(disk.file_size)));
    if let Some(usage) = &disk.usage {
        let how = if usage.access == Access::ReadWrite { "" } else { " (read-only)" };
        line("in use by", format!("{}{how}", usage.holder));
    }
    if let Some(image) = &disk.image {
        if let (Some(size), Some(count)) = (image.block_size, image.allocated_blocks) {
            line("block size", format!("{}, {count} blocks in the file", ByteSize(size.into())));
        }
        line("sector size", format!("{} bytes (physical {})", image.logical_sector_size, image.physical_sector_size));
        line("disk id", image.disk_id.clone());
        if let Some(id) = &image.data_id {
            line("data id", id.clone());
        }
        if let Some(size) = image.log_size {
            let log = if image.log_in_use { "holds changes" } else { "empty" };
            line("log", format!("{log}, {}", ByteSize(size.into())));
        }
        if let Some(parent) = &image.parent {
            line("parent", parent_text(parent));
        }
    }
    text
}

fn parent_text(parent: &ParentInfo) -> String {
    let named = || parent.relative_path.as_deref().or(parent.absolute_path.as_deref()).unwrap_or("?").to_owned();
    match &parent.found {
        None => format!("{} (not found; name its new place with maru disk rebase --unsafe)", named()),
        Some(path) if parent.fits => path.display().to_string(),
        Some(path) => format!("{} (it was changed since, or is another disk)", path.display()),
    }
}

fn exact(bytes: u64) -> String {
    if bytes < 1024 { ByteSize(bytes).to_string() } else { format!("{} ({bytes} bytes)", ByteSize(bytes)) }
}

/// As JSON.
#[derive(Serialize)]
struct View<'a> {
    path: String,
    format: &'static str,
    #[serde(rename = "type")]
    disk_type: Option<String>,
    virtual_size: u64,
    disk_usage: u64,
    file_size: u64,
    in_use: Option<UsageView<'a>>,
    image: Option<ImageView<'a>>,
}

#[derive(Serialize)]
struct UsageView<'a> {
    pid: Option<u32>,
    name: Option<&'a str>,
    read_only: bool,
}

#[derive(Serialize)]
struct ImageView<'a> {
    block_size: Option<u32>,
    logical_sector_size: u32,
    physical_sector_size: u32,
    disk_id: &'a str,
    data_id: Option<&'a str>,
    allocated_blocks: Option<u64>,
    log_size: Option<u32>,
    log_in_use: bool,
    parent: Option<ParentView<'a>>,
}

#[derive(Serialize)]
struct ParentView<'a> {
    relative_path: Option<&'a str>,
    absolute_path: Option<&'a str>,
    data_id: &'a str,
    found: Option<String>,
    fits: bool,
}

impl<'a> From<&'a DiskInfo> for View<'a> {
    fn from(disk: &'a DiskInfo) -> View<'a> {
        View {
            path: disk.path.display().to_string(),
            format: FormatName::of(disk.format),
            disk_type: disk.disk_type.map(|it| it.to_string()),
            virtual_size: disk.virtual_size,
            disk_usage: disk.disk_usage,
            file_size: disk.file_size,
            in_use: disk.usage.as_ref().map(|usage| {
                let (pid, name) = match &usage.holder {
                    Holder::Process { pid, name } => (Some(*pid), Some(name.as_str())),
                    Holder::Unknown => (None, None),
                };
                UsageView { pid, name, read_only: usage.access == Access::ReadOnly }
            }),
            image: disk.image.as_ref().map(|image| ImageView {
                block_size: image.block_size,
                logical_sector_size: image.logical_sector_size,
                physical_sector_size: image.physical_sector_size,
                disk_id: &image.disk_id,
                data_id: image.data_id.as_deref(),
                allocated_blocks: image.allocated_blocks,
                log_size: image.log_size,
                log_in_use: image.log_in_use,
                parent: image.parent.as_ref().map(|parent| ParentView {
                    relative_path: parent.relative_path.as_deref(),
                    absolute_path: parent.absolute_path.as_deref(),
                    data_id: &parent.data_id,
                    found: parent.found.as_ref().map(|it| it.display().to_string()),
                    fits: parent.fits,
                }),
            }),
        }
    }
}
