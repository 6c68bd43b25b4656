//! All that a processor or a disk gives: for measuring what a VM is given.
//!
//! Without a disk, a thread for each processor computes. With disks (`maru.disk=vda`), a thread for each writes 4 KiB after 4 KiB, around the cache
//! and one at a time: each is one operation.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;

use lab::pid1::CommandLine;

use crate::unit::{UNIT, Unit};

/// Works until the VM is stopped.
pub fn run(line: &CommandLine) -> ! {
    let disks: Vec<String> = line.all("maru.disk").map(|name| format!("/dev/{name}")).collect();
    if disks.is_empty() {
        let processors = thread::available_parallelism().map_or(1, |count| count.get());
        for _ in 0..processors {
            thread::spawn(|| {
                let mut number = 0_u64;
                loop {
                    number = black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
                }
            });
        }
    }
    for path in disks {
        thread::spawn(move || {
            if let Err(error) = write(&path) {
                println!("maru-guest: FAIL {path}: {error}");
            }
        });
    }
    println!("maru-guest: busy");
    loop {
        thread::park();
    }
}

fn write(path: &str) -> io::Result<()> {
    let mut file = File::options().write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let units = file.seek(SeekFrom::End(0))? / UNIT as u64;
    let unit = Box::new(Unit([0xa5; UNIT]));
    loop {
        for number in 0..units {
            file.write_all_at(&unit.0, number * UNIT as u64)?;
        }
    }
}
