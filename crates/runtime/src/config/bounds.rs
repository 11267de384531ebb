//! Bounds checks of numeric settings.

use std::{
    fmt::Display,
    ops::{Bound, RangeBounds},
};

/// Checks a setting against its bounds. The error contains the key, the bounds and the value.
pub fn check_bounds<T: PartialOrd + Display>(
    key: &str,
    value: &T,
    bounds: &impl RangeBounds<T>,
) -> Result<(), String> {
    if bounds.contains(value) {
        return Ok(());
    }
    let expected = match (bounds.start_bound(), bounds.end_bound()) {
        (Bound::Included(min), Bound::Included(max)) => format!("{min} to {max}"),
        (Bound::Included(min), _) => format!("at least {min}"),
        (_, Bound::Included(max)) => format!("at most {max}"),
        _ => "within other bounds".into(),
    };
    Err(format!("{key} must be {expected}, is {value}"))
}

/// Checks settings against their bounds. Returns the first error from the enclosing function.
///
/// The keys are derived from the field names. Existing crates don't fit: the errors of `garde` lack the value, and
/// those of `validator` are not readable sentences.
///
/// ```
/// struct Gate { interval_ms: u64 }
/// struct Config { threads: usize, gate: Gate }
///
/// fn validate(config: &Config) -> Result<(), String> {
///     herald_runtime::bounds!("fanout", config, {
///         threads: 1..=64,
///         gate.interval_ms: 10..,
///     });
///     Ok(())
/// }
///
/// let config = Config { threads: 1, gate: Gate { interval_ms: 9 } };
/// assert_eq!(validate(&config), Err("fanout.gate.interval_ms must be at least 10, is 9".into()));
/// ```
#[macro_export]
macro_rules! bounds {
    ($section:literal, $config:expr, { $($($field:ident).+ : $bounds:expr),+ $(,)? }) => {
        $($crate::config::check_bounds(
            concat!($section $(, ".", stringify!($field))+),
            &$config.$($field).+,
            &($bounds),
        )?;)+
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_contains_key_bounds_and_value() {
        assert_eq!(check_bounds("a.b", &1, &(1..=3)), Ok(()));
        assert_eq!(check_bounds("a.b", &3, &(1..=3)), Ok(()));
        assert_eq!(
            check_bounds("a.b", &4, &(1..=3)),
            Err("a.b must be 1 to 3, is 4".into())
        );
        assert_eq!(
            check_bounds("a.b", &0, &(1..)),
            Err("a.b must be at least 1, is 0".into())
        );
        assert_eq!(
            check_bounds("a.b", &4, &(..=3)),
            Err("a.b must be at most 3, is 4".into())
        );
    }
}
