//! Parsing and formatting of times and durations.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo, Timestamp};

/// Formats a time as RFC 3339 in UTC with its full precision; `None` if it is unset or out of range.
pub fn rfc3339(time: Option<&prost_types::Timestamp>) -> Option<String> {
    from_proto(time).map(|time| time.to_string())
}

/// Formats the age of a time: `3 s ago`; `never` if it is unset or out of range.
pub fn ago(time: Option<&prost_types::Timestamp>) -> String {
    from_proto(time).map_or_else(|| "never".into(), |time| ago_at(time, Timestamp::now()))
}

fn ago_at(time: Timestamp, now: Timestamp) -> String {
    let since = now.duration_since(time);
    // Negative if the server's clock is ahead of this machine's.
    let Ok(since) = Duration::try_from(since) else {
        return "just now".into();
    };
    if since < Duration::from_secs(1) {
        "just now".into()
    } else {
        format!("{} ago", approximate(since))
    }
}

/// Formats a duration in its largest unit, rounded down: ms, s, min, h (up to 48 h), days.
pub fn approximate(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Formats a time to wait in its two largest units, rounded up: 1.5 s, 45 s, 2 min 5 s, 23 h 59 min, 24 h, 3 days 4 h.
pub fn format_wait(duration: Duration) -> String {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    let two = |count: u128, per: u128, large: &str, small: &str| match (count / per, count % per) {
        (larger, 0) => format!("{larger} {large}"),
        (larger, rest) => format!("{larger} {large} {rest} {small}"),
    };
    let rounded = |unit_millis: u128| millis.div_ceil(unit_millis);
    // What is rounded up to the next unit is said in that unit.
    if millis < 1_000 {
        format!("{millis} ms")
    } else if rounded(100) < 100 {
        match rounded(100) {
            tenths if tenths % 10 == 0 => format!("{} s", tenths / 10),
            tenths => format!("{}.{} s", tenths / 10, tenths % 10),
        }
    } else if rounded(1_000) < 60 {
        format!("{} s", rounded(1_000))
    } else if rounded(1_000) < 3_600 {
        two(rounded(1_000), 60, "min", "s")
    } else if rounded(60_000) <= 2_880 {
        two(rounded(60_000), 60, "h", "min")
    } else {
        two(rounded(3_600_000), 24, "days", "h")
    }
}

/// Converts a time of the API; `None` if it is unset or out of range.
pub fn from_proto(time: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok())
}

/// Converts a time to the API's type.
pub fn to_proto(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

/// Converts a duration to the API's type.
pub fn duration_to_proto(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// Clap value parser for durations: `500ms`, `90s`, `1h 30m`, `28d`. A day has 24 hours.
pub fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a duration such as 500ms, 90s, 1h30m or 2d");
    let span: Span = text.parse().map_err(|_| invalid())?;
    let length = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| invalid())?;
    Duration::try_from(length).map_err(|_| "a duration can't be negative".into())
}

/// Clap value parser for durations over zero; the syntax is that of [`duration`].
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|length| {
        if length.is_zero() {
            Err("must be more than 0".into())
        } else {
            Ok(length)
        }
    })
}

/// Clap value parser for a time: RFC 3339, or a duration before now such as `24h`.
pub fn time_or_age(text: &str) -> Result<Timestamp, String> {
    time_or_age_at(text, Timestamp::now())
}

fn time_or_age_at(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let age = duration(text).map_err(|_| {
        format!("{text:?} is neither a duration such as 24h nor a time such as 2026-01-31T08:00:00Z")
    })?;
    now.checked_sub(age)
        .map_err(|_| format!("{text:?} is too far in the past"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_mins(90)));
        assert_eq!(duration("28d"), Ok(Duration::from_hours(28 * 24)));
        for bad in ["", "5", "soon", "-1s", "1 month"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(positive_duration("0s").is_err());
    }

    #[test]
    fn times_and_ages_are_parsed() {
        assert_eq!(
            time_or_age("2026-01-31T08:00:00Z").unwrap().as_second(),
            1_769_846_400
        );
        let now = Timestamp::from_second(1_769_846_400).unwrap();
        assert_eq!(time_or_age_at("24h", now).unwrap().as_second(), 1_769_760_000);
        assert!(time_or_age("yesterday").is_err());
    }

    #[test]
    fn waits_are_rounded_up_and_have_at_most_two_units() {
        for (seconds, text) in [
            (0.0, "0 ms"),
            (0.25, "250 ms"),
            (1.5, "1.5 s"),
            (2.0, "2 s"),
            (9.99, "10 s"),
            (44.2, "45 s"),
            (59.5, "1 min"),
            (125.0, "2 min 5 s"),
            (3_599.5, "1 h"),
            (86_340.0, "23 h 59 min"),
            (86_399.959_469, "24 h"),
            (172_800.0, "48 h"),
            (273_600.0, "3 days 4 h"),
        ] {
            assert_eq!(format_wait(Duration::from_secs_f64(seconds)), text, "{seconds}");
        }
        assert!(format_wait(Duration::MAX).ends_with('h'));
    }

    #[test]
    fn ages_are_rounded_down() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let at = |seconds: i64| ago_at(Timestamp::from_second(1_000_000 - seconds).unwrap(), now);
        assert_eq!(
            [-5, 0, 3, 61, 7_300, 400_000].map(at),
            [
                "just now",
                "just now",
                "3 s ago",
                "1 min ago",
                "2 h ago",
                "4 days ago"
            ]
        );
    }

    #[test]
    fn times_are_formatted_as_rfc_3339() {
        let time = prost_types::Timestamp {
            seconds: 1_769_846_400,
            nanos: 5_000_000,
        };
        assert_eq!(rfc3339(Some(&time)).unwrap(), "2026-01-31T08:00:00.005Z");
        assert_eq!(rfc3339(None), None);
    }
}
