use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;

use super::calendar::DateTime;
use super::*;
use crate::bus::BusDevice;
use crate::virtio::RestoreError;

type Now = Arc<Mutex<Duration>>;

/// 2024-02-29 23:59:58 UTC, a Thursday.
const LEAP_DAY: Duration = Duration::from_secs(1_709_251_198);

fn clock(now: Duration) -> (Rtc, Now) {
    let now = Arc::new(Mutex::new(now));
    let host = now.clone();
    (Rtc::with_clock(Box::new(move || UNIX_EPOCH + *host.lock().unwrap())), now)
}

fn get(rtc: &mut Rtc, index: u8) -> u8 {
    rtc.write(0, &[index]);
    let mut data = [0];
    rtc.read(1, &mut data);
    data[0]
}

fn set(rtc: &mut Rtc, index: u8, value: u8) {
    rtc.write(0, &[index]);
    rtc.write(1, &[value]);
}

/// Century, year, month, day, hour, minute, second, as in the registers.
fn time(rtc: &mut Rtc) -> [u8; 7] {
    [0x32, 9, 8, 7, 4, 2, 0].map(|index| get(rtc, index))
}

#[test]
fn the_time_is_the_hosts_in_bcd() {
    let (mut rtc, now) = clock(LEAP_DAY);
    assert_eq!(time(&mut rtc), [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58]);
    assert_eq!(get(&mut rtc, 6), 5);
    *now.lock().unwrap() += Duration::from_secs(2);
    assert_eq!(time(&mut rtc), [0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00]);
    assert_eq!(get(&mut rtc, 6), 6);
}

#[test]
fn binary_and_twelve_hour_modes() {
    let (mut rtc, now) = clock(LEAP_DAY);
    set(&mut rtc, 0x0b, 0x06);
    assert_eq!(time(&mut rtc), [20, 24, 2, 29, 23, 59, 58]);
    set(&mut rtc, 0x0b, 0x04);
    assert_eq!(get(&mut rtc, 4), 0x80 | 11);
    set(&mut rtc, 0x0b, 0x00);
    assert_eq!(get(&mut rtc, 4), 0x91);
    *now.lock().unwrap() += Duration::from_secs(2);
    assert_eq!(get(&mut rtc, 4), 0x12);
    set(&mut rtc, 4, 0x92);
    set(&mut rtc, 0x0b, 0x02);
    assert_eq!(get(&mut rtc, 4), 0x12);
}

#[test]
fn registers_c_and_d_never_report_an_interrupt_or_an_empty_battery() {
    let (mut rtc, _) = clock(LEAP_DAY);
    set(&mut rtc, 0x0b, 0x72);
    set(&mut rtc, 0x0c, 0xff);
    set(&mut rtc, 0x0d, 0);
    assert_eq!((get(&mut rtc, 0x0b), get(&mut rtc, 0x0c), get(&mut rtc, 0x0d)), (0x72, 0, 0x80));
    let mut index = [0];
    rtc.read(0, &mut index);
    assert_eq!(index, [0xff]);
}

#[test]
fn a_guest_sets_the_clock_field_by_field_and_it_goes_on_from_there() {
    let (mut rtc, now) = clock(LEAP_DAY);
    set(&mut rtc, 0x0b, 0x82);
    // The day first: the 31st does not exist in the month shown until then.
    for (index, value) in [(7, 0x31), (8, 0x12), (9, 0x99), (0x32, 0x19), (4, 0x23), (2, 0x59), (0, 0x50)] {
        set(&mut rtc, index, value);
        *now.lock().unwrap() += Duration::from_secs(1);
    }
    assert_eq!(time(&mut rtc), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x50]);
    set(&mut rtc, 0x0b, 0x02);
    *now.lock().unwrap() += Duration::from_secs(10);
    assert_eq!(time(&mut rtc), [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]);
    set(&mut rtc, 2, 0x30);
    assert_eq!(time(&mut rtc), [0x20, 0x00, 0x01, 0x01, 0x00, 0x30, 0x00], "without SET, a field counts at once");
}

#[test]
fn an_update_is_announced_in_the_last_moment_of_a_second_and_passes() {
    let (mut rtc, now) = clock(LEAP_DAY);
    assert_eq!(get(&mut rtc, 0x0a), 0x26);
    *now.lock().unwrap() = LEAP_DAY + Duration::from_micros(999_800);
    assert_eq!(get(&mut rtc, 0x0a), 0xa6);
    get(&mut rtc, 0);
    *now.lock().unwrap() = LEAP_DAY + Duration::from_secs(1);
    assert_eq!(get(&mut rtc, 0x0a), 0x26);
    *now.lock().unwrap() = LEAP_DAY + Duration::from_micros(1_999_800);
    set(&mut rtc, 0x0b, 0x82);
    assert_eq!(get(&mut rtc, 0x0a), 0x26, "a stopped clock does not update");
}

