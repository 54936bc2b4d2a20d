//! The few letters of `strftime` that chat templates use.

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

    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..month_name.len().min(3)]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..day_name.len().min(3)]),
            Some('H') => out.push_str(&format!("{hour:02}")),
            Some('I') => out.push_str(&format!("{:02}", (hour + 11) % 12 + 1)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('M') => out.push_str(&format!("{:02}", second / 60 % 60)),
            Some('S') => out.push_str(&format!("{:02}", second % 60)),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
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
