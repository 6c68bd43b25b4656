//! VHDX images that were changed.

use std::sync::{Arc, LazyLock};

use super::{Input, patch};
use crate::testing::{Content, Executor, Memory};
use crate::vhdx::layout::{HEADERS, PAGE, REGION_TABLE_SIZE, REGION_TABLES, UNIT, put_checksum, u32_at};
use crate::vhdx::{Access, BeyondEnd, CreateOptions, Image, Kind, OpenOptions, Parent, check, create, repair};
use crate::{Guid, Mapping, Storage};

const LOG: u64 = UNIT;
/// Entries of the log start on these pages, in the files that are changed here.
const LOG_PAGES: u64 = 12;
const METADATA: u64 = 2 * UNIT;
/// Behind the table of metadata are the items; the last one of a child is the locator.
const ITEMS: u64 = METADATA + (64 << 10);
const BAT: u64 = 3 * UNIT;

/// An image with data, a log in use, and, in a child, bits.
fn used(kind: Kind, sector: u32) -> Content {
    let options = CreateOptions { kind, block_size: 1 << 20, logical_sector_size: sector, ..CreateOptions::new(8 * UNIT) };
    let file = Arc::new(Memory::new());
    create(&*file, &options).expect("options that go together");
    let image = Image::open(file.clone(), &OpenOptions { access: Access::ReadWrite }).expect("an image that was just made");
    let disk = Executor { mapping: Arc::new(image), file: file.clone(), parent: None };
    let change = || {
        for offset in [0, 3 * UNIT + 4096, 7 * UNIT] {
            disk.write(offset, &[1; 8192])?;
            disk.flush(|| ())?;
        }
        disk.zero(3 * UNIT, UNIT)?;
        disk.flush(|| ())
    };
    change().expect("memory does not fail");
    file.content()
}

fn child() -> Kind {
    let linkage = Guid::from_bytes([7; 16]);
    let (relative_path, absolute_path) = (Some("..\\parent.vhdx".to_owned()), Some("/srv/parent.vhdx".to_owned()));
    Kind::Differencing(Parent { linkage, relative_path, absolute_path, ..Parent::default() })
}

static IMAGES: LazyLock<[Content; 4]> = LazyLock::new(|| {
    [used(Kind::Dynamic, 512), used(child(), 512), used(Kind::Fixed { allocate: false }, 512), used(child(), 4096)]
});

/// Opens a changed image, whatever it is in its file that was changed, and uses it.
///
/// # Panics
/// If that is not survived.
pub fn vhdx(data: &[u8]) -> bool {
    let mut input = Input::new(data);
    let image = input.byte();
    let mut places = vec![(0, PAGE as u64), (METADATA, PAGE as u64), (ITEMS, 2 * PAGE as u64), (BAT, PAGE as u64)];
    places.extend(HEADERS.map(|offset| (offset, PAGE as u64)));
    places.extend(REGION_TABLES.map(|offset| (offset, REGION_TABLE_SIZE as u64)));
    // Each entry's head, its descriptors, its data.
    places.extend((0..LOG_PAGES).map(|page| (LOG + page * PAGE as u64, PAGE as u64)));
    changed(&IMAGES[usize::from(image) % IMAGES.len()], &places, input)
}

/// The same, with nothing changed but how a child names its parent.
///
/// # Panics
/// If that is not survived.
pub fn vhdx_locator(data: &[u8]) -> bool {
    // The item's place is in the table; 64 KiB hold all items.
    changed(&IMAGES[1], &[(ITEMS + 32, 32), (ITEMS + 40, 200), (ITEMS + 40, 400)], Input::new(data))
}

fn changed(image: &Content, places: &[(u64, u64)], mut input: Input) -> bool {
    let file = Memory::with(image.clone());
    let how = input.byte();
    if how & 0x70 == 0x70 {
        let size = input.below(9 * UNIT);
        file.set_size(size).expect("memory does not fail");
    }
    // What is behind the end makes the file longer.
    patch(&mut input, places, |offset, bytes| file.write_at(offset, bytes).expect("memory does not fail"));
    if how & 3 > 0 {
        reseal(&file);
    }
    exercise(&file, if how & 8 == 0 { Access::ReadWrite } else { Access::ReadOnly })
}

/// Gives whatever has a checksum the right one.
fn reseal(file: &Memory) {
    let fixed = HEADERS.map(|offset| (offset, PAGE)).into_iter().chain(REGION_TABLES.map(|offset| (offset, REGION_TABLE_SIZE)));
    let entries = (0..LOG_PAGES).map(|page| (LOG + page * PAGE as u64, LOG_PAGES as usize * PAGE));
    for (offset, length) in fixed.chain(entries) {
        let mut bytes = vec![0; length];
        // A file that was cut off.
        if file.read_at(offset, &mut bytes).is_err() {
            continue;
        }
        if bytes.starts_with(b"loge") {
            bytes.truncate((u32_at(&bytes, 8) as usize).clamp(64, length));
        } else if offset >= LOG {
            continue;
        }
        put_checksum(&mut bytes);
        file.write_at(offset, &bytes).expect("memory does not fail");
    }
}

/// Does everything that can be done with an image.
fn exercise(file: &Memory, access: Access) -> bool {
    let storage: Arc<dyn Storage> = Arc::new(Memory::with(file.content()));
    let _ = check(&storage);
    if access == Access::ReadWrite {
        let _ = repair(&(Arc::new(Memory::with(file.content())) as Arc<dyn Storage>));
    }
    let Ok(image) = Image::open(Arc::clone(&storage), &OpenOptions { access }) else { return false };
    let image = Arc::new(image);
    let disk = Executor { mapping: image.clone(), file: storage, parent: None };
    let mut bytes = vec![0; 64 << 10];
    let size = image.size();
    for offset in (0..size.min(16 * UNIT)).step_by(UNIT as usize) {
        let count = (size - offset).min(bytes.len() as u64) as usize;
        let _ = disk.read(offset, &mut bytes[..count]);
        let _ = disk.write(offset, &bytes[..count.min(4096)]);
        let _ = disk.zero(offset, (size - offset).min(UNIT));
    }
    let _ = image.allocated_blocks();
    let _ = image.flush();
    let _ = image.resize(size / 2 / 4096 * 4096, BeyondEnd::Discard);
    let _ = image.resize(20 * UNIT, BeyondEnd::Discard);
    let _ = image.info().parent.map(|parent| image.set_parent(&parent));
    let _ = image.close();
    true
}
