//! Reads a sample of the messages that a consumer has yet to handle.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use futures::stream;

use crate::error::Result;
use crate::read::message_if_found;
use crate::topology::ConsumerSpec;
use crate::{Mesh, RawMessage};

/// Reads in flight at a time.
const READS_IN_FLIGHT: usize = 16;

impl Mesh {
    /// Reads up to `count` messages of a consumer after the stream sequence `after`, spread evenly over the rest of the
    /// stream, in the order of the stream. With fewer sequences than `count` these are all of its messages.
    ///
    /// Any replica may answer; one that lags leaves some messages out.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) when no server answers.
    pub async fn sample(&self, spec: &ConsumerSpec, after: u64, count: u64) -> Result<Vec<RawMessage>> {
        let last = self.last_sequence(&spec.stream).await?;
        let handle = self.stream(&spec.stream).await?;
        let filter = spec.filter.as_deref().unwrap_or(">");
        let reads = positions(after, last, count).into_iter().map(|sequence| {
            let handle = &handle;
            async move { handle.direct_get_next_for_subject(filter, Some(sequence)).await }
        });
        let mut reads = stream::iter(reads).buffer_unordered(READS_IN_FLIGHT);
        let mut messages = BTreeMap::new();
        while let Some(read) = reads.next().await {
            if let Some(message) = message_if_found(read, &spec.stream)? {
                messages.insert(message.sequence, message);
            }
        }
        Ok(messages.into_values().collect())
    }
}

/// Up to `count` sequences after `after`, up to `last`, at even distances; the first one is the next after `after`.
fn positions(after: u64, last: u64, count: u64) -> Vec<u64> {
    let span = last.saturating_sub(after);
    let count = count.min(span);
    let at = |index: u64| after + 1 + (u128::from(index) * u128::from(span) / u128::from(count)) as u64;
    (0..count).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_spread_over_the_rest_of_the_stream() {
        assert!(positions(10, 10, 4).is_empty());
        assert!(positions(10, 9, 4).is_empty());
        assert!(positions(10, 20, 0).is_empty());
        assert_eq!(positions(10, 13, 4), [11, 12, 13]);
        assert_eq!(positions(0, 100, 4), [1, 26, 51, 76]);
        let far = positions(0, u64::MAX, 3);
        assert_eq!(far.len(), 3);
        assert!(far.is_sorted());
    }
}
