//! A disk is an array of bytes, whatever is done to it.

use std::sync::{Arc, LazyLock};

use super::Input;
use crate::testing::{Content, Executor, Memory};
use crate::vhdx::{Access, BeyondEnd, CreateOptions, Image, Kind, OpenOptions, Parent, check, create};
use crate::{Guid, Mapping, Storage};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 9 * MIB + 512 * 3;
/// The byte that a parent has everywhere.
const PARENT: u8 = 0xaa;
/// More need longer than they find.
const MAX_ACTIONS: usize = 60;

/// Writes, makes zeros, reads, flushes, resizes and opens a VHDX image again, as the input says, beside a plain array.
///
/// # Panics
/// If the two differ.
pub fn model(data: &[u8]) -> bool {
    let mut input = Input::new(data);
    let mut pair = Pair::new(input.byte());
    for _ in 0..MAX_ACTIONS {
        if input.is_empty() {
            break;
        }
        pair.act(&mut input);
    }
    pair.end();
    true
}

/// A disk and what must be in it.
struct Pair {
    file: Arc<Memory>,
    image: Arc<Image>,
    disk: Executor,
    parent: Option<Arc<Executor>>,
    bytes: Vec<u8>,
}

fn open(file: &Arc<Memory>) -> (Arc<Image>, Executor) {
    let image = Image::open(file.clone(), &OpenOptions { access: Access::ReadWrite }).expect("a good image");
    let image = Arc::new(image);
    (image.clone(), Executor { mapping: image, file: file.clone(), parent: None })
}

fn created(options: &CreateOptions) -> Arc<Memory> {
    let file = Arc::new(Memory::new());
    create(&*file, options).expect("options that go together");
    file
}

static PARENT_FILE: LazyLock<Content> = LazyLock::new(|| {
    let file = created(&CreateOptions { block_size: 1 << 20, ..CreateOptions::new(SIZE) });
    let (image, disk) = open(&file);
    disk.write(0, &vec![PARENT; SIZE as usize]).expect("memory does not fail");
    image.close().expect("memory does not fail");
    file.content()
});

impl Pair {
    fn new(kind: u8) -> Self {
        let parent = Parent { linkage: Guid::from_bytes([7; 16]), relative_path: Some("p".to_owned()), ..Parent::default() };
        let (kind, block_size) = match kind % 4 {
            0 => (Kind::Dynamic, 1 << 20),
            1 => (Kind::Fixed { allocate: false }, 2 << 20),
            2 => (Kind::Differencing(parent), 1 << 20),
            _ => (Kind::Differencing(parent), 4 << 20),
        };
        let has_parent = matches!(kind, Kind::Differencing(_));
        let parent = has_parent.then(|| Arc::new(open(&Arc::new(Memory::with(PARENT_FILE.clone()))).1));
        let file = created(&CreateOptions { kind, block_size, ..CreateOptions::new(SIZE) });
        let (image, mut disk) = open(&file);
        disk.parent.clone_from(&parent);
        let bytes = vec![if has_parent { PARENT } else { 0 }; SIZE as usize];
        Self { file, image, disk, parent, bytes }
    }

    fn act(&mut self, input: &mut Input) {
        match input.byte() % 18 {
            0..=5 => {
                let (offset, length) = self.range(input);
                let data = vec![input.byte(); length as usize];
                self.disk.write(offset, &data).expect("a write inside the disk");
                self.bytes[offset as usize..][..data.len()].copy_from_slice(&data);
            }
            6..=8 => {
                let (offset, length) = self.range(input);
                self.disk.zero(offset, length).expect("zeros inside the disk");
                self.bytes[offset as usize..][..length as usize].fill(0);
            }
            9..=11 => {
                let (offset, length) = self.range(input);
                self.compare(offset, length);
            }
            12..=14 => self.disk.flush(|| ()).expect("memory does not fail"),
            // The file is left as it is.
            15 => {
                self.disk.flush(|| ()).expect("memory does not fail");
                self.reopen();
            }
            16 => {
                self.image.close().expect("memory does not fail");
                self.reopen();
            }
            // A child behind whose end its parent goes on would show that again.
            _ if self.parent.is_some() => {}
            _ => {
                let size = 512 * (1 + input.below(24_000));
                self.image.resize(size, BeyondEnd::Discard).expect("a size that is possible");
                self.bytes.resize(size as usize, 0);
            }
        }
    }

    /// Some sectors of the disk; often a whole block.
    fn range(&self, input: &mut Input) -> (u64, u64) {
        let length = match input.byte() % 4 {
            0 => 1 + input.below(39),
            1 => 1 + input.below(4999),
            2 => 2048,
            _ => 4096,
        };
        let offset = if input.byte() & 1 == 0 { input.below(24_000) } else { input.below(12) * 2048 };
        let size = self.bytes.len() as u64;
        let offset = (offset * 512).min(size - 512);
        (offset, (length * 512).min(size - offset))
    }

    fn reopen(&mut self) {
        self.file = Arc::new(Memory::with(self.file.content()));
        let report = check(&(self.file.clone() as Arc<dyn Storage>)).expect("memory does not fail");
        assert!(report.is_sound(), "{report:?}");
        (self.image, self.disk) = open(&self.file);
        self.disk.parent.clone_from(&self.parent);
    }

    fn compare(&self, offset: u64, length: u64) {
        let mut found = vec![0xee; length as usize];
        self.disk.read(offset, &mut found).expect("a read inside the disk");
        let wanted = &self.bytes[offset as usize..][..found.len()];
        let first = found.iter().zip(wanted).position(|(found, wanted)| found != wanted);
        assert_eq!(first.map(|at| (offset + at as u64, found[at], wanted[at])), None, "place, found, wanted");
    }

    fn end(mut self) {
        assert_eq!(self.image.size(), self.bytes.len() as u64);
        self.compare(0, self.bytes.len() as u64);
        self.image.close().expect("memory does not fail");
        self.reopen();
        self.compare(0, self.bytes.len() as u64);
    }
}
