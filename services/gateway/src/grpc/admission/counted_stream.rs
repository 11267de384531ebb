//! A stream of responses whose messages count while they are in memory.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use herald_runtime::shares::{Caller, Share, Shares};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Status, body::Body};

/// Size of a message that doesn't count: the number of streams bounds them.
const SMALL: usize = 16 << 10;

/// Ends with an error if a message is too much for the memory that the caller may have.
pub(super) struct CountedStream {
    body: Body,
    shares: Shares,
    caller: Caller,
    has_ended: bool,
}

/// A message that counts until it is dropped.
struct Counted {
    data: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl CountedStream {
    /// Counts the messages of a body.
    pub(super) fn body(body: Body, shares: Shares, caller: Caller) -> Body {
        if body.is_end_stream() {
            return body;
        }
        Body::new(Self {
            body,
            shares,
            caller,
            has_ended: false,
        })
    }
}

impl HttpBody for CountedStream {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) if frame.data_ref().is_some_and(|data| data.len() > SMALL) => frame,
            other => return other,
        };
        let Ok(data) = frame.into_data() else {
            return Poll::Ready(None);
        };
        let Some(share) = self.shares.try_acquire(self.caller, data.len()) else {
            self.has_ended = true;
            self.body = Body::empty();
            let mut trailers = HeaderMap::new();
            super::unread().add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        };
        let counted = Counted { data, _share: share };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(counted)))))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
