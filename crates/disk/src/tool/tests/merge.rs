//! A merge that was cut: the child reads as before, and merged again, the parent holds the same.

use super::*;
use crate::tool::Child;
use crate::tool::merge::merge_into;
use crate::tool::source::Segment;

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

/// A VM that reads a chain: an empty leaf, the child, the parent and what is below, with tables that it looks at when it needs them.
struct Reader(Source);

impl Reader {
    fn new(pair: &[Arc<Memory>], leaf: &Arc<Memory>) -> Reader {
        let files = std::iter::once(leaf).chain(pair);
        let levels = files.map(|file| open(file, Format::Vhdx, Access::ReadOnly).unwrap().level()).collect();
        Reader(Source::of_levels(levels, false))
    }

    fn assert_reads(&self, content: &[u8], ranges: impl Iterator<Item = u64>, context: &str) {
        for offset in ranges {
            let mut found = Vec::new();
            let length = (MIB / 2).min(content.len() as u64 - offset);
            self.0.find(offset, length, &mut found).unwrap_or_else(|error| panic!("{context}: at {offset}: {error}"));
            let mut bytes = vec![0xEE; length as usize];
            self.0.read_all(offset, &found, &mut bytes).unwrap_or_else(|error| panic!("{context}: at {offset}: {error}"));
            let expected = &content[offset as usize..][..length as usize];
            assert!(
                bytes == expected,
                "{context}: at {offset}, found in {:?}",
                found.iter().map(Segment::is_data).collect::<Vec<_>>()
            );
        }
    }
}

/// The offsets of all half blocks, or of every third of them.
fn halves(content: &[u8], step: usize) -> impl Iterator<Item = u64> {
    (0..content.len() as u64).step_by(MIB as usize / 2).step_by(step)
}

/// Merges files, of which the power of one goes at `cut`, below a reader that looked at some of it before. Answers whether it was reached.
fn run_below_a_reader(pair: &Pair, base: &[&Memory], is_childs: bool, cut: u64) -> bool {
    let context = format!("cut at {cut} of the {}", if is_childs { "child" } else { "parent" });
    let files: Vec<Arc<Memory>> = [&pair.child, &pair.parent].into_iter().chain(base.iter().copied()).map(copy).collect();
    let upper = open(&files[0], Format::Vhdx, Access::ReadOnly).unwrap();
    let leaf = Arc::new(created(Format::Vhdx, upper.image.size(), Some(&upper)));
    let reader = Reader::new(&files, &leaf);
    reader.assert_reads(&pair.content, halves(&pair.content, 3), "before");
    let two = [files[0].clone(), files[1].clone()];
    two[usize::from(!is_childs)].cut_at(cut);
    let is_cut = merge(&two, Format::Vhdx, Child::Keep).is_err();
    // What a killed process wrote is there for all who read the file.
    reader.assert_reads(&pair.content, halves(&pair.content, 2), &context);
    two.iter().for_each(|file| file.cut_at(u64::MAX));
    Reader::new(&files, &leaf).assert_reads(&pair.content, halves(&pair.content, 1), &context);
    merge(&two, Format::Vhdx, Child::Keep).unwrap_or_else(|error| panic!("{context}: merged again: {error}"));
    reader.assert_reads(&pair.content, halves(&pair.content, 1), &context);
    Reader::new(&files, &leaf).assert_reads(&pair.content, halves(&pair.content, 1), &context);
    is_cut
}

/// A pair whose parent is a child itself, of a base with data in all blocks.
fn pair_on_a_base(size: u64) -> (Pair, Memory) {
    let mut random = Random::new(11);
    let base = Arc::new(created(Format::Vhdx, size, None));
    let lowest = open(&base, Format::Vhdx, Access::ReadWrite).unwrap();
    for offset in (0..size).step_by(MIB as usize) {
        lowest.target().write(offset, &bytes(&mut random, DATA)).unwrap();
    }
    lowest.close().unwrap();
    let parent = Arc::new(created(Format::Vhdx, size, Some(&lowest)));
    let lower = open(&parent, Format::Vhdx, Access::ReadWrite).unwrap();
    lower.target().write(MIB + 8192, &bytes(&mut random, 4096)).unwrap();
    lower.target().write(3 * MIB, &bytes(&mut random, MIB)).unwrap();
    lower.close().unwrap();
    let child = Arc::new(created(Format::Vhdx, size, Some(&lower)));
    let upper = open(&child, Format::Vhdx, Access::ReadWrite).unwrap();
    // Into blocks that the parent has not, has partly, and has; one becomes full by it, one zeros.
    upper.target().write(512, &bytes(&mut random, 1024)).unwrap();
    upper.target().write(MIB + 4096, &bytes(&mut random, 4096)).unwrap();
    upper.target().write(2 * MIB, &bytes(&mut random, MIB)).unwrap();
    upper.target().zero(3 * MIB, MIB).unwrap();
    upper.target().write(4 * MIB + DATA - 512, &bytes(&mut random, 1024)).unwrap();
    upper.close().unwrap();
    let content = content(&[&child, &parent, &base], Format::Vhdx, "at the beginning");
    let memory = |file: &Memory| Memory::with(file.content());
    (Pair { format: Format::Vhdx, child: memory(&child), parent: memory(&parent), content }, memory(&base))
}

#[test]
fn a_merge_below_a_reader_never_changes_what_that_reads_wherever_it_is_killed() {
    let (on_a_base, base) = pair_on_a_base(6 * MIB);
    for (pair, base) in [(Pair::new(Format::Vhdx, 4 * MIB, 4 * MIB), vec![]), (on_a_base, vec![&base])] {
        for is_childs in [true, false] {
            let mut cut = 0;
            while run_below_a_reader(&pair, &base, is_childs, cut) {
                cut += 1;
            }
            assert!(cut > 5, "only {cut} changes");
        }
    }
}

#[test]
fn a_reader_that_saw_no_bitmap_finds_the_one_that_a_merge_has_made_since() {
    // With blocks of 1 MiB, the entry of the first bitmap is in the page of the table that block 4100 is in, and not in that of block 3.
    let (far, size) = (4100 * MIB, 4200 * MIB);
    let base = Arc::new(created(Format::Vhdx, size, None));
    let lowest = open(&base, Format::Vhdx, Access::ReadWrite).unwrap();
    lowest.target().write(3 * MIB, &[1; 8192]).unwrap();
    lowest.close().unwrap();
    let parent = Arc::new(created(Format::Vhdx, size, Some(&lowest)));
    let lower = open(&parent, Format::Vhdx, Access::ReadWrite).unwrap();
    lower.target().write(far, &vec![2; MIB as usize]).unwrap();
    lower.close().unwrap();
    let child = Arc::new(created(Format::Vhdx, size, Some(&lower)));
    let upper = open(&child, Format::Vhdx, Access::ReadWrite).unwrap();
    upper.target().write(3 * MIB, &[3; 4096]).unwrap();
    upper.close().unwrap();
    let leaf = Arc::new(created(Format::Vhdx, size, Some(&upper)));
    let Reader(reader) = Reader::new(&[child.clone(), parent.clone(), base], &leaf);
    let mut sector = [0; 512];
    reader.read_range(far, &mut sector).unwrap();
    assert_eq!(sector, [2; 512]);
    drop((upper, lower));
    merge(&[child, parent], Format::Vhdx, Child::Keep).unwrap();
    let mut block = [0; 8192];
    reader.read_range(3 * MIB, &mut block).unwrap();
    assert!(block[..4096] == [3; 4096] && block[4096..] == [1; 4096]);
}
