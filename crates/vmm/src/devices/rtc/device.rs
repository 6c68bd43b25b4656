//! The clock's registers.
//!
//! The time is the host's plus an offset. A guest sets it by writing the time registers, with the SET bit of register B around them
//! or without. There are no interrupts; their enable bits can be written and do nothing.

use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::calendar::DateTime;
use super::state::{CMOS_BYTES, RtcState};
use crate::bus::BusDevice;
use crate::virtio::RestoreError;

/// The first I/O port: the index; the second is the data.
pub const PORT: u16 = 0x70;
/// How many I/O ports the clock has.
pub const PORTS: u16 = 2;

const SECOND: u8 = 0x00;
const MINUTE: u8 = 0x02;
const HOUR: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const CENTURY: u8 = 0x32;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;

const A_UPDATE_IN_PROGRESS: u8 = 0x80;
/// 32.768 kHz time base, 1024 Hz: what a PC's firmware sets.
const A_DEFAULT: u8 = 0x26;
const B_SET: u8 = 0x80;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const D_BATTERY_GOOD: u8 = 0x80;
const HOUR_PM: u8 = 0x80;

/// How long before each second a clock says that it is about to change (MC146818 data sheet, t_BUC).
const UPDATE_NANOS: u32 = 244_000;
const SECOND_NANOS: u32 = 1_000_000_000;

/// A real-time clock.
pub struct Rtc {
    clock: Box<dyn FnMut() -> SystemTime + Send>,
    offset_seconds: i64,
    cmos: [u8; CMOS_BYTES],
    index: u8,
    /// The time as the guest has set it so far, while the SET bit stops the clock.
    set_time: Option<DateTime>,
    /// The second at the last access, if that was a read of register A.
    polled_second: Option<i64>,
}

impl Default for Rtc {
    fn default() -> Self {
        Rtc::new()
    }
}

impl Rtc {
    /// A clock that shows the host's UTC.
    pub fn new() -> Rtc {
        Rtc::with_clock(Box::new(SystemTime::now))
    }

    /// A clock that follows another one.
    pub fn with_clock(clock: Box<dyn FnMut() -> SystemTime + Send>) -> Rtc {
        let mut cmos = [0; CMOS_BYTES];
        cmos[usize::from(REGISTER_A)] = A_DEFAULT;
        cmos[usize::from(REGISTER_B)] = B_24_HOURS;
        Rtc { clock, offset_seconds: 0, cmos, index: 0, set_time: None, polled_second: None }
    }

    /// Notes the size of memory in bytes, below and above 4 GiB, where firmware looks for it.
    pub fn set_memory_size(&mut self, below_4g: u64, above_4g: u64) {
        let above_16m = (below_4g.saturating_sub(16 << 20) >> 16).min(0xffff) as u16;
        let above_1m = (below_4g.saturating_sub(1 << 20) >> 10).min(0xffff) as u16;
        let above_4g = (above_4g >> 16).min(0xff_ffff) as u32;
        self.cmos[0x15..0x17].copy_from_slice(&640u16.to_le_bytes());
        self.cmos[0x17..0x19].copy_from_slice(&above_1m.to_le_bytes());
        self.cmos[0x30..0x32].copy_from_slice(&above_1m.to_le_bytes());
        self.cmos[0x34..0x36].copy_from_slice(&above_16m.to_le_bytes());
        self.cmos[0x5b..0x5e].copy_from_slice(&above_4g.to_le_bytes()[..3]);
    }

    /// A reset of the VM: time and memory have a battery, and stay.
    pub fn reset(&mut self) {
        self.finish_setting();
        self.cmos[usize::from(REGISTER_A)] = A_DEFAULT;
        self.cmos[usize::from(REGISTER_B)] = B_24_HOURS;
        self.index = 0;
        self.polled_second = None;
    }

    /// The clock's state, an [`RtcState`].
    pub fn save(&self) -> Vec<u8> {
        RtcState {
            offset_seconds: self.offset_seconds,
            cmos: self.cmos.to_vec(),
            index: self.index.into(),
            setting: self.set_time.is_some(),
            set_seconds: self.set_time.map_or(0, DateTime::to_unix),
        }
        .encode_to_vec()
    }

