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
    /// Who may write to the disk meanwhile. What is in `findings` was then seen more than once.
    pub in_use_by: Option<Holder>,
    /// Of a disk in use: findings of one look that others did not have, so that they were changes under way.
    pub passing: u64,
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

/// Looks at all tables of an image, and whether its parents are there and fit. Changes nothing. A disk that is not in use cannot be
/// opened for writing meanwhile.
///
/// The disk may be in use, and goes on being written. A look takes a while then, and sees tables from before and after a change side by
/// side. Such a thing is gone at the next look, while damage stays: a disk without findings in one look is sound, and a finding counts
/// if it is there again.
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
    let looks = if in_use_by.is_some() { LOOKS } else { 1 };
    let mut report = confirmed(path, looks, || look(path, own, &storage))?;
    if report.is_sound() {
        report.findings.extend(chain_problem(path, own));
    }
    report.in_use_by = in_use_by;
    Ok(report)
}

/// What so many looks find: nothing if one of them finds nothing, else what at least two of them find. (One alone is not doubted.) One
/// that fails is as one that did not take place, unless all do.
fn confirmed(path: &Path, looks: u32, mut look: impl FnMut() -> Result<Report, ToolError>) -> Result<Report, ToolError> {
    let (mut reports, mut seen) = (Vec::new(), Vec::new());
    let mut failure = None;
    for _ in 0..looks {
        match look() {
            Ok(report) if looks == 1 || report.is_sound() => return Ok(Report { passing: seen.len() as u64, ..report }),
            Ok(report) => {
                seen.extend(report.findings.iter().cloned());
                reports.push(report);
            }
            Err(error) => failure = Some(error),
        }
    }
    let Some(mut report) = reports.pop() else { return Err(failure.unwrap_or_else(|| unsettled(path))) };
    let times = |finding: &Finding| seen.iter().filter(|it| *it == finding).count();
    report.passing = seen.iter().filter(|finding| times(finding) == 1).count() as u64;
    report.findings.clear();
    for finding in seen.iter().filter(|finding| times(finding) > 1) {
        if !report.findings.contains(finding) {
            report.findings.push(finding.clone());
        }
    }
    if report.is_sound() { Err(unsettled(path)) } else { Ok(report) }
}

fn unsettled(path: &Path) -> ToolError {
    ToolError::options(path, "it changes faster than it can be looked at; check it again, or when nobody uses it")
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
                passing: 0,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(offset: u64) -> Finding {
        Finding { structure: "table", offset: Some(offset), problem: "wrong".into(), remedy: Remedy::None }
    }

    /// What comes of looks that find these, or fail: findings, passing ones, and how many looks were taken.
    fn of(looks: &[Result<&[u64], ()>]) -> Option<(Vec<u64>, u64, usize)> {
        let mut taken = 0;
        let report = confirmed(Path::new("d"), looks.len() as u32, || {
            taken += 1;
            let found = looks[taken - 1].map_err(|()| ToolError::Cancelled)?;
            Ok(Report { findings: found.iter().copied().map(finding).collect(), ..Report::default() })
        });
        report.ok().map(|it| (it.findings.iter().filter_map(|it| it.offset).collect(), it.passing, taken))
    }

    #[test]
    fn a_finding_counts_if_it_is_seen_again_and_no_look_is_without_any() {
        assert_eq!(of(&[Ok(&[1, 2])]), Some((vec![1, 2], 0, 1)));
        assert_eq!(of(&[Ok(&[1, 2]), Ok(&[2, 3]), Ok(&[2])]), Some((vec![2], 2, 3)));
        assert_eq!(of(&[Ok(&[1]), Ok(&[]), Ok(&[1])]), Some((vec![], 1, 2)));
        // One look came upon a change before it came to the damage.
        assert_eq!(of(&[Ok(&[1]), Ok(&[2]), Ok(&[2])]), Some((vec![2], 1, 3)));
        assert_eq!(of(&[Err(()), Ok(&[1]), Err(()), Ok(&[1, 2])]), Some((vec![1], 1, 4)));
        assert_eq!(of(&[Ok(&[1]), Ok(&[2]), Ok(&[3])]), None);
        assert_eq!(of(&[Err(()), Err(())]), None);
    }
}
