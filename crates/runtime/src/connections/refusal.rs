//! The end of a connection whose client is refused: because it doesn't use TLS, which it is told in its own protocol, or because
//! the handshake has failed, which an alert of TLS has told.

use std::io::{Error, ErrorKind, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::GuardedStream;

/// Bytes that tell the protocol of a request.
const BEGIN: usize = 4;
/// Begin of the HTTP/2 preface (RFC 9113, section 3.4).
const HTTP2: &[u8] = b"PRI ";
const HTTP1_ANSWER: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n\
    this port requires TLS: use https://\n";
/// An empty SETTINGS frame, with which a server begins; and GOAWAY with INADEQUATE_SECURITY, whose debug data clients show
/// (RFC 9113, sections 6.5, 6.8 and 7).
const HTTP2_ANSWER: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x2c\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0cthis port requires TLS: use https://";

/// A connection whose client is told why it is refused.
pub(super) struct Refusal {
    stream: GuardedStream,
    begin: Vec<u8>,
    answer: Option<&'static [u8]>,
}

impl Refusal {
    /// Of a client that doesn't use TLS.
    pub(super) fn of_plaintext(stream: GuardedStream) -> Self {
        Self {
            stream,
            begin: Vec::with_capacity(BEGIN),
            answer: None,
        }
    }

    /// Of a client that has an alert.
    pub(super) fn after_alert(stream: GuardedStream) -> Self {
        Self {
            stream,
            begin: Vec::new(),
            answer: Some(b""),
        }
    }

    /// Answers, and waits until the client closes the connection: if this side closed it while requests of the client are
    /// unread, the client could lose the answer. The port closes it as one without a request.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut answer = loop {
            match self.answer {
                Some(answer) => break answer,
                None if self.begin.len() >= BEGIN => {
                    let answer = if self.begin.starts_with(HTTP2) {
                        HTTP2_ANSWER
                    } else if self
                        .begin
                        .iter()
                        .all(|byte| byte.is_ascii_uppercase() || *byte == b' ')
                    {
                        HTTP1_ANSWER
                    } else {
                        return Poll::Ready(Err(Error::new(ErrorKind::InvalidData, "neither TLS nor HTTP")));
                    };
                    self.answer = Some(answer);
                }
                None => {
                    if ready!(self.poll_read(cx))? == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        };
        while !answer.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, answer))?;
            answer = &answer[written..];
            self.answer = Some(answer);
        }
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        while ready!(self.poll_read(cx))? > 0 {}
        Poll::Ready(Ok(()))
    }

    /// Reads bytes, and keeps the first ones. Returns their number.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        let mut bytes = [0; 1_024];
        let mut buf = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
        let read = buf.filled();
        let kept = read.len().min(BEGIN.saturating_sub(self.begin.len()));
        self.begin.extend_from_slice(&read[..kept]);
        Poll::Ready(Ok(read.len()))
    }
}
