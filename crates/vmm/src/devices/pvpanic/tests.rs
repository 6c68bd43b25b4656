use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::bus::BusDevice;
use crate::virtio::RestoreError;

fn notifier() -> (Pvpanic, Receiver<GuestPanic>) {
    let (sender, receiver) = channel();
    (Pvpanic::new(Box::new(move |event| sender.send(event).unwrap())), receiver)
}

fn reported(receiver: &Receiver<GuestPanic>) -> Vec<GuestPanic> {
    receiver.try_iter().collect()
}

#[test]
fn a_guest_learns_which_events_there_are() {
    let mut data = [0; 4];
    notifier().0.read(0, &mut data);
    assert_eq!(data, [3, 0, 0, 0]);
}

#[test]
fn each_event_is_reported_once_until_reset() {
    let (mut pvpanic, events) = notifier();
    for bits in [0, 0xfc, 1, 1, 3, 0xff] {
        pvpanic.write(0, &[bits]);
    }
    pvpanic.write(0, &[]);
    pvpanic.write(1, &[1]);
    assert_eq!(reported(&events), [GuestPanic::Panicked, GuestPanic::CrashLoaded]);
    pvpanic.reset();
    pvpanic.write(0, &[2, 0, 0, 0]);
    assert_eq!(reported(&events), [GuestPanic::CrashLoaded]);
}

#[test]
fn a_restored_notifier_does_not_report_again() {
    let (mut pvpanic, events) = notifier();
    pvpanic.write(0, &[1]);
    assert_eq!(reported(&events).len(), 1);
    let saved = pvpanic.save();
    let (mut restored, events) = notifier();
    restored.restore(&saved).unwrap();
    restored.write(0, &[1]);
    assert_eq!(reported(&events), []);
    assert_eq!(restored.save(), saved);
    assert!(matches!(restored.restore(&[0xff; 3]), Err(RestoreError::Malformed { .. })));
}

#[test]
fn acpi_names_the_port() {
    let mut aml = Vec::new();
    acpi_tables::Aml::to_aml_bytes(&acpi_device(), &mut aml);
    let contains = |part: &[u8]| aml.windows(part.len()).any(|window| window == part);
    assert!(contains(b"_SB_PEVT") && contains(b"_HID\x0dQEMU0001\0") && contains(&[0x47, 1, 5, 5, 5, 5, 1, 1]));
}
