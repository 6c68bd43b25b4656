//! Finds what is wrong with an image, and mends what can be mended without a guess.

use std::sync::Arc;

use super::error::{Damage, OpenError, writing};
use super::header::Header;
use super::layout::{MAX_FILE, UNIT};
use super::open::{Access, Opened};
use super::scan::take_structures;
use super::space::Space;
use crate::{Guid, Storage};

/// Problems that a report lists; more are counted.
const MAX_PROBLEMS: usize = 100;

/// What can be done about a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// [`repair`] mends it; no data is lost.
    Repair,
    /// Nothing that is sure to be right: restore the image, or read what can be read.
    None,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which part of the format.
    pub structure: &'static str,
    /// Where it is in the file.
    pub offset: u64,
    /// What is wrong with it.
    pub text: String,
    /// What can be done.
    pub remedy: Remedy,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong: the first hundred of it.
    pub problems: Vec<Problem>,
    /// Problems beyond those.
    pub more_problems: u64,
    /// The log holds changes that the next open for writing makes.
    pub log_in_use: bool,
    /// Payload blocks in the file.
    pub allocated_blocks: u64,
    /// Bytes of the file that belong to nothing; [`repair`] gives them back.
    pub leaked_bytes: u64,
}

impl Report {
    /// Whether nothing is wrong. Leaked space is no fault.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    fn add(&mut self, damage: Damage, remedy: Remedy) {
        let Damage { structure, offset, problem: text } = damage;
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { structure, offset, text, remedy });
        } else {
            self.more_problems += 1;
        }
    }
}

/// Looks at all structures and tables of an image, and changes nothing. A log in use is replayed in memory first.
///
/// # Errors
/// Only if the file cannot be read or is no VHDX: damage is in the report.
pub fn check(file: &Arc<dyn Storage>) -> Result<Report, OpenError> {
    let mut report = Report::default();
    match Opened::read(Arc::clone(file), Access::ReadOnly) {
        Ok(opened) => {
            examine(&opened, &mut report)?;
        }
        Err(OpenError::Damaged { structure, offset, problem } | OpenError::Unsupported { structure, offset, problem }) => {
            report.add(Damage { structure, offset, problem }, Remedy::None);
        }
        Err(error) => return Err(error),
    }
    Ok(report)
}

/// Adds to the report what is wrong; answers the file's map.
fn examine(opened: &Opened, report: &mut Report) -> Result<Space, OpenError> {
    let Opened { storage, headers, regions, rules, .. } = opened;
    report.log_in_use = opened.log_was_used;
    headers.other.iter().chain(&opened.region_damages).for_each(|damage| report.add(damage.clone(), Remedy::Repair));
    let mut space = Space::default();
    if let Err(damage) = take_structures(&mut space, headers.log(), &regions.list) {
        report.add(damage, Remedy::None);
    }
    let blocks = rules.take_all(&**storage, &mut space, &mut |damage| {
        report.add(damage, Remedy::None);
        Ok(())
    })?;
    report.allocated_blocks = blocks;
    report.leaked_bytes = space.gaps() + rules.file_size.saturating_sub(space.end());
    Ok(space)
}

/// Replays the log, writes a damaged header or region table again from its good copy, and gives leaked space back. What that leaves is in
/// the report. Where the block allocation table is damaged, space is left alone: what seems leaked may be what was lost.
///
/// # Errors
/// If the file cannot be read or written, or is so damaged that it cannot be opened.
pub fn repair(file: &Arc<dyn Storage>) -> Result<Report, OpenError> {
    let mut opened = Opened::read(Arc::clone(file), Access::ReadWrite)?;
    let mut before = Report::default();
    let space = examine(&opened, &mut before)?;
    let is_safe = before.problems.iter().all(|problem| problem.remedy == Remedy::Repair) && opened.rules.file_size <= MAX_FILE;
    let has_leaks = is_safe && before.leaked_bytes > 0;
    if opened.headers.other.is_some() || !opened.region_damages.is_empty() || has_leaks {
        let file_write_guid = Guid::random().map_err(writing)?;
        let next = Header { file_write_guid, ..opened.headers.current };
        opened.headers.replace(&**file, next).map_err(writing)?;
    }
    // Only the copy that is bad: the good one is in the file at every moment.
    for damage in &opened.region_damages {
        file.write_at(damage.offset, &opened.regions.encode()).and_then(|()| file.flush()).map_err(writing)?;
    }
    if has_leaks {
        give_back(&**file, &space).map_err(writing)?;
    }
    check(file)
}

fn give_back(file: &dyn Storage, space: &Space) -> std::io::Result<()> {
    for run in space.all_gaps() {
        file.punch(run.offset(), run.length())?;
    }
    // Space is in whole megabytes; the last block of a file that was not rounded up may end before that.
    if file.size()? > space.end().next_multiple_of(UNIT) {
        file.set_size(space.end())?;
    }
    file.flush()
}
