//! Moments and durations, as people and scripts write them.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo, Timestamp};

/// RFC 3339, UTC, as precise as it was sent; none when unset or outside the calendar.
pub fn rfc3339(time: Option<&prost_types::Timestamp>) -> Option<String> {
    from_proto(time).map(|time| time.to_string())
}

/// `3 s ago`; `never` when unset.
pub fn ago(time: Option<&prost_types::Timestamp>) -> String {
    from_proto(time).map_or_else(|| "never".into(), |time| ago_at(time, Timestamp::now()))
}

fn ago_at(time: Timestamp, now: Timestamp) -> String {
    let since = now.duration_since(time);
    // Another machine's clock may run a little ahead of ours.
    let Ok(since) = Duration::try_from(since) else {
        return "just now".into();
    };
    if since < Duration::from_secs(1) {
        "just now".into()
    } else {
        format!("{} ago", rough(since))
    }
}

/// A duration in its largest unit.
pub fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A moment of the API; none when unset or outside the calendar.
pub fn from_proto(time: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok())
}

/// A moment as the API has it.
pub fn to_proto(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

/// A duration as the API has it.
pub fn duration_to_proto(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// Reads `500ms`, `90s`, `1h 30m`, `28d`: a clap value parser. Days have 24 hours.
pub fn duration(text: &str) -> Result<Duration, String> {
    let unreadable = || format!("{text:?} is not a duration such as 500ms, 90s, 1h30m or 2d");
    let span: Span = text.parse().map_err(|_| unreadable())?;
    let length = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| unreadable())?;
    Duration::try_from(length).map_err(|_| "a duration can't be negative".into())
}

/// Like [`duration`], and not zero.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|length| {
        if length.is_zero() {
            Err("must be more than 0".into())
        } else {
            Ok(length)
        }
    })
}

/// Reads a moment, RFC 3339, or a duration back from now: a clap value parser.
pub fn moment(text: &str) -> Result<Timestamp, String> {
    moment_at(text, Timestamp::now())
}

fn moment_at(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let back = duration(text).map_err(|_| {
        format!("{text:?} is neither a duration such as 24h nor a time such as 2026-01-31T08:00:00Z")
    })?;
    now.checked_sub(back)
        .map_err(|_| format!("{text:?} is too long ago"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_mins(90)));
        assert_eq!(duration("28d"), Ok(Duration::from_hours(28 * 24)));
        for bad in ["", "5", "soon", "-1s", "1 month"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(positive_duration("0s").is_err());
    }

    #[test]
    fn moments_are_read() {
        assert_eq!(moment("2026-01-31T08:00:00Z").unwrap().as_second(), 1_769_846_400);
        let now = Timestamp::from_second(1_769_846_400).unwrap();
        assert_eq!(moment_at("24h", now).unwrap().as_second(), 1_769_760_000);
        assert!(moment("yesterday").is_err());
    }

    #[test]
    fn ages_are_rough() {
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
    fn times_are_rfc_3339() {
        let time = prost_types::Timestamp {
            seconds: 1_769_846_400,
            nanos: 5_000_000,
        };
        assert_eq!(rfc3339(Some(&time)).unwrap(), "2026-01-31T08:00:00.005Z");
        assert_eq!(rfc3339(None), None);
    }
}
