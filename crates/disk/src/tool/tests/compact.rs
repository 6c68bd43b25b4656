//! A compaction that was cut: the disk reads as before, and compacted again, its file is as short as without the cut.

use super::*;
use crate::tool::compact::compact_image;

/// An image with blocks to free and to move, its parent if it has one, and what it reads as.
struct Loose {
    format: Format,
    file: Memory,
    parent: Option<Arc<Memory>>,
    content: Vec<u8>,
}

impl Loose {
    fn new(format: Format, is_child: bool) -> Loose {
        let mut random = Random::new(3);
        let block = block_size(format);
        let size = 8 * block - 1536;
        let parent = is_child.then(|| {
            let file = Arc::new(created(format, size, None));
            let image = open(&file, format, Access::ReadWrite).unwrap();
            for offset in (0..size).step_by(block as usize) {
                image.target().write(offset, &bytes(&mut random, DATA.min(size - offset))).unwrap();
            }
            image.close().unwrap();
            file
        });
        let opened = parent.as_ref().map(|file| open(file, format, Access::ReadOnly).unwrap());
        let file = Arc::new(created(format, size, opened.as_ref()));
        let image = open(&file, format, Access::ReadWrite).unwrap();
        let target = image.target();
        for offset in (0..size).step_by(block as usize) {
            // A child has parts of each block.
            let (from, length) = if is_child { (512, 2048) } else { (0, DATA.min(size - offset)) };
            target.write(offset + from, &bytes(&mut random, length)).unwrap();
        }
        // Zeros that are written, and blocks that were given back.
        target.write(3 * block, &vec![0; DATA as usize]).unwrap();
        target.zero(block, 2 * block).unwrap();
        target.zero(5 * block, block).unwrap();
        image.close().unwrap();
        let files: Vec<&Arc<Memory>> = [Some(&file), parent.as_ref()].into_iter().flatten().collect();
        let content = content(&files, format, "at the beginning");
        Loose { format, file: Memory::with(file.content()), parent, content }
    }

    fn look(&self, file: &Arc<Memory>, context: &str) {
        let files: Vec<&Arc<Memory>> = [Some(file), self.parent.as_ref()].into_iter().flatten().collect();
        assert!(content(&files, self.format, context) == self.content, "{context}");
        assert_sound(file, self.format, context);
    }

    /// Compacts a copy, whose power goes at `cut`, and looks at what is left. Answers whether the cut was reached.
    fn run(&self, cut: u64, shortest: u64) -> bool {
        let file = copy(&self.file);
        file.cut_at(cut);
        let is_cut = compact(&file, self.format).is_err();
        for seed in 0..3 {
            let context = format!("{}, cut at {cut}, seed {seed}", self.format);
            let left = memory(file.crash(&mut Random::new(seed << 32 | cut)));
            self.look(&left, &context);
            compact(&left, self.format).unwrap_or_else(|error| panic!("{context}: compacted again: {error}"));
            self.look(&left, &context);
            assert_eq!(left.size().unwrap(), shortest, "{context}");
        }
        is_cut
    }

    fn run_all(&self, is_shorter: bool) {
        let whole = copy(&self.file);
        let saved = compact(&whole, self.format).unwrap();
        assert_eq!(saved > 0, is_shorter, "{} bytes", saved);
        let mut cut = 0;
        while self.run(cut, whole.size().unwrap()) {
            cut += 1;
        }
        assert!(cut > 10 || !is_shorter, "only {cut} changes");
    }
}

fn compact(file: &Arc<Memory>, format: Format) -> Result<u64, ToolError> {
    compact_image(&open(file, format, Access::ReadWrite)?, &Job::default())
}

#[test]
fn a_vhdx_compaction_survives_a_cut_at_any_step() {
    Loose::new(Format::Vhdx, false).run_all(true);
    Loose::new(Format::Vhdx, true).run_all(true);
}

#[test]
fn a_vhd_compaction_survives_a_cut_at_any_step() {
    Loose::new(Format::Vhd, false).run_all(true);
    // In a child, no block can leave the file.
    Loose::new(Format::Vhd, true).run_all(false);
}
