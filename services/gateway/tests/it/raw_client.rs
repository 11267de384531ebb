//! An HTTP/2 client that does what no gRPC library does: it sends frames as it likes, and reads when it likes.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::TcpStream;

/// Limit of every wait.
const LIMIT: Duration = Duration::from_mins(1);

pub(crate) struct RawClient {
    client: SendRequest<Bytes>,
}

/// A call whose response has not begun.
pub(crate) struct RawCall {
    pub(crate) requests: SendStream<Bytes>,
    response: h2::client::ResponseFuture,
}

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: String,
    pub(crate) body: Bytes,
}

impl RawClient {
    /// Connects; the gateway may send `window` bytes of each answer.
    pub(crate) async fn connect(address: &str, window: u32) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut builder = h2::client::Builder::new();
        let (client, connection) = builder
            .initial_window_size(window)
            .initial_connection_window_size(1 << 30)
            .handshake(stream)
            .await
            .unwrap();
        tokio::spawn(connection);
        Self { client }
    }

    /// Begins a call and sends no request.
    pub(crate) async fn begin(&self, path: &str) -> RawCall {
        let request = Request::post(format!("http://gateway/herald.v1.{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let ready = self.client.clone().ready();
        let mut client = with_timeout("a stream can be opened", ready).await.unwrap();
        let (response, requests) = client.send_request(request.body(()).unwrap(), false).unwrap();
        RawCall { requests, response }
    }

    /// Begins a call with one request.
    pub(crate) async fn call(&self, path: &str, request: &impl Message) -> RawCall {
        let mut call = self.begin(path).await;
        call.requests.send_data(frame(request), true).unwrap();
        call
    }
}

impl RawCall {
    /// Waits for the headers of the response, and reads no more.
    pub(crate) async fn headers(self) -> (HeaderMap, RecvStream) {
        let response = with_timeout("the response begins", self.response).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts.headers, body)
    }

    /// Reads the whole response.
    pub(crate) async fn outcome(self) -> Outcome {
        let (headers, mut body) = self.headers().await;
        let mut bytes = BytesMut::new();
        while let Some(data) = with_timeout("the response goes on", body.data()).await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            bytes.put(data);
        }
        let trailers = body.trailers().await.unwrap().unwrap_or_default();
        let status = headers.get("grpc-status").or(trailers.get("grpc-status"));
        Outcome {
            status: status.expect("a status").to_str().unwrap().to_owned(),
            body: bytes.freeze(),
        }
    }
}

impl Outcome {
    /// The response message.
    pub(crate) fn message<M: Message + Default>(&self) -> M {
        assert_eq!(self.status, "0", "{self:?}");
        M::decode(&self.body[5..]).unwrap()
    }
}

/// A gRPC message with its prefix.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.encoded_len() as u32);
    message.encode(&mut frame).unwrap();
    frame.freeze()
}

/// Sends each message in a frame of its own, as fast as the gateway lets it, and ends the stream.
pub(crate) async fn send_each(requests: &mut SendStream<Bytes>, messages: impl IntoIterator<Item = Bytes>) {
    for message in messages {
        // The frame goes out whole: a part of it would be a smaller frame.
        requests.reserve_capacity(message.len());
        while requests.capacity() < message.len() {
            let capacity = std::future::poll_fn(|cx| requests.poll_capacity(cx));
            let capacity = with_timeout("the gateway takes requests", capacity).await;
            capacity.expect("an open stream").unwrap();
        }
        requests.send_data(message, false).unwrap();
    }
    requests.send_data(Bytes::new(), true).unwrap();
}

async fn with_timeout<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .unwrap_or_else(|_| panic!("timeout after {LIMIT:?}: {what}"))
}
