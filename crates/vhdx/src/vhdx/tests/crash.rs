//! The power goes at any moment: what was promised is there, and nothing is there that was never written.

use std::sync::Arc;

use super::{MIB, created, differencing, open, small, try_open};
use crate::testing::{Executor, Failure, Memory, Random};
use crate::vhdx::{Access, CreateOptions, Image};
use crate::{Guid, Storage};

const UNIT: u64 = 4096;
const SIZE: u64 = 12 * MIB;

/// Where the blocks of the model are on the disk: next to each other, or each in a page of its own of the BAT.
#[derive(Clone, Copy)]
struct Layout {
    /// In blocks.
    stride: u64,
}

impl Layout {
    fn size(self) -> u64 {
        SIZE * self.stride
    }

    /// Parts of a range of the model: place on the disk, and length.
    fn parts(self, offset: u64, length: u64) -> Vec<(u64, u64)> {
        if self.stride == 1 {
            return vec![(offset, length)];
        }
        let mut parts = Vec::new();
        let mut at = offset;
        while at < offset + length {
            let count = (MIB - at % MIB).min(offset + length - at);
            parts.push((at / MIB * self.stride * MIB + at % MIB, count));
            at += count;
        }
        parts
    }
}

/// For each unit of the disk, the bytes that it may be filled with after a crash; the last is the newest.
#[derive(Clone)]
struct Model {
    values: Vec<Vec<u8>>,
    /// Units of a request that failed: old and new are right until they are written again.
    doubtful: std::collections::BTreeSet<u64>,
}

impl Model {
    fn new(value: u8) -> Self {
        Self { values: vec![vec![value]; (SIZE / UNIT) as usize], doubtful: std::collections::BTreeSet::new() }
    }

    /// Does a request that gives a range another value, or fails.
    fn put(
        &mut self,
        offset: u64,
        length: u64,
        value: u8,
        request: impl FnOnce(u64, u64, u8) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let units = offset / UNIT..(offset + length) / UNIT;
        units.clone().for_each(|unit| self.values[unit as usize].push(value));
        let result = request(offset, length, value);
        for unit in units {
            if result.is_ok() {
                self.doubtful.remove(&unit);
            } else {
                self.doubtful.insert(unit);
            }
        }
        result
    }

    fn settle(&mut self) {
        for (unit, values) in self.values.iter_mut().enumerate() {
            if !self.doubtful.contains(&(unit as u64)) {
                let last = values.len() - 1;
                values.drain(..last);
            }
        }
    }

    /// Each sector is all of one allowed value.
    fn check(&self, disk: &Executor, layout: Layout, context: &str) {
        let mut bytes = vec![0; MIB as usize];
        for start in (0..SIZE).step_by(MIB as usize) {
            disk.read(start * layout.stride, &mut bytes).unwrap_or_else(|error| panic!("{context}: reading: {error}"));
            for (index, sector) in bytes.chunks(512).enumerate() {
                let at = start + index as u64 * 512;
                let allowed = &self.values[(at / UNIT) as usize];
                let is_alike = sector.iter().all(|byte| *byte == sector[0]);
                assert!(is_alike && allowed.contains(&sector[0]), "{context}: {:#x} at {at}, allowed {allowed:x?}", sector[0]);
            }
        }
    }
}

/// What one run does: the same for the same seed, up to the moment of the cut.
fn work(disk: &Executor, image: &Image, layout: Layout, model: &mut Model, random: &mut Random) -> Result<(), Failure> {
    let write = |offset, length, value| {
        let mut parts = layout.parts(offset, length).into_iter();
        parts.try_for_each(|(place, length)| disk.write(place, &vec![value; length as usize]))
    };
    let zero =
        |offset, length, _| layout.parts(offset, length).into_iter().try_for_each(|(place, length)| disk.zero(place, length));
    for _ in 0..40 {
        let value = 1 + random.below(150) as u8;
        match random.below(12) {
            0..=4 => {
                let length = UNIT * (1 + random.below(8));
                let offset = random.below((SIZE - length) / UNIT) * UNIT;
                model.put(offset, length, value, write)?;
            }
            5 => {
                let offset = random.below(SIZE / MIB - 1) * MIB;
                model.put(offset, MIB, value, write)?;
            }
            6 | 7 => {
                let offset = random.below(SIZE / MIB - 1) * MIB;
                model.put(offset, 2 * MIB, 0, zero)?;
            }
            8 => {
                let offset = random.below((SIZE - MIB) / UNIT) * UNIT;
                model.put(offset, UNIT * 5, 0, zero)?;
            }
            9 if random.below(2) == 0 => {
                image.close()?;
                model.settle();
            }
            _ => {
                let mut settled = model.clone();
                settled.settle();
                let mut is_durable = false;
                let result = disk.flush(|| is_durable = true);
                if is_durable {
                    *model = settled;
                }
                result?;
            }
        }
    }
    Ok(())
}

