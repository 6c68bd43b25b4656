//! Whether this guest runs twice, written to a disk that both would have.
//!
//! The disk is a log: record N is in unit N, and says who wrote it. Each guest goes on behind the last record that it finds, and looks before
//! each of its own whether the one before is still its own and nothing is behind it. So if two run at once, records of the one come
//! behind those of the other, and one of them says so within two of its steps.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;
use std::time::Duration;

use lab::pid1::CommandLine;

use crate::unit::{UNIT, Unit};

/// Between two records.
const PACE: Duration = Duration::from_millis(50);

/// A unit, `None` if nothing was ever written there.
fn read(file: &File, number: u64) -> io::Result<Option<Box<Unit>>> {
    let mut unit = Unit::zeroed();
    file.read_exact_at(&mut unit.0, number * UNIT as u64)?;
    Ok((unit.0[0] != 0).then_some(unit))
}

/// `NUMBER BOOT-ID`, as a line.
fn record(number: u64, boot: &str) -> Box<Unit> {
    let mut unit = Unit::zeroed();
    let line = format!("{number} {boot}\n");
    unit.0[..line.len()].copy_from_slice(line.as_bytes());
    unit
}

/// The first unit without a record: all before it have one.
fn end(file: &File, units: u64) -> io::Result<u64> {
    let (mut written, mut empty) = (0, units);
    while written < empty {
        let middle = written.midpoint(empty);
        match read(file, middle)? {
            Some(_) => written = middle + 1,
            None => empty = middle,
        }
    }
    Ok(written)
}

fn write(path: &str) -> io::Result<()> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let mut file = File::options().read(true).write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(path)?;
    let units = file.seek(SeekFrom::End(0))? / UNIT as u64;
    let begin = end(&file, units)?;
    println!("maru-guest: witness boot={boot} from={begin}");
    let mut last = if begin == 0 { None } else { read(&file, begin - 1)? };
    for number in begin..units {
        let before = if number == 0 { None } else { read(&file, number - 1)? };
        if before != last || read(&file, number)?.is_some() {
            return Err(io::Error::other(format!("someone else has written beside record {number}")));
        }
        let own = record(number, &boot);
        file.write_all_at(&own.0, number * UNIT as u64)?;
        last = Some(own);
        thread::sleep(PACE);
    }
    Err(io::Error::other("the disk is full"))
}

/// Writes until the VM is stopped.
pub fn run(line: &CommandLine) -> ! {
    let path = format!("/dev/{}", line.get("maru.disk").unwrap_or("vda"));
    if let Err(error) = write(&path) {
        println!("maru-guest: FAIL {path}: {error}");
    }
    loop {
        thread::park();
    }
}
