//! Long reads on the blocking thread pool.

use crate::{Error, ErrorKind, Result};

/// Runs a read on the blocking thread pool. `what` names the rows in the error. A panic is [`ErrorKind::Corrupt`]: a
/// retry doesn't help.
pub(super) async fn read_blocking<T: Send + 'static>(
    what: &str,
    read: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| {
        let kind = if error.is_panic() {
            ErrorKind::Corrupt
        } else {
            ErrorKind::Unavailable
        };
        let message = format!("the task that reads {what} ended early");
        Err(Error::with_source(kind, message, error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_permanent() {
        let panicked = read_blocking::<()>("the rows", || panic!("on purpose")).await;
        assert_eq!(panicked.unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
