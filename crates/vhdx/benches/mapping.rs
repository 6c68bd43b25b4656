//! What mapping costs: `cargo bench -p maru-vhdx`. A real file, no data I/O unless a line says so.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhdx::vhdx::{Access, CreateOptions, Image, Kind, OpenOptions, Parent, create};
use vhdx::{Guid, Mapping, Storage};

const MIB: u64 = 1 << 20;

fn open(path: &std::path::Path) -> (Arc<File>, Image) {
    let file = Arc::new(File::options().read(true).write(true).open(path).expect("the file was created"));
    let image = Image::open(file.clone(), &OpenOptions { access: Access::ReadWrite }).expect("the image is sound");
    (file, image)
}

fn make(path: &std::path::Path, options: &CreateOptions) -> Duration {
    let start = Instant::now();
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).expect("the folder is writable");
    create(&file, options).expect("the options are possible");
    start.elapsed()
}

/// Prints the mean time of `count` calls.
fn each(what: &str, count: u64, mut call: impl FnMut(u64)) {
    let start = Instant::now();
    (0..count).for_each(&mut call);
    println!("{what:<60} {:>10.0} ns", start.elapsed().as_nanos() as f64 / count as f64);
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    status.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("disk.vhdx");
    let mut extents = Vec::with_capacity(16);

    println!("create 64 TiB, blocks of 2 MiB: {:?}", make(&path, &CreateOptions::new(64 << 40)));
    let (before, start) = (resident(), Instant::now());
    let (_, image) = open(&path);
    println!("open it: {:?}, {} KiB of memory", start.elapsed(), (resident() - before) / 1024);

    const BLOCKS: u64 = 20_000;
    each("take a block (map_write), commits included", BLOCKS, |index| {
        extents.clear();
        while let Err(error) = image.map_write(index * 2 * MIB, 4096, &mut extents).map(|ticket| image.complete(ticket)) {
            assert!(matches!(error, vhdx::MapError::CommitFirst), "{error}");
            image.flush().expect("the file is writable");
        }
    });
    image.flush().expect("the file is writable");
    let place = |index: u64| index.wrapping_mul(0x9e37_79b9) % (BLOCKS * 512) * 4096;
    each("map_read of 4 KiB, in the file", 2_000_000, |index| {
        extents.clear();
        image.finish(image.map_read(place(index), 4096, &mut extents).expect("mapped"));
    });
    each("map_write of 4 KiB, in the file", 2_000_000, |index| {
        extents.clear();
        image.complete(image.map_write(place(index), 4096, &mut extents).expect("mapped"));
    });
    image.close().expect("the file is writable");

    make(&path, &CreateOptions::new(64 << 30));
    let (file, image) = open(&path);
    each("take a block, write 4 KiB, commit: each time", 1000, |index| {
        extents.clear();
        let ticket = image.map_write(index * 2 * MIB, 4096, &mut extents).expect("mapped");
        if let vhdx::Place::File(offset) = extents[0].place {
            file.write_at(offset, &[1; 4096]).expect("the file is writable");
        }
        image.complete(ticket);
        image.flush().expect("the file is writable");
    });

    let parent = Parent { linkage: Guid::ZERO, relative_path: Some("p".to_owned()), ..Parent::default() };
    make(&path, &CreateOptions { kind: Kind::Differencing(parent), ..CreateOptions::new(1 << 30) });
    let (_, image) = open(&path);
    each("child: map_write of 4 KiB, new sectors", 100_000, |index| {
        extents.clear();
        image.complete(image.map_write(index * 8192, 4096, &mut extents).expect("mapped"));
    });
    each("child: map_write of 4 KiB, own sectors", 100_000, |index| {
        extents.clear();
        image.complete(image.map_write(index * 8192, 4096, &mut extents).expect("mapped"));
    });
    each("child: map_read of 64 KiB, half its own", 100_000, |index| {
        extents.clear();
        image.finish(image.map_read(index % 10_000 * 65536, 65536, &mut extents).expect("mapped"));
    });
}
