//! Failpoints of the store.

/// A failpoint: a test can make the call fail as [`Unavailable`](crate::ErrorKind::Unavailable), delay it or kill the
/// process here.
macro_rules! can_fail {
    ($name:literal) => {
        herald_failpoints::point!(
            $name,
            crate::Error::new(crate::ErrorKind::Unavailable, concat!("failpoint ", $name))
        )
    };
}
