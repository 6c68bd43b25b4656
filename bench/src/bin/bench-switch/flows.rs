//! Frames of 60 bytes between two ports of our own, of a few flows or each of a new one: what rules cost, and what a first packet costs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bench::vswitch::{FrontEnd, HEADER, RING, Switch, Way};

use crate::headers;
use crate::pingpong::pin;

/// Flows that are known after their first frames.
const KNOWN: u32 = 16;
/// Bytes of a frame, and from one to the next.
const FRAME: usize = 60;
const STRIDE: usize = 128;
/// Where the ports of UDP are in a frame.
const PORTS: usize = headers::LENGTH;
/// Bytes of a buffer to receive into.
const ROOM: usize = 2048;

/// What frames cost the core that switches.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Frames in a second.
    pub rate: f64,
    /// Cycles of busy time for each.
    pub cycles: f64,
    /// The same in ns.
    pub nanoseconds: f64,
}

/// A frame of UDP from the first port's station to the second's, behind its header.
fn frame(flow: u32) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend(headers::of(17, FRAME));
    bytes.extend(flow.to_be_bytes());
    // Without a checksum, which UDP over IPv4 may do.
    bytes.extend([0, (FRAME - PORTS) as u8, 0, 0]);
    bytes.resize(HEADER + FRAME, 0);
    bytes
}

/// Sends until it is told to stop; counts in `arrived`.
fn drive(sockets: &[PathBuf], new: bool, arrived: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    let mut from = FrontEnd::connect(&sockets[0], Way::Send, RING * STRIDE)?;
    let mut to = FrontEnd::connect(&sockets[1], Way::Receive, RING * ROOM)?;
    for number in 0..RING {
        from.write(number * STRIDE, &frame(number as u32 % KNOWN));
        from.describe(number, number * STRIDE, HEADER + FRAME, 0, 0);
        from.offer(number);
        to.describe(number, number * ROOM, ROOM, 2, 0);
        to.offer(number);
    }
    to.publish();
    from.publish();
    let (mut flow, mut count) = (KNOWN, 0);
    while !stop.load(Ordering::Relaxed) {
        from.take(|from, head, _| {
            if new {
                flow = flow.wrapping_add(1);
                from.write(head * STRIDE + HEADER + PORTS, &flow.to_be_bytes());
            }
            from.offer(head);
        });
        from.publish();
        to.take(|to, head, _| {
            count += 1;
            to.offer(head);
        });
        to.publish();
        arrived.store(count, Ordering::Relaxed);
    }
    Ok(())
}

/// Has frames sent through a switch that polls, by a thread on `core`; with `new`, each is the first of its flow.
pub fn measure(switch: &mut Switch, core: usize, time: Duration, new: bool) -> Result<Cost> {
    let sockets = switch.sockets().to_vec();
    let (arrived, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let driver = scope.spawn(|| {
            pin(core);
            drive(&sockets, new, &arrived, &stop)
        });
        let measured = watch(switch, time, &arrived, || driver.is_finished());
        stop.store(true, Ordering::Relaxed);
        driver.join().expect("the driver")?;
        measured
    })
}

fn watch(switch: &mut Switch, time: Duration, arrived: &AtomicU64, ended: impl Fn() -> bool) -> Result<Cost> {
    let begun = Instant::now();
    while arrived.load(Ordering::Relaxed) < 100_000 && !ended() {
        ensure!(begun.elapsed() < Duration::from_secs(10), "frames do not come through");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut look = || -> Result<_> { Ok((Instant::now(), arrived.load(Ordering::Relaxed), switch.status()?.work)) };
    let before = look()?;
    std::thread::sleep(time);
    let after = look()?;
    let (seconds, frames) = ((after.0 - before.0).as_secs_f64(), (after.1 - before.1) as f64);
    let packets = (after.2.packets - before.2.packets) as f64;
    ensure!(packets > 0.0 && frames > 0.95 * packets, "of {packets} frames {frames} came through");
    let cycles = (after.2.busy_cycles - before.2.busy_cycles) as f64 / packets;
    // It polls all the time, so all of its cycles are all that pass.
    let per_second = (after.2.cycles - before.2.cycles) as f64 / seconds;
    Ok(Cost { rate: frames / seconds, cycles, nanoseconds: cycles / per_second * 1e9 })
}
