//! Failures on demand.

/// Here a test can make the store fail, as a disk or a network would, or kill its process.
macro_rules! can_fail {
    ($name:literal) => {
        herald_failpoints::point!(
            $name,
            crate::Error::new(crate::ErrorKind::Unavailable, concat!("failpoint ", $name))
        )
    };
}
