//! A disk is an array of bytes, whatever is done to it.

use std::sync::Arc;

use proptest::prelude::*;

use super::{MIB, created, differencing, open, small};
use crate::testing::{Executor, Memory};
use crate::vhdx::{Access, BeyondEnd, CreateOptions, Image, Kind, check};
use crate::{Guid, Mapping, Storage};

const SIZE: u64 = 9 * MIB + 512 * 3;

#[derive(Clone, Debug)]
enum Action {
    Write {
        offset: u64,
        length: u64,
        value: u8,
    },
    Zero {
        offset: u64,
        length: u64,
    },
    Read {
        offset: u64,
        length: u64,
    },
    Flush,
    /// Leave the file as it is, and open it again.
    Crash,
    Close,
    Resize(u64),
}

fn action() -> impl Strategy<Value = Action> {
    // Positions and lengths are cut to the disk when they are used.
    let range = || {
        let length = prop_oneof![1_u64..40, 1_u64..5000, Just(2048), Just(4096)];
        let offset = prop_oneof![0_u64..24_000, (0_u64..12).prop_map(|block| block * 2048)];
        (offset, length).prop_map(|(offset, length)| (offset * 512, length * 512))
    };
    prop_oneof![
        6 => (range(), 1_u8..255).prop_map(|((offset, length), value)| Action::Write { offset, length, value }),
        3 => range().prop_map(|(offset, length)| Action::Zero { offset, length }),
        3 => range().prop_map(|(offset, length)| Action::Read { offset, length }),
        3 => Just(Action::Flush),
        1 => Just(Action::Crash),
        1 => Just(Action::Close),
        1 => (1_u64..24_000).prop_map(|sectors| Action::Resize(sectors * 512)),
    ]
}

/// A disk and what must be in it.
struct Pair {
    file: Arc<Memory>,
    image: Arc<Image>,
    disk: Executor,
    parent: Option<Arc<Executor>>,
    bytes: Vec<u8>,
}

impl Pair {
    fn new(options: &CreateOptions, parent: Option<Arc<Executor>>) -> Self {
        let file = created(options);
        let (image, mut disk) = open(&file, Access::ReadWrite);
        disk.parent = parent.clone();
        let bytes = vec![if parent.is_some() { 0xaa } else { 0 }; options.size as usize];
        Self { file, image, disk, parent, bytes }
    }

    fn reopen(&mut self) {
        self.file = Arc::new(Memory::with(self.file.content()));
        let report = check(&(Arc::<Memory>::clone(&self.file) as Arc<dyn Storage>)).unwrap();
        assert!(report.is_sound(), "{report:?}");
        (self.image, self.disk) = open(&self.file, Access::ReadWrite);
        self.disk.parent.clone_from(&self.parent);
    }

    fn cut(&self, offset: u64, length: u64) -> (u64, u64) {
        let size = self.bytes.len() as u64;
        let offset = offset.min(size - 512);
        (offset, length.min(size - offset))
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Write { offset, length, value } => {
                let (offset, length) = self.cut(offset, length);
                let data = vec![value; length as usize];
                self.disk.write(offset, &data).unwrap();
                self.bytes[offset as usize..][..data.len()].copy_from_slice(&data);
            }
            Action::Zero { offset, length } => {
                let (offset, length) = self.cut(offset, length);
                self.disk.zero(offset, length).unwrap();
                self.bytes[offset as usize..][..length as usize].fill(0);
            }
            Action::Read { offset, length } => {
                let (offset, length) = self.cut(offset, length);
                self.compare(offset, length);
            }
            Action::Flush => self.disk.flush(|| ()).unwrap(),
            Action::Crash => {
                self.disk.flush(|| ()).unwrap();
                self.reopen();
            }
            Action::Close => {
                self.image.close().unwrap();
                self.reopen();
            }
            // A child behind whose end its parent goes on would show that again.
            Action::Resize(_) if self.parent.is_some() => {}
            Action::Resize(size) => {
                self.image.resize(size, BeyondEnd::Discard).unwrap();
                self.bytes.resize(size as usize, 0);
            }
        }
    }

    fn compare(&self, offset: u64, length: u64) {
        let mut found = vec![0xee; length as usize];
        self.disk.read(offset, &mut found).unwrap();
        let wanted = &self.bytes[offset as usize..][..found.len()];
        let first = found.iter().zip(wanted).position(|(found, wanted)| found != wanted);
        assert_eq!(first.map(|at| (offset + at as u64, found[at], wanted[at])), None, "place, found, wanted");
    }

    fn run(&mut self, actions: &[Action]) {
        actions.iter().for_each(|action| self.act(action));
        assert_eq!(self.image.size(), self.bytes.len() as u64);
        self.compare(0, self.bytes.len() as u64);
        self.image.close().unwrap();
        self.reopen();
        self.compare(0, self.bytes.len() as u64);
    }
}

