//! Looks for damage in an image, and repairs what can be repaired without a guess.

use std::path::Path;
use std::sync::Arc;

use vhdx::vhdx as vhdx2;
use vhdx::{Storage, vhd};

use super::{AnyFormat, ToolError};
use crate::disk::{Access, Disk, Locking, OpenOptions};
use crate::error::OpenError;
use crate::format::Format;
use crate::layer::Layer;
use crate::lock::{self, Holder};

pub use vhdx::vhdx::Remedy;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which part of the format.
    pub structure: &'static str,
    /// Where it is in the file; `None` for what is wrong with the chain of parents.
    pub offset: Option<u64>,
    /// What is wrong with it.
    pub problem: String,
    /// What can be done.
    pub remedy: Remedy,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong: the first hundred of it.
    pub findings: Vec<Finding>,
    /// Problems beyond those.
    pub more: u64,
    /// The log holds changes that the next open for writing makes.
    pub log_in_use: bool,
    /// Blocks in the file; not known of a damaged VHD, and none are in a fixed one.
    pub allocated_blocks: Option<u64>,
    /// Bytes of the file that belong to nothing; a repair gives them back. Not looked for in a VHD.
    pub leaked_bytes: u64,
    /// Who was writing to the disk meanwhile. What was found may then be what was just being changed.
    pub in_use_by: Option<Holder>,
}

impl Report {
    /// Whether nothing is wrong. Leaked space is no fault.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }
}

/// How often a disk in use is looked at before what was found counts.
const LOOKS: u32 = 5;

/// Looks at all tables of an image, and whether its parents are there and fit. Changes nothing; the disk may be in use.
///
/// # Errors
/// If it could not be checked: it cannot be read, or its format has nothing to check.
pub fn check(path: &Path, format: AnyFormat) -> Result<Report, ToolError> {
    let own = only_images(path, format)?;
    let options = OpenOptions { access: Access::ReadOnly, locking: Locking::Later, ..OpenOptions::default() };
    let layer = Layer::open(path, options)?;
    // A reader's lock keeps writers away while we look, unless one is there.
    let in_use_by = match lock::take(&layer.file, Access::ReadOnly, path) {
        Ok(()) => None,
        Err(crate::LockError::Held { holder, .. }) => Some(holder),
        Err(error) => return Err(error.into()),
    };
    let storage: Arc<dyn Storage> = layer.file.clone();
    let mut report = Report::default();
    for _ in 0..if in_use_by.is_some() { LOOKS } else { 1 } {
        report = look(path, own, &storage)?;
        if report.is_sound() {
            break;
        }
    }
    if report.is_sound() {
        report.findings.extend(chain_problem(path, own));
    }
    report.in_use_by = in_use_by;
    Ok(report)
}

/// Replays the log, writes damaged copies again from good ones, and gives leaked space back; of a VHD, also takes blocks out of the table
/// that cannot be there. The report is of what is left.
///
/// # Errors
/// If the disk is in use, or so damaged that it cannot be opened.
pub fn repair(path: &Path, format: AnyFormat) -> Result<Report, ToolError> {
    let own = only_images(path, format)?;
    let layer = Layer::open(path, OpenOptions { access: Access::ReadWrite, ..OpenOptions::default() })?;
    let storage: Arc<dyn Storage> = layer.file.clone();
    match own {
        Format::Vhd => drop(vhd::repair(&*storage).map_err(ToolError::image(path, "repairing it"))?),
        _ => drop(vhdx2::repair(&storage).map_err(ToolError::image(path, "repairing it"))?),
    }
    let report = look(path, own, &storage)?;
    layer.file.sync_all().map_err(ToolError::io(path, "making the repair durable"))?;
    Ok(report)
}

fn only_images(path: &Path, format: AnyFormat) -> Result<Format, ToolError> {
    match format.own(path, "checking")? {
        Format::Raw => Err(ToolError::Unsupported {
            path: path.to_owned(),
            format,
            what: "checking",
            way_out: "there is nothing in the file but the disk's data; name the right format if it is an image (--format)",
        }),
        image => Ok(image),
    }
}

/// One look at all tables.
fn look(path: &Path, format: Format, storage: &Arc<dyn Storage>) -> Result<Report, ToolError> {
    match format {
        Format::Vhd => {
            let report = vhd::check(&**storage).map_err(ToolError::image(path, "checking it"))?;
            let remedy = if report.is_repairable { Remedy::Repair } else { Remedy::None };
            let findings = report.damages.into_iter().map(|it| finding(it.structure, it.offset, it.problem, remedy)).collect();
            let image = vhd::Image::open(Arc::clone(storage), vhd::Access::ReadOnly);
            let allocated_blocks = image.ok().and_then(|it| it.info().allocated_blocks);
            Ok(Report { findings, allocated_blocks, ..Report::default() })
        }
        _ => {
            let report = vhdx2::check(storage).map_err(ToolError::image(path, "checking it"))?;
            let problems = report.problems.into_iter();
            Ok(Report {
                findings: problems.map(|it| finding(it.structure, it.offset, it.text, it.remedy)).collect(),
                more: report.more_problems,
                log_in_use: report.log_in_use,
                allocated_blocks: Some(report.allocated_blocks),
                leaked_bytes: report.leaked_bytes,
                in_use_by: None,
            })
        }
    }
}

fn finding(structure: &'static str, offset: u64, problem: String, remedy: Remedy) -> Finding {
    Finding { structure, offset: Some(offset), problem, remedy }
}

/// What keeps the parents from being used.
fn chain_problem(path: &Path, format: Format) -> Option<Finding> {
    let options = OpenOptions { format, access: Access::ReadOnly, locking: Locking::Later, ..OpenOptions::default() };
    match Disk::open(path, options) {
        Ok(_) => None,
        // A parent that is being written is wrong too, but locks come and go.
        Err(error @ (OpenError::ParentMissing { .. } | OpenError::ParentChanged { .. } | OpenError::ParentCycle { .. }))
        | Err(error @ (OpenError::Parent { .. } | OpenError::ParentSectors { .. } | OpenError::ChainTooLong { .. })) => {
            Some(Finding { structure: "chain of parents", offset: None, problem: error.to_string(), remedy: Remedy::None })
        }
        Err(_) => None,
    }
}
