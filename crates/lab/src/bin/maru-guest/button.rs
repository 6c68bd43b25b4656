//! The ACPI power button, as the kernel's input layer shows it.

use std::fs::{self, File};
use std::io::Read;
use std::thread;

use lab::pid1::{self, PowerAction};

/// `struct input_event` on a 64-bit machine: 16 bytes of time, type, code, value.
const EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Powers the guest off when its button is pressed.
pub fn watch() {
    let devices = fs::read_dir("/dev/input").into_iter().flatten().flatten();
    for device in devices.filter(|entry| entry.file_name().to_string_lossy().starts_with("event")) {
        if let Ok(file) = File::open(device.path()) {
            thread::spawn(move || wait_for_press(file));
        }
    }
}

fn wait_for_press(mut events: File) {
    let mut event = [0; EVENT_BYTES];
    while events.read_exact(&mut event).is_ok() {
        let kind = u16::from_le_bytes([event[16], event[17]]);
        let code = u16::from_le_bytes([event[18], event[19]]);
        if kind == EV_KEY && code == KEY_POWER && event[20] == 1 {
            println!("maru-guest: power button");
            println!("maru-guest: cannot power off: {}", pid1::power(PowerAction::Off));
        }
    }
}