fn parent() -> Arc<Executor> {
    let (_, parent) = open(&created(&small(SIZE)), Access::ReadWrite);
    parent.write(0, &vec![0xaa; SIZE as usize]).unwrap();
    Arc::new(parent)
}

/// What happens at the change or flush with a number.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The power goes, for good.
    Cut,
    /// It fails, and the work goes on.
    Failure,
}

/// Runs the work of a seed on a copy of `start`, cuts the power at `cut`, and checks what is left, read only and after a replay.
/// Answers whether the cut was reached.
fn run(start: &Memory, layout: Layout, parent: Option<&Arc<Executor>>, seed: u64, (event, cut): (Event, u64)) -> bool {
    let context = format!("seed {seed}, {event:?} at {cut}");
    let file = Arc::new(Memory::with(start.content()));
    match event {
        Event::Cut => file.cut_at(cut),
        Event::Failure => file.fail_at(cut),
    }
    let mut model = Model::new(if parent.is_some() { 0xaa } else { 0 });
    let mut random = Random::new(seed);
    let (image, mut disk) = open(&file, Access::ReadWrite);
    disk.parent = parent.cloned();
    let is_cut = work(&disk, &image, layout, &mut model, &mut random).is_err();
    if is_cut && matches!(event, Event::Failure) {
        let result = work(&disk, &image, layout, &mut model, &mut random);
        assert!(result.is_ok() || image.lock().is_broken, "{context}: {result:?}");
    }
    let mut random = Random::new(seed ^ cut << 32);
    for _ in 0..2 {
        let after = Arc::new(Memory::with(file.crash(&mut random)));
        let before = after.done();
        let mut disks = Vec::new();
        for access in [Access::ReadOnly, Access::ReadWrite, Access::ReadOnly] {
            let storage: Arc<dyn Storage> = Arc::<Memory>::clone(&after);
            let image = try_open(Arc::clone(&storage), access).unwrap_or_else(|error| panic!("{context}: {access:?}: {error}"));
            let disk = Executor { mapping: image, file: storage, parent: parent.cloned() };
            model.check(&disk, layout, &format!("{context} {access:?}"));
            if disks.is_empty() {
                assert_eq!(after.done(), before, "{context}: reading wrote");
            }
            disks.push(disk);
        }
    }
    is_cut
}

/// Disturbs the work of each seed at every seventh change or flush; the seeds start at different ones.
fn run_all(options: &CreateOptions, layout: Layout, parent: Option<&Arc<Executor>>, seeds: std::ops::Range<u64>, event: Event) {
    let step = 7;
    let start = created(options);
    for seed in seeds {
        let mut cut = seed % step;
        while run(&start, layout, parent, seed, (event, cut)) {
            cut += step;
        }
    }
}

#[test]
fn a_dynamic_image_survives_a_cut_at_any_step() {
    run_all(&small(SIZE), Layout { stride: 1 }, None, 0..12, Event::Cut);
}

#[test]
fn an_image_with_changes_in_many_pages_survives_a_cut_at_any_step() {
    let layout = Layout { stride: 512 };
    run_all(&small(layout.size()), layout, None, 200..212, Event::Cut);
}

#[test]
fn a_failed_write_or_flush_loses_nothing_that_is_flushed_later() {
    let layout = Layout { stride: 512 };
    run_all(&small(layout.size()), layout, None, 300..308, Event::Failure);
    run_all(&small(SIZE), Layout { stride: 1 }, None, 308..316, Event::Failure);
}

#[test]
fn a_differencing_image_survives_a_cut_at_any_step() {
    let parent = parent();
    run_all(&differencing(SIZE, Guid::random().unwrap()), Layout { stride: 1 }, Some(&parent), 100..112, Event::Cut);
}

#[test]
fn a_creation_that_was_cut_leaves_no_image_or_a_whole_one() {
    for cut in 0.. {
        let file = Memory::new();
        file.cut_at(cut);
        let is_done = super::create(&file, &small(SIZE)).is_ok();
        for seed in 0..8 {
            let after: Arc<dyn Storage> = Arc::new(Memory::with(file.crash(&mut Random::new(seed))));
            match try_open(after, Access::ReadWrite) {
                Ok(_) | Err(super::OpenError::NotVhdx) => {}
                Err(error) => panic!("cut {cut} seed {seed}: {error}"),
            }
        }
        if is_done {
            return;
        }
    }
}

#[test]
fn a_close_that_was_cut_keeps_what_was_flushed_before_it() {
    for cut in 0.. {
        let file = created(&small(SIZE));
        let (image, disk) = open(&file, Access::ReadWrite);
        disk.write(0, &[1; 4096]).unwrap();
        disk.flush(|| ()).unwrap();
        file.cut_at(file.done() + cut);
        let is_closed = image.close().is_ok();
        for seed in 0..40 {
            let after = Arc::new(Memory::with(file.crash(&mut Random::new(seed))));
            let (_, disk) = open(&after, Access::ReadOnly);
            assert_eq!(super::read(&disk, 0, 4096), [1; 4096], "cut {cut}, seed {seed}");
        }
        if is_closed {
            return;
        }
    }
}
