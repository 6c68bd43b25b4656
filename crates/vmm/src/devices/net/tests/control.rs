use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::TestInterrupt;

const FEATURES: u64 =
    MODERN | bits(&[CTRL_VQ, CTRL_RX, CTRL_MAC_ADDR, CTRL_GUEST_OFFLOADS, STATUS, GUEST_ANNOUNCE]) | GUEST_OFFLOADS;

fn command(harness: &mut Harness<Net>, queue: usize, class: u8, number: u8, argument: &[u8]) -> u8 {
    let memory = harness.memory.clone();
    memory.write_slice(&[class, number], GuestAddress(BUFFERS)).unwrap();
    memory.write_slice(argument, GuestAddress(BUFFERS + 0x100)).unwrap();
    memory.write_obj(0xaau8, GuestAddress(BUFFERS + 0x200)).unwrap();
    let buffer = |at, length, device_writes| Buffer { address: BUFFERS + at, length, device_writes };
    let used =
        harness.exchange(queue, &[buffer(0, 2, false), buffer(0x100, argument.len() as u32, false), buffer(0x200, 1, true)]);
    assert_eq!(used.length, 1);
    memory.read_obj(GuestAddress(BUFFERS + 0x200)).unwrap()
}

fn config<const N: usize>(device: &Net, offset: u64) -> [u8; N] {
    let mut data = [0; N];
    device.read_config(offset, &mut data);
    data
}

#[test]
fn the_configuration_space_tells_address_status_pairs_and_mtu() {
    let device = Bench::idle(3).harness.device;
    assert_eq!(config::<14>(&device, 0), [0x52, 0x54, 0, 1, 2, 3, 1, 0, 3, 0, 0xdc, 5, 0, 0]);
    assert_eq!(config::<2>(&device, 8), [3, 0]);
    assert_eq!(config::<4>(&device, u64::MAX), [0; 4]);
}

#[test]
fn the_driver_changes_the_address_until_it_resets_the_device() {
    let mut bench = Bench::active(FEATURES);
    let new = [2, 0, 0, 0, 0, 9];
    assert_eq!(command(&mut bench.harness, 2, CLASS_MAC, MAC_ADDR_SET, &new), ACK_OK);
    assert_eq!(config::<6>(&bench.harness.device, 0), new);
    assert_eq!(command(&mut bench.harness, 2, CLASS_MAC, MAC_ADDR_SET, &[1, 0, 0, 0, 0, 9]), ACK_ERROR);
    assert_eq!(command(&mut bench.harness, 2, CLASS_MAC, MAC_ADDR_SET, &[2, 0]), ACK_ERROR);
    bench.harness.device.quiesce();
    bench.harness.device.reset();
    assert_eq!(config::<6>(&bench.harness.device, 0), MAC);
}

#[test]
fn filters_and_offloads_are_accepted_within_what_was_agreed() {
    let mut bench = Bench::active(FEATURES & !(1 << GUEST_UFO));
    for number in 0..=RX_LAST {
        assert_eq!(command(&mut bench.harness, 2, CLASS_RX, number, &[1]), ACK_OK);
    }
    assert_eq!(command(&mut bench.harness, 2, CLASS_RX, 6, &[1]), ACK_ERROR);
    assert_eq!(command(&mut bench.harness, 2, CLASS_MAC, MAC_TABLE_SET, &[0; 8]), ACK_OK);
    let offloads = |mask: u64| mask.to_le_bytes();
    assert_eq!(command(&mut bench.harness, 2, CLASS_GUEST_OFFLOADS, 0, &offloads(1 << GUEST_CSUM)), ACK_OK);
    assert_eq!(command(&mut bench.harness, 2, CLASS_GUEST_OFFLOADS, 0, &offloads(1 << GUEST_UFO)), ACK_ERROR);
    assert_eq!(command(&mut bench.harness, 2, CLASS_MQ, 0, &[1, 0]), ACK_ERROR);
    assert_eq!(command(&mut bench.harness, 2, 77, 0, &[1, 0]), ACK_ERROR);
}

fn wait_status(harness: &Harness<Net>, interrupt: &TestInterrupt, status: u8) {
    interrupt.wait_until("the status does not change", || config::<1>(&harness.device, 6) == [status]);
}

#[test]
fn the_driver_is_asked_to_announce_itself_and_says_when_it_did() {
    let mut bench = Bench::active(FEATURES);
    bench.harness.device.handle().announce();
    let interrupt = bench.harness.interrupt.clone();
    wait_status(&bench.harness, &interrupt, 3);
    interrupt.wait_until("no interrupt", || interrupt.config_changes() == 1);
    assert_eq!(command(&mut bench.harness, 2, CLASS_ANNOUNCE, 0, &[]), ACK_OK);
    wait_status(&bench.harness, &interrupt, 1);
}

#[test]
fn a_wish_to_announce_is_kept_until_the_device_is_active() {
    let mut bench = Bench::idle(1);
    bench.harness.device.handle().announce();
    bench.harness.activate(FEATURES).unwrap();
    let interrupt = bench.harness.interrupt.clone();
    wait_status(&bench.harness, &interrupt, 3);
}

#[test]
fn the_device_announces_a_driver_that_cannot() {
    let mut bench = Bench::active(MODERN);
    bench.harness.device.handle().announce();
    let frame = bench.leave();
    assert_eq!(frame.len(), 60);
    assert_eq!(frame[..14], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 1, 2, 3, 0x80, 0x35]);
}

#[test]
fn pairs_work_once_the_driver_asked_for_them() {
    let mut bench = Bench::idle(2);
    bench.harness.activate(FEATURES | 1 << MQ | 1 << CTRL_VQ).unwrap();
    let control = 4;
    assert_eq!(command(&mut bench.harness, control, CLASS_MQ, 0, &[0, 0]), ACK_ERROR);
    assert_eq!(command(&mut bench.harness, control, CLASS_MQ, 0, &[3, 0]), ACK_ERROR);
    assert_eq!(command(&mut bench.harness, control, CLASS_MQ, 0, &[2, 0]), ACK_OK);
    bench.harness.queues[2].push(&[Buffer { address: BUFFERS + 0x1_0000, length: 2000, device_writes: true }]);
    bench.harness.queues[2].kick();
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend(body(5, 80));
    bench.wires[1].write_all(&frame).unwrap();
    let used = bench.harness.wait_used(2);
    assert_eq!(bench.received(1, used), (1, body(5, 80)));
    // And through pauses.
    bench.harness.pause_and_resume();
    bench.harness.queues[2].push(&[Buffer { address: BUFFERS + 0x2_0000, length: 2000, device_writes: true }]);
    bench.harness.queues[2].kick();
    bench.wires[1].write_all(&frame).unwrap();
    let used = bench.harness.wait_used(2);
    assert_eq!(bench.received(2, used), (1, body(5, 80)));
}