fn parent() -> Arc<Executor> {
    let (_, parent) = open(&created(&small(SIZE)), Access::ReadWrite);
    parent.write(0, &vec![0xaa; SIZE as usize]).unwrap();
    Arc::new(parent)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_dynamic_disk_is_an_array_of_bytes(actions in prop::collection::vec(action(), 1..60)) {
        Pair::new(&small(SIZE), None).run(&actions);
    }

    #[test]
    fn a_fixed_disk_is_an_array_of_bytes(actions in prop::collection::vec(action(), 1..60)) {
        let kind = Kind::Fixed { allocate: false };
        Pair::new(&CreateOptions { kind, block_size: 2 << 20, ..small(SIZE) }, None).run(&actions);
    }

    #[test]
    fn a_differencing_disk_is_an_array_of_bytes(actions in prop::collection::vec(action(), 1..60)) {
        Pair::new(&differencing(SIZE, Guid::random().unwrap()), Some(parent())).run(&actions);
    }

    #[test]
    fn a_differencing_disk_with_other_blocks_is_an_array_of_bytes(actions in prop::collection::vec(action(), 1..60)) {
        let options = CreateOptions { block_size: 4 << 20, ..differencing(SIZE, Guid::random().unwrap()) };
        Pair::new(&options, Some(parent())).run(&actions);
    }
}

#[test]
fn threads_that_write_trim_and_flush_at_once_do_not_disturb_each_other() {
    let file = created(&small(64 * MIB));
    let (image, disk) = open(&file, Access::ReadWrite);
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let disk = disk.clone();
            scope.spawn(move || {
                let mut random = crate::testing::Random::new(thread.into());
                let start = u64::from(thread) * 16 * MIB;
                let mut bytes = vec![0_u8; 16 << 20];
                for round in 0..300_u64 {
                    let block = random.below(16) * MIB;
                    if random.below(3) == 0 {
                        disk.zero(start + block, MIB).unwrap();
                        bytes[block as usize..][..1 << 20].fill(0);
                    } else {
                        let at = block + random.below(128) * 8192;
                        let value = round as u8 | 1;
                        disk.write(start + at, &[value; 8192]).unwrap();
                        bytes[at as usize..][..8192].fill(value);
                    }
                    let at = random.below(16) * MIB;
                    assert!(
                        super::read(&disk, start + at, 1 << 20) == bytes[at as usize..][..1 << 20],
                        "thread {thread} round {round}"
                    );
                }
            });
        }
        let image = Arc::clone(&image);
        scope.spawn(move || (0..400).for_each(|_| image.flush().unwrap()));
    });
    image.close().unwrap();
}

#[test]
fn more_tables_than_one_commit_carries_ask_for_a_commit_first() {
    let file = created(&small(100 << 30));
    let (image, disk) = open(&file, Access::ReadWrite);
    let places = (0..200_u64).map(|index| index * 512 * MIB);
    for offset in places.clone() {
        disk.write(offset, &offset.to_le_bytes().repeat(64)).unwrap();
    }
    let asked = (0..200_u64).filter(|index| {
        let ticket = image.map_write(index * 512 * MIB + MIB, 512, &mut Vec::new());
        ticket.map(|ticket| image.finish(ticket)).is_err()
    });
    assert!(asked.count() > 0);
    disk.flush(|| ()).unwrap();
    image.close().unwrap();
    let (_, disk) = open(&file, Access::ReadOnly);
    for offset in places {
        assert_eq!(super::read(&disk, offset, 512), offset.to_le_bytes().repeat(64));
    }
}
