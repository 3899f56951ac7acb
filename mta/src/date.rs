//! Dates in UTC, from milliseconds since 1970: as RFC 5322 and as RFC 3339 write them.

/// A moment, taken apart.
struct Civil {
    year: u64,
    /// 0 to 11.
    month: usize,
    /// 1 to 31.
    day: u64,
    /// 0 is a Thursday, as 1970-01-01 was.
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
    milli: u64,
}

fn civil(unix_ms: u64) -> Civil {
    let seconds = unix_ms / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Whole cycles of the calendar (400 years) first, then years: at most 400 steps whatever the number.
    let (mut year, mut left) = (1970 + 400 * (days / 146_097), days % 146_097);
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while left >= 365 + u64::from(is_leap(year)) {
        left -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 0;
    for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    let weekday = (days % 7) as usize;
    Civil { year, month, day: left + 1, weekday, hour: second / 3600, minute: second / 60 % 60, second: second % 60, milli: unix_ms % 1000 }
}

/// Days since 1970 of a date of the Gregorian calendar; months from 1.
pub fn days(year: u64, month: u64, day: u64) -> u64 {
    // Years begin in March, so that the leap day is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// As RFC 5322 section 3.3 writes it: `Wed, 25 Nov 2026 08:00:00 +0000`.
pub fn rfc5322(unix_ms: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let c = civil(unix_ms);
    let (weekday, month) = (DAYS.get(c.weekday).copied().unwrap_or_default(), MONTHS.get(c.month).copied().unwrap_or_default());
    format!("{weekday}, {} {month} {:04} {:02}:{:02}:{:02} +0000", c.day, c.year, c.hour, c.minute, c.second)
}

/// As RFC 3339 writes it: `2026-11-25T08:00:00.123Z`.
pub fn rfc3339(unix_ms: u64) -> String {
    let c = civil(unix_ms);
    format!("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", c.year, c.month + 1, c.day, c.hour, c.minute, c.second, c.milli)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        for (unix_ms, mail, iso) in [
            (0, "Thu, 1 Jan 1970 00:00:00 +0000", "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "Tue, 29 Feb 2000 00:00:00 +0000", "2000-02-29T00:00:00.000Z"),
            (1_795_593_600_123, "Wed, 25 Nov 2026 08:00:00 +0000", "2026-11-25T08:00:00.123Z"),
            (4_107_542_399_999, "Sun, 28 Feb 2100 23:59:59 +0000", "2100-02-28T23:59:59.999Z"),
        ] {
            assert_eq!(rfc5322(unix_ms), mail);
            assert_eq!(rfc3339(unix_ms), iso);
        }
        // Any number is some date, and none takes long.
        rfc5322(u64::MAX);
    }
}
