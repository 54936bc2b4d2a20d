//! The letters of `strftime` as C's library writes them in its own locale, and in UTC.

const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The time in UTC. A letter that is not known stays as it is written.
pub(super) fn format_utc(unix_seconds: u64, format: &str) -> String {
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil(days);
    let month_name = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
    let day_name = DAYS.get((days % 7) as usize).copied().unwrap_or_default();
    let hour = second / 3600;

    let (minute, second) = (second / 60 % 60, second % 60);
    let weekday = (days + 4) % 7;
    let day_of_year = days - days_before(year);

    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut next = letters.next();
        // `%-d`: without the zero in front.
        let bare = next == Some('-');
        if bare {
            next = letters.next();
        }
        let mut number = |value: u64, width: usize| match bare {
            true => out.push_str(&value.to_string()),
            false => out.push_str(&format!("{value:0width$}")),
        };
        match next {
            Some('Y') => number(year, 1),
            Some('C') => number(year / 100, 2),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') if bare => number(day, 1),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('j') => number(day_of_year + 1, 3),
            Some('H') => number(hour, 2),
            Some('I') => number((hour + 11) % 12 + 1, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('f') => number(0, 6),
            Some('U') => number((day_of_year + 7 - weekday) / 7, 2),
            Some('W') => number((day_of_year + 7 - (weekday + 6) % 7) / 7, 2),
            Some('w') => number(weekday, 1),
            Some('u') => number((weekday + 6) % 7 + 1, 1),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..month_name.len().min(3)]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..day_name.len().min(3)]),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&format_utc(unix_seconds, "%Y-%m-%d")),
            Some('D' | 'x') => out.push_str(&format_utc(unix_seconds, "%m/%d/%y")),
            Some('T' | 'X') => out.push_str(&format_utc(unix_seconds, "%H:%M:%S")),
            Some('R') => out.push_str(&format_utc(unix_seconds, "%H:%M")),
            Some('c') => out.push_str(&format_utc(unix_seconds, "%a %b %e %H:%M:%S %Y")),
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('%') => out.push('%'),
            other => {
                out.push('%');
                out.extend(bare.then_some('-'));
                out.extend(other);
            }
        }
    }
    out
}

/// Days from 1970-01-01 to the first of the year.
fn days_before(year: u64) -> u64 {
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leaps(year - 1) - leaps(1969)
}

/// Days since 1970-01-01 to year, month (1 to 12), day (1 to 31) of the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years that start in March put the leap day at their end; 719468 days lie between 0000-03-01 and 1970-01-01.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar_through_leap_years() {
        for (seconds, expected) in [
            (0, "1970-01-01 Thursday"),
            (951_782_400, "2000-02-29 Tuesday"),
            (951_868_800, "2000-03-01 Wednesday"),
            (1_735_603_200, "2024-12-31 Tuesday"),
            (4_107_542_400, "2100-03-01 Monday"),
        ] {
            assert_eq!(format_utc(seconds, "%Y-%m-%d %A"), expected);
        }
    }

    #[test]
    fn the_letters_of_common_templates_are_known() {
        assert_eq!(format_utc(1_722_000_000, "%d %b %Y, %I:%M %p %% %Q"), "26 Jul 2024, 01:20 PM % %Q");
        assert_eq!(format_utc(0, "%"), "%");
    }
}
