//! A merge that was cut: the child reads as before, and merged again, the parent holds the same.

use super::*;
use crate::tool::Child;
use crate::tool::merge::merge_into;

/// A child on its parent, and what it reads as.
struct Pair {
    format: Format,
    child: Memory,
    parent: Memory,
    content: Vec<u8>,
}

impl Pair {
    /// The parent has data in every second block. The child has data in some sectors of one block, all of another, and zeros over a
    /// third; what is left is the parent's.
    fn new(format: Format, child_size: u64, parent_size: u64) -> Pair {
        let mut random = Random::new(7);
        let block = block_size(format);
        let parent = Arc::new(created(format, parent_size, None));
        let lower = open(&parent, format, Access::ReadWrite).unwrap();
        for offset in (0..parent_size).step_by(2 * block as usize) {
            lower.target().write(offset, &bytes(&mut random, DATA.min(parent_size - offset))).unwrap();
        }
        lower.close().unwrap();
        let child = Arc::new(created(format, child_size, Some(&lower)));
        let upper = open(&child, format, Access::ReadWrite).unwrap();
        upper.target().write(4096, &bytes(&mut random, 1536)).unwrap();
        upper.target().write(block, &bytes(&mut random, block)).unwrap();
        upper.target().zero(2 * block, block).unwrap();
        upper.target().write(child_size - 512, &bytes(&mut random, 512)).unwrap();
        upper.close().unwrap();
        let content = content(&[&child, &parent], format, "at the beginning");
        Pair { format, child: Memory::with(child.content()), parent: Memory::with(parent.content()), content }
    }

    /// Merges copies, of which the power of one goes at `cut`, and looks at what is left. Answers whether the cut was reached.
    fn run(&self, child: Child, is_childs: bool, cut: u64) -> bool {
        let context = format!("{} {child:?}, cut at {cut} of the {}", self.format, if is_childs { "child" } else { "parent" });
        let files = [copy(&self.child), copy(&self.parent)];
        files[usize::from(!is_childs)].cut_at(cut);
        let is_cut = merge(&files, self.format, child).is_err();
        for seed in 0..2 {
            let mut random = Random::new(seed << 32 | cut);
            let left = files.each_ref().map(|file| memory(file.crash(&mut random)));
            let after = content(&[&left[0], &left[1]], self.format, &context);
            assert!(after == self.content, "{context}, seed {seed}: after the crash");
            merge(&left, self.format, child).unwrap_or_else(|error| panic!("{context}, seed {seed}: merged again: {error}"));
            let merged = content(&[&left[1]], self.format, &context);
            assert!(merged == self.content, "{context}, seed {seed}: the parent, merged again");
            let after = content(&[&left[0], &left[1]], self.format, &context);
            assert!(after == self.content, "{context}, seed {seed}: the child, merged again");
            left.iter().for_each(|file| assert_sound(file, self.format, &context));
        }
        is_cut
    }

    fn run_all(&self) {
        // A child that is to be removed goes the same way, but for the last change of it.
        for (child, is_childs) in [(Child::Keep, true), (Child::Keep, false), (Child::Remove, true)] {
            let mut cut = 0;
            while self.run(child, is_childs, cut) {
                cut += 1;
            }
            // A VHD's child is not written: its parent keeps its identity.
            assert!(cut > 5 || is_childs && self.format == Format::Vhd, "only {cut} changes");
        }
    }
}

fn merge(files: &[Arc<Memory>; 2], format: Format, child: Child) -> Result<(), ToolError> {
    let upper = open(&files[0], format, Access::ReadWrite)?;
    let lower = open(&files[1], format, Access::ReadWrite)?;
    merge_into(&upper, &lower, child, &Job::default())
}

#[test]
fn a_vhdx_merge_that_was_cut_keeps_the_child_and_finishes_when_run_again() {
    Pair::new(Format::Vhdx, 4 * MIB, 4 * MIB).run_all();
}

#[test]
fn a_vhdx_merge_into_a_parent_of_another_size_survives_a_cut() {
    Pair::new(Format::Vhdx, 5 * MIB, 3 * MIB + 4096).run_all();
    Pair::new(Format::Vhdx, 3 * MIB + 4096, 5 * MIB).run_all();
}

#[test]
fn a_vhd_merge_that_was_cut_keeps_the_child_and_finishes_when_run_again() {
    Pair::new(Format::Vhd, (256 << 10) - 512, (256 << 10) - 512).run_all();
}

#[test]
fn a_vhd_merge_into_a_parent_of_another_size_survives_a_cut() {
    // Also one that needs another table: 128 blocks are in a sector of it.
    Pair::new(Format::Vhd, 2 * MIB + 512, 128 << 10).run_all();
    Pair::new(Format::Vhd, (128 << 10) + 512, 256 << 10).run_all();
}
