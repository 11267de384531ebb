//! Ends an open response with a status.

use bytes::Bytes;
use futures::{Stream, stream};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use tonic::{Status, body::Body};

/// A response body that ends with the status of `ended` as soon as `ended` is ready. If `body` fails first, it ends
/// with the status that `of_failure` makes of the failure, because a reset of the stream would hide it. Then `body` and
/// `ended` are dropped.
pub(crate) fn end_when(
    body: Body,
    ended: impl Future<Output = Status> + Send + 'static,
    of_failure: fn(Status) -> Status,
) -> Body {
    // A response of headers only has its status there, and the headers must end the stream: gRPC clients in Go report
    // an internal error if an empty body follows.
    if body.is_end_stream() {
        return body;
    }
    Body::new(StreamBody::new(frames(body, ended, of_failure)))
}

fn frames(
    body: Body,
    ended: impl Future<Output = Status> + Send + 'static,
    of_failure: fn(Status) -> Status,
) -> impl Stream<Item = Result<Frame<Bytes>, Status>> + Send {
    stream::unfold(Some((body, Box::pin(ended))), move |state| async move {
        let (mut body, mut ended) = state?;
        tokio::select! {
            // First, so that a body that always has a frame ends too.
            biased;
            status = &mut ended => Some((last(&status), None)),
            frame = body.frame() => Some(match frame? {
                Ok(frame) => (Ok(frame), Some((body, ended))),
                Err(status) => (last(&of_failure(status)), None),
            }),
        }
    })
}

/// The last frame of a response: its status.
fn last(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}
