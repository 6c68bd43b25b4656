//! Seconds since 1970 and what a clock shows.

/// A date and time as a clock shows it (UTC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    /// 0 to 9999.
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

const DAY: i64 = 86_400;

/// The first second of the year 0.
const FIRST: i64 = -62_167_219_200;
/// The last second of the year 9999.
const LAST: i64 = 253_402_300_799;

impl DateTime {
    /// What a clock shows `seconds` after 1970; the years end at 0 and 9999.
    pub fn from_unix(seconds: i64) -> DateTime {
        let seconds = seconds.clamp(FIRST, LAST);
        let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // The algorithm counts in eras of 400 years, and years that start in March: the leap day is the last of its year.
        let days = days + 719_468;
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        DateTime {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * shifted + 2) / 5 + 1) as u8,
            hour: (time / 3600) as u8,
            minute: (time / 60 % 60) as u8,
            second: (time % 60) as u8,
        }
    }

    /// Seconds since 1970. Fields out of range are brought into it; a day beyond the month's end is one of the next month.
    pub fn to_unix(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let year = self.year.clamp(0, 9999) - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let shifted = if month > 2 { month - 3 } else { month + 9 };
        let day_of_year = (153 * shifted + 2) / 5 + i64::from(self.day.clamp(1, 31)) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        let (hour, minute, second) = (self.hour.min(23), self.minute.min(59), self.second.min(59));
        days * DAY + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second)
    }

    /// The day of the week, 1 for Sunday to 7 for Saturday.
    pub fn day_of_week(self) -> u8 {
        // 1970 began on a Thursday.
        ((self.to_unix().div_euclid(DAY) + 4).rem_euclid(7) + 1) as u8
    }
}