    /// Takes back what `save` returned, on this host or another. The guest's clock went on in between.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let (state, cmos) = RtcState::decode(state)
            .map_err(|error| RestoreError::Malformed { device: "clock", reason: error.to_string() })?
            .checked()?;
        self.offset_seconds = state.offset_seconds;
        self.cmos = cmos;
        self.index = state.index as u8;
        self.set_time = state.set_time();
        self.polled_second = None;
        Ok(())
    }

    /// The host's time: seconds since 1970 and nanoseconds.
    fn host_time(&mut self) -> (i64, u32) {
        match (self.clock)().duration_since(UNIX_EPOCH) {
            Ok(time) => (i64::try_from(time.as_secs()).unwrap_or(i64::MAX), time.subsec_nanos()),
            // A host whose clock is before 1970 has lost it.
            Err(_) => (0, 0),
        }
    }

    fn time(&mut self) -> DateTime {
        match self.set_time {
            Some(time) => time,
            None => DateTime::from_unix(self.host_time().0.saturating_add(self.offset_seconds)),
        }
    }

    fn set_offset(&mut self, time: DateTime) {
        self.offset_seconds = time.to_unix().saturating_sub(self.host_time().0);
    }

    fn finish_setting(&mut self) {
        if let Some(time) = self.set_time.take() {
            self.set_offset(time);
        }
    }

    fn mode(&self, bit: u8) -> bool {
        self.cmos[usize::from(REGISTER_B)] & bit != 0
    }

    fn encode(&self, value: u8) -> u8 {
        if self.mode(B_BINARY) { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.mode(B_BINARY) { value } else { (value >> 4).min(9) * 10 + (value & 0x0f).min(9) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.mode(B_24_HOURS) {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { HOUR_PM } else { 0 };
        self.encode(if hour.is_multiple_of(12) { 12 } else { hour % 12 }) | pm
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.mode(B_24_HOURS) {
            return self.decode(value);
        }
        self.decode(value & !HOUR_PM) % 12 + if value & HOUR_PM != 0 { 12 } else { 0 }
    }

    /// Register A: says "update in progress" in the last moment of each second. Who polls for the update to begin may be too slow
    /// to ever hit that moment; it is told once after a second has passed. Two reads in a row never both say so for that reason,
    /// and the moment itself passes: nobody waits forever for either.
    fn register_a(&mut self) -> u8 {
        let (second, nanos) = self.host_time();
        let missed = self.polled_second.is_some_and(|polled| polled != second);
        let updating = self.set_time.is_none() && (missed || nanos >= SECOND_NANOS - UPDATE_NANOS);
        self.polled_second = Some(second);
        (self.cmos[usize::from(REGISTER_A)] & !A_UPDATE_IN_PROGRESS) | if updating { A_UPDATE_IN_PROGRESS } else { 0 }
    }

    fn read_register(&mut self) -> u8 {
        if self.index == REGISTER_A {
            return self.register_a();
        }
        self.polled_second = None;
        let time = self.time();
        match self.index {
            SECOND => self.encode(time.second),
            MINUTE => self.encode(time.minute),
            HOUR => self.encode_hour(time.hour),
            DAY_OF_WEEK => self.encode(time.day_of_week()),
            DAY => self.encode(time.day),
            MONTH => self.encode(time.month),
            YEAR => self.encode((time.year % 100) as u8),
            CENTURY => self.encode((time.year / 100) as u8),
            // No interrupt is ever pending.
            REGISTER_C => 0,
            REGISTER_D => D_BATTERY_GOOD,
            index => self.cmos[usize::from(index)],
        }
    }

    fn write_register(&mut self, value: u8) {
        let mut time = self.time();
        match self.index {
            SECOND => time.second = self.decode(value),
            MINUTE => time.minute = self.decode(value),
            HOUR => time.hour = self.decode_hour(value),
            DAY => time.day = self.decode(value),
            MONTH => time.month = self.decode(value),
            YEAR => time.year = time.year / 100 * 100 + i64::from(self.decode(value) % 100),
            CENTURY => time.year = i64::from(self.decode(value) % 100) * 100 + time.year % 100,
            // The day of the week follows from the date.
            DAY_OF_WEEK | REGISTER_C | REGISTER_D => return,
            REGISTER_B => {
                self.cmos[usize::from(REGISTER_B)] = value;
                if value & B_SET == 0 {
                    self.finish_setting();
                } else {
                    self.set_time = Some(time);
                }
                return;
            }
            index => {
                self.cmos[usize::from(index)] = value;
                return;
            }
        }
        match &mut self.set_time {
            // Kept as written until all of it is: the 31st is no day of the month that is about to be replaced.
            Some(set_time) => *set_time = time,
            None => self.set_offset(time),
        }
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..u64::from(PORTS)).zip(data) {
            // The index cannot be read.
            *byte = if port == 1 { self.read_register() } else { 0xff };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (port, byte) in (offset..u64::from(PORTS)).zip(data) {
            match port {
                // The top bit masks the NMI, which there is none of.
                0 => self.index = byte & 0x7f,
                _ => self.write_register(*byte),
            }
        }
    }
}
