//! The states in which every post is refused: a full disk, a full POSTS stream, damaged streams, an archive that is behind,
//! and no connection to the broker.
//!
//! They are readiness checks of the process, and decide the health of PostService.

use std::{sync::Arc, time::Duration};

use herald_mesh::{Mesh, streams};
use herald_recovery::StreamWatch;
use herald_runtime::{http::Readiness, telemetry::error_chain};
use herald_store::{ErrorKind, Posts};
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::{archive_watermark::ArchiveWatermark, request_history::RequestHistory};

/// Space that the largest post takes in POSTS, bytes: 16 links and 16 media URLs of 2,048 bytes, the text, and the
/// stream's overhead. With less space the stream counts as full.
const POST_BYTES_MAX: u64 = 128 << 10;

/// Limit of a call to the broker.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// The result of a check; `Err` is the reason why posts are refused.
type CheckResult = Result<(), String>;

/// The checks. Clones share their results.
#[derive(Clone)]
pub(crate) struct PostChecks {
    mesh: Mesh,
    posts: Arc<dyn Posts>,
    archive_watermark: ArchiveWatermark,
    request_history: RequestHistory,
    stream_watch: StreamWatch,
    results: Arc<Results>,
}

/// The latest results of the checks that need a call.
struct Results {
    disk: Mutex<CheckResult>,
    posts_stream: Mutex<CheckResult>,
}

impl PostChecks {
    /// Adds the checks `disk`, `posts_stream`, `streams` and `archive` to the readiness of the process.
    pub(crate) fn new(
        mesh: Mesh,
        posts: Arc<dyn Posts>,
        archive_watermark: ArchiveWatermark,
        request_history: RequestHistory,
        stream_watch: StreamWatch,
        readiness: &Readiness,
    ) -> Self {
        let results = Arc::new(Results {
            disk: Mutex::new(Ok(())),
            posts_stream: Mutex::new(Ok(())),
        });
        let (disk, posts_stream) = (results.clone(), results.clone());
        readiness.check("disk", move || disk.disk.lock().clone());
        readiness.check("posts_stream", move || posts_stream.posts_stream.lock().clone());
        let watch = stream_watch.clone();
        readiness.check("streams", move || watch.accepts_posts());
        let (watermark, history) = (archive_watermark.clone(), request_history.clone());
        readiness.check("archive", move || check_archive(&watermark, &history));
        Self {
            mesh,
            posts,
            archive_watermark,
            request_history,
            stream_watch,
            results,
        }
    }

    /// Runs the checks. Call it periodically.
    pub(crate) async fn update(&self) {
        if self.archive_watermark.is_store_away() {
            self.request_history.want();
        }
        let disk = match self.posts.capacity().await {
            Err(error) if error.kind() != ErrorKind::Unavailable => Err(error.to_string()),
            // A store that can't be reached takes the posts later.
            Ok(()) | Err(_) => Ok(()),
        };
        store("disk", &self.results.disk, disk);
        // Without an answer the previous result stays; a lost connection is a check of its own.
        match timeout(CALL_TIMEOUT, self.mesh.stream_bytes(streams::POSTS)).await {
            Ok(Ok((bytes, bytes_max))) => {
                store(
                    "posts_stream",
                    &self.results.posts_stream,
                    check_stream(bytes, bytes_max),
                );
            }
            Ok(Err(error)) => tracing::debug!(error = error_chain(&error), "can't read the size of POSTS"),
            Err(_) => tracing::debug!("can't read the size of POSTS: the broker doesn't answer"),
        }
    }

    /// Whether posts are accepted, according to the latest results.
    pub(crate) fn accepts_posts(&self) -> bool {
        self.mesh.is_connected()
            && self.stream_watch.accepts_posts().is_ok()
            && self.results.disk.lock().is_ok()
            && self.results.posts_stream.lock().is_ok()
            && check_archive(&self.archive_watermark, &self.request_history).is_ok()
    }
}

/// Stores a result, and logs a change.
fn store(check: &'static str, stored: &Mutex<CheckResult>, result: CheckResult) {
    let mut stored = stored.lock();
    match (&*stored, &result) {
        (Ok(()), Err(reason)) => tracing::warn!(check, reason, "posts are refused"),
        (Err(_), Ok(())) => tracing::info!(check, "posts are accepted again"),
        _ => {}
    }
    *stored = result;
}

fn check_stream(bytes: u64, bytes_max: Option<u64>) -> CheckResult {
    match bytes_max {
        Some(bytes_max) if bytes.saturating_add(POST_BYTES_MAX) > bytes_max => Err(format!(
            "stream POSTS is full: it has {bytes} of {bytes_max} bytes, and a post can need {POST_BYTES_MAX}; raise \
             topology.posts.bytes_max, or lower topology.posts.age_seconds_max"
        )),
        _ => Ok(()),
    }
}

fn check_archive(watermark: &ArchiveWatermark, history: &RequestHistory) -> CheckResult {
    if watermark.is_fresh() || (watermark.is_store_away() && history.is_fresh()) {
        Ok(())
    } else {
        Err("the archive lags behind POSTS, so posts with a request_id are refused (ARCHIVE_BEHIND)".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_without_room_for_the_largest_post_is_full() {
        assert_eq!(check_stream(u64::MAX, None), Ok(()));
        assert_eq!(check_stream((1 << 20) - POST_BYTES_MAX, Some(1 << 20)), Ok(()));
        let full = check_stream((1 << 20) - POST_BYTES_MAX + 1, Some(1 << 20)).unwrap_err();
        assert!(
            full.contains("POSTS is full") && full.contains("topology.posts.bytes_max"),
            "{full}"
        );
    }
}
