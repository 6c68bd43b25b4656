//! A hostile guest: it writes garbage into every port, register, configuration space and queue that the monitor shows it, and proves in
//! between, by a valid request to each device, that the monitor is alive and in order.
//!
//! It is reproducible up to the speed of the machine: `maru.seed` fixes what it does. It needs a kernel that leaves it the devices
//! (`maru.no_modules`) and memory to let them loose on (`memmap=17M$128M iomem=relaxed nokaslr`).
//!
//! `maru.then` says how it ends: `poweroff`; `eject` gives all devices back first; `reset` resets the machine with all devices
//! in use, and proves after the second boot that they work. `maru.no_ports` leaves I/O ports out.

mod access;
mod arena;
mod device;
mod prove;
mod random;
mod registers;
mod rings;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lab::pid1::CommandLine;

use access::Physical;
use arena::Arena;
use device::{CONSOLE, Device, WINDOW};
use prove::prove;
use random::Random;
use registers::Ways;

/// Does what the command line says, and prints `hostile done` or `FAIL` and why.
pub fn run(line: &CommandLine) {
    if let Err(why) = attack(line) {
        println!("maru-guest: FAIL hostile: {why}");
    }
}

fn attack(line: &CommandLine) -> Result<(), String> {
    let number = |key: &str, default: u64| line.get(key).and_then(|value| value.parse().ok()).unwrap_or(default);
    let (seed, seconds) = (number("maru.seed", 1), number("maru.seconds", 10));
    let explain = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| format!("{what}: {error}")
    };
    let ports = line.get("maru.no_ports").is_none();
    if ports {
        access::allow_ports().map_err(explain("iopl"))?;
    }
    let arena = Arena::reserved(line)?;
    let window = Physical::map(WINDOW.0, WINDOW.1).map_err(explain("/dev/mem, the devices' registers"))?;
    let mut devices = device::find(&window).map_err(explain("/sys/bus/pci"))?;
    devices.iter_mut().for_each(Device::survey);
    for device in &devices {
        println!("maru-guest: hostile sees {}: {} queues, features {:#x}", device.title(), device.queues, device.offered);
    }
    if devices.is_empty() {
        return Err("there is no virtio device".into());
    }
    let prove_all = |count: u64| devices.iter().try_for_each(|device| prove(device, &arena, count));
    prove_all(0)?;
    if line.get("maru.then") == Some("reset") && registers::was_reset() {
        println!("maru-guest: hostile is back after its reset");
        finish(&devices, &arena);
        return Ok(());
    }
    println!("maru-guest: hostile begins, seed {seed}, {seconds} seconds");
    let ways = Ways::new(window, ports).map_err(explain("/dev/mem, the configuration space"))?;
    let counts = storm(&devices, &arena, &ways, seed, Duration::from_secs(seconds))?;
    println!("maru-guest: hostile did {counts}");
    match line.get("maru.then") {
        Some("eject") => registers::eject_all(&devices)?,
        Some("reset") => {
            let mut random = Random::new(seed ^ 0xff);
            devices.iter().try_for_each(|device| rings::attack(device, &arena, &mut random))?;
            registers::hide(&devices);
            registers::reset_machine();
        }
        _ => {}
    }
    finish(&devices, &arena);
    Ok(())
}

/// Says that all went well, also on a virtio console: where there is one, the host listens there.
fn finish(devices: &[Device], arena: &Arena) {
    println!("maru-guest: hostile done");
    if let Some(console) = devices.iter().find(|device| device.kind == CONSOLE)
        && let Err(why) = prove::say_on(console, arena, "maru-guest: hostile done\n")
    {
        println!("maru-guest: FAIL hostile: {why}");
    }
}

/// Attacks in random order until the time is up. Returns what was done, for people.
fn storm(devices: &[Device], arena: &Arena, ways: &Ways, seed: u64, time: Duration) -> Result<String, String> {
    let (stop, interferences) = (AtomicBool::new(false), AtomicU64::new(0));
    // Time in which the guest stood still, paused or saved, does not count.
    let (mut raged, mut last_round) = (Duration::ZERO, Instant::now());
    let mut random = Random::new(seed);
    let (mut rounds, mut proofs) = ([0u64; 4], 0u64);
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new(!seed);
            while !stop.load(Ordering::Relaxed) {
                rings::interfere(devices, arena, &mut random);
                interferences.fetch_add(40, Ordering::Relaxed);
                // The attacks themselves want to get somewhere too.
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let mut last_words = Instant::now();
        let result = loop {
            let kind = match random.below(10) {
                0 => 0,
                1 => 1,
                2 => 2,
                _ => 3,
            };
            rounds[kind] += 1;
            let victim = &devices[random.below(devices.len() as u64) as usize];
            let attacked = match kind {
                0 => {
                    if ways.ports {
                        registers::garble_ports(&mut random);
                    }
                    Ok(())
                }
                1 => registers::garble_config(devices, ways, arena, &mut random),
                2 => {
                    registers::garble_registers(victim, arena, &mut random);
                    Ok(())
                }
                _ => rings::attack(victim, arena, &mut random),
            };
            // Garbage in all configuration spaces may have hit any device.
            let everyone = kind == 1;
            let proved = attacked.and_then(|()| {
                devices.iter().filter(|device| everyone || std::ptr::eq(*device, victim)).try_for_each(|device| {
                    proofs += 1;
                    prove(device, arena, proofs)
                })
            });
            if let Err(why) = proved.and_then(|()| arena.check()) {
                break Err(format!("round {rounds:?} (seed {seed}): {why}"));
            }
            raged += last_round.elapsed().min(Duration::from_millis(500));
            last_round = Instant::now();
            if raged >= time {
                break devices.iter().try_for_each(|device| prove(device, arena, proofs));
            }
            if last_words.elapsed() > Duration::from_secs(2) {
                println!("maru-guest: hostile rounds={rounds:?} proofs={proofs}");
                last_words = Instant::now();
            }
        };
        stop.store(true, Ordering::Relaxed);
        result
    });
    let [ports, config, registers, rings] = rounds;
    result.map(|()| {
        format!(
            "{ports} rounds on ports, {config} on configuration spaces, {registers} on registers, {rings} on queues, {} \
             interferences; {proofs} proofs",
            interferences.load(Ordering::Relaxed)
        )
    })
}
