//! The time to live of a post's pushes.

use std::time::Duration;

/// The shortest time to live.
pub const PUSH_TTL_MIN: Duration = Duration::from_secs(1);
/// The longest time to live: common push services (RFC 8030) store a message for 28 days.
pub const PUSH_TTL_MAX: Duration = Duration::from_hours(28 * 24);

/// Checks a push's time to live, [`PUSH_TTL_MIN`] to [`PUSH_TTL_MAX`], and rounds it up to a second. The arguments are
/// the fields of a Protobuf duration.
///
/// # Errors
/// A description that continues the field's name: "must be 1 second to 28 days".
pub fn parse_push_ttl(seconds: i64, nanos: i32) -> Result<Duration, String> {
    let out_of_range = || "must be 1 second to 28 days".to_owned();
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else {
        return Err(out_of_range());
    };
    if nanos >= 1_000_000_000 {
        return Err("is not a duration: nanos must be less than 1,000,000,000".into());
    }
    let ttl = Duration::new(seconds, nanos);
    if !(PUSH_TTL_MIN..=PUSH_TTL_MAX).contains(&ttl) {
        return Err(out_of_range());
    }
    Ok(Duration::from_secs(seconds + u64::from(nanos > 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_has_bounds_and_is_rounded_up() {
        assert_eq!(parse_push_ttl(1, 0), Ok(Duration::from_secs(1)));
        assert_eq!(parse_push_ttl(1, 1), Ok(Duration::from_secs(2)));
        assert_eq!(parse_push_ttl(28 * 86_400, 0), Ok(Duration::from_hours(28 * 24)));
        for (seconds, nanos) in [
            (0, 0),
            (0, 999_999_999),
            (-1, 0),
            (28 * 86_400, 1),
            (i64::MAX, 0),
            (1, -1),
            (1, 1_000_000_000),
        ] {
            assert!(parse_push_ttl(seconds, nanos).is_err(), "{seconds} s {nanos} ns");
        }
    }
}
