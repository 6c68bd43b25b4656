//! Layers of a running VM's disks: their files are made and opened here, and handed over.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use disk::{Access, Disk, Format, OpenOptions, tool};
use vmm::config::{DiskConfig, VmConfig};
use vmm::control::{Client, ClientError, LayersReport, MAX_FDS, MergedReport, NewLayer, ReplacedReport, Request, Status};

use super::ControlError;
use super::args::LayerOption;

/// Makes files that are children of what disks are now, and has the disks go on in them.
pub fn add(client: &mut Client, options: Vec<LayerOption>) -> Result<(), ControlError> {
    let config: VmConfig = client.call(&Request::Config, &[])?;
    let mut made = Vec::new();
    let added = make_and_add(client, &config, options, &mut made);
    // Once a monitor that ended may have used them, they stay.
    if !matches!(added, Ok(()) | Err(ControlError::Client(ClientError::Io(_) | ClientError::Gone | ClientError::Unexpected(_)))) {
        made.iter().for_each(|layer: &NewLayer| drop(std::fs::remove_file(&layer.path)));
    }
    added
}

fn make_and_add(
    client: &mut Client,
    config: &VmConfig,
    options: Vec<LayerOption>,
    made: &mut Vec<NewLayer>,
) -> Result<(), ControlError> {
    let mut files = Vec::new();
    for LayerOption { id, path } in options {
        let disk = find(config, &id)?;
        // What is no VHDX disk is refused by the monitor, which knows.
        tool::create_layer(&path, &disk.path)?;
        let failed = |what| {
            let path = path.clone();
            move |source| ControlError::File { what, path, source }
        };
        made.push(NewLayer { id, path: path.clone() });
        if let Some(layer) = made.last_mut() {
            layer.path = path.canonicalize().map_err(failed("looking for"))?;
        }
        files.push(File::options().read(true).write(true).open(&path).map_err(failed("opening"))?);
    }
    let fds: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let report: LayersReport = client.call(&Request::AddLayers { layers: made.clone() }, &fds)?;
    eprintln!("done in {} ms", report.took_ms);
    Ok(())
}

/// Opens a chain, and has a disk read it below its own file.
pub fn replace_parents(client: &mut Client, id: String, parent: &Path) -> Result<(), ControlError> {
    let options = OpenOptions { format: Format::Vhdx, access: Access::ReadOnly, ..OpenOptions::default() };
    let parent =
        parent.canonicalize().map_err(|source| ControlError::File { what: "looking for", path: parent.to_owned(), source })?;
    let (parents, files): (Vec<_>, Vec<_>) = Disk::open_files(&parent, options)?.into_iter().unzip();
    if files.len() > MAX_FDS {
        return Err(ControlError::ChainTooLong { path: parent, files: files.len() });
    }
    let fds: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let report: ReplacedReport = client.call(&Request::ReplaceParents { id, parents }, &fds)?;
    eprintln!("done; the guest's requests waited for {} ms", report.held_ms);
    Ok(())
}

/// Opens the parent of a disk, and has the disk go on in it.
pub fn merge_leaf(client: &mut Client, id: String, most_bytes: Option<u64>) -> Result<(), ControlError> {
    let status: Status = client.call(&Request::Status, &[])?;
    let device = status.devices.iter().find(|device| device.id == id).ok_or_else(|| ControlError::NoDisk(id.clone()))?;
    // A disk without a parent is refused by the monitor, with the reason.
    let path = device.files.get(1).or(device.files.first()).ok_or_else(|| ControlError::NoDisk(id.clone()))?;
    let opened = File::options().read(true).write(true).open(path);
    let file = opened.map_err(|source| ControlError::File { what: "opening", path: path.clone(), source })?;
    let report: MergedReport = client.call(&Request::MergeLeaf { id, most_bytes }, &[file.as_raw_fd()])?;
    let MergedReport { bytes, held_ms } = report;
    eprintln!("{bytes} bytes were written to {}; the guest's requests waited for {held_ms} ms", path.display());
    if let Some(old) = device.files.first() {
        eprintln!("{} is not used any more", old.display());
    }
    Ok(())
}

fn find<'a>(config: &'a VmConfig, id: &str) -> Result<&'a DiskConfig, ControlError> {
    config.disks.iter().find(|disk| disk.id == id).ok_or_else(|| ControlError::NoDisk(id.to_owned()))
}