#[test]
fn who_polls_slowly_sees_each_update_once() {
    let (mut rtc, now) = clock(LEAP_DAY);
    let mut updates = 0;
    for _ in 0..50 {
        for wanted in [true, false] {
            let mut polls = 0;
            while (get(&mut rtc, 0x0a) & 0x80 != 0) != wanted {
                *now.lock().unwrap() += Duration::from_millis(30);
                polls += 1;
                assert!(polls < 60, "a guest would hang");
            }
        }
        updates += 1;
    }
    assert_eq!(updates, 50);
    let elapsed = *now.lock().unwrap() - LEAP_DAY;
    assert!((49..=51).contains(&elapsed.as_secs()), "{elapsed:?}");
}

#[test]
fn memory_sizes_are_where_firmware_looks() {
    let (mut rtc, _) = clock(LEAP_DAY);
    rtc.set_memory_size(3 << 30, 5 << 30);
    assert_eq!([0x34, 0x35, 0x5b, 0x5c, 0x5d].map(|index| get(&mut rtc, index)), [0x00, 0xbf, 0x00, 0x40, 0x01]);
    rtc.set_memory_size(1 << 20, 0);
    assert_eq!([0x34, 0x35, 0x17, 0x18].map(|index| get(&mut rtc, index)), [0; 4]);
}

#[test]
fn offset_and_memory_survive_save_restore_and_reset() {
    let (mut rtc, now) = clock(LEAP_DAY);
    set(&mut rtc, 0x40, 0x5a);
    set(&mut rtc, 9, 0x30);
    set(&mut rtc, 0x0b, 0x82);
    set(&mut rtc, 0, 0x07);
    let saved = rtc.save();
    let (mut restored, later) = clock(LEAP_DAY + Duration::from_secs(100));
    restored.restore(&saved).unwrap();
    assert_eq!(restored.save(), saved);
    assert_eq!((get(&mut restored, 9), get(&mut restored, 0), get(&mut restored, 0x40)), (0x30, 0x07, 0x5a));
    set(&mut restored, 0x0b, 0x02);
    *later.lock().unwrap() += Duration::from_secs(1);
    assert_eq!((get(&mut restored, 9), get(&mut restored, 0)), (0x30, 0x08));
    restored.reset();
    assert_eq!((get(&mut restored, 9), get(&mut restored, 0), get(&mut restored, 0x40)), (0x30, 0x08, 0x5a));
    drop(now);
}

#[test]
fn garbage_is_no_state() {
    let (mut rtc, _) = clock(LEAP_DAY);
    let before = rtc.save();
    let encode = |state: RtcState| prost::Message::encode_to_vec(&state);
    let short = encode(RtcState { cmos: vec![0; 127], ..RtcState::default() });
    let index = encode(RtcState { cmos: vec![0; 128], index: 128, ..RtcState::default() });
    for garbage in [vec![0xff; 9], vec![], short, index] {
        assert!(matches!(rtc.restore(&garbage), Err(RestoreError::Malformed { .. })));
        assert_eq!(rtc.save(), before);
    }
}

#[test]
fn a_new_clock_shows_the_hosts_time() {
    let mut rtc = Rtc::new();
    set(&mut rtc, 0x0b, 0x06);
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let [century, year, month, day, hour, minute, second] = time(&mut rtc);
    let shown = DateTime { year: i64::from(century) * 100 + i64::from(year), month, day, hour, minute, second };
    assert!((0..120).contains(&(shown.to_unix() - before)));
}

#[test]
fn acpi_names_the_ports() {
    let mut aml = Vec::new();
    acpi_tables::Aml::to_aml_bytes(&acpi_device(), &mut aml);
    assert!(aml.windows(8).any(|window| window == [0x47, 1, 0x70, 0, 0x70, 0, 1, 2]));
}

proptest! {
    #[test]
    fn dates_and_seconds_are_the_same_time(seconds in -62_167_219_200i64..253_402_300_799) {
        let date = DateTime::from_unix(seconds);
        prop_assert_eq!(date.to_unix(), seconds);
        let next = DateTime::from_unix(seconds + 86_400);
        prop_assert_eq!(next.day_of_week() % 7, (date.day_of_week() + 1) % 7);
        prop_assert!(next.day == date.day + 1 || next.day == 1 && date.day >= 28 || seconds > 253_402_214_400);
    }

    #[test]
    fn nothing_a_guest_writes_panics(
        accesses in prop::collection::vec((any::<bool>(), 0u64..3, any::<[u8; 2]>(), 1usize..3), 1..300),
        state in prop::option::of((any::<i64>(), any::<[u8; 32]>(), 0u32..128, any::<bool>(), any::<i64>())),
    ) {
        let (mut rtc, now) = clock(LEAP_DAY);
        if let Some((offset_seconds, bytes, index, setting, set_seconds)) = state {
            let cmos = bytes.repeat(4);
            let state = RtcState { offset_seconds, cmos, index, setting, set_seconds };
            rtc.restore(&prost::Message::encode_to_vec(&state)).unwrap();
        }
        for (write, offset, mut data, length) in accesses {
            if write { rtc.write(offset, &data[..length]) } else { rtc.read(offset, &mut data[..length]) }
            *now.lock().unwrap() += Duration::from_millis(u64::from(data[0]));
        }
        let saved = rtc.save();
        rtc.restore(&saved).unwrap();
    }
}
