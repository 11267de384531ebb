//! Calls of any method, by its path, with any credential.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use harness::Herald;
use herald_proto::{Method, v1};
use prost::Message as _;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

/// Services of the operator port.
const OPERATORS: [&str; 5] = [
    "AuditService",
    "DeadLetterService",
    "KeyService",
    "MeshService",
    "UserDataService",
];
/// Limit of a call. Streams are left after their first answer.
const DEADLINE: Duration = Duration::from_secs(20);

/// Both ports of a gateway.
pub(super) struct Target {
    public: Channel,
    operators: Channel,
}

/// What a call was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) code: Code,
    /// The reason of the error; empty without one.
    pub(super) reason: String,
    /// The scope that is missing; empty if none is.
    pub(super) scope: String,
}

impl Target {
    pub(super) async fn of(herald: &Herald) -> Self {
        Self::connect(&herald.url(), &herald.operator_url()).await
    }

    pub(super) async fn connect(url: &str, operator_url: &str) -> Self {
        let connect = async |url: &str| {
            Endpoint::from_shared(url.to_owned())
                .unwrap()
                .connect()
                .await
                .unwrap()
        };
        Self {
            public: connect(url).await,
            operators: connect(operator_url).await,
        }
    }

    /// Calls a method with an empty request and a bearer credential.
    pub(super) async fn call_as(&self, method: Method, token: &str) -> Answer {
        self.call(method, &[format!("Bearer {token}")], Vec::new()).await
    }

    /// Calls a method at its port, with these values of `authorization`.
    pub(super) async fn call(&self, method: Method, authorization: &[String], request: Vec<u8>) -> Answer {
        self.call_path(method.path(), authorization, request).await
    }

    /// Calls a path.
    pub(super) async fn call_path(
        &self,
        path: &'static str,
        authorization: &[String],
        request: Vec<u8>,
    ) -> Answer {
        let is_for_operators = OPERATORS
            .iter()
            .any(|service| path.contains(&format!(".{service}/")));
        let channel = if is_for_operators {
            &self.operators
        } else {
            &self.public
        };
        let mut client = Grpc::new(channel.clone());
        client.ready().await.unwrap();
        let mut request = Request::new(tokio_stream::once(Bytes::from(request)));
        request.set_timeout(DEADLINE);
        for value in authorization {
            request
                .metadata_mut()
                .append("authorization", value.parse().unwrap());
        }
        // The same on the wire for all kinds of methods.
        let answered = client
            .streaming(request, PathAndQuery::from_static(path), Raw)
            .await;
        match answered {
            Err(status) => Answer::of(&status),
            Ok(response) => match response.into_inner().message().await {
                Err(status) => Answer::of(&status),
                Ok(_) => Answer::of(&Status::ok("")),
            },
        }
    }
}

impl Answer {
    fn of(status: &Status) -> Self {
        let info = status.get_details_error_info();
        let scope = info.as_ref().and_then(|info| info.metadata.get("scope").cloned());
        Self {
            code: status.code(),
            reason: info.map(|info| info.reason).unwrap_or_default(),
            scope: scope.unwrap_or_default(),
        }
    }
}

/// A valid post of an author.
pub(super) fn framed_post(author: &str) -> Vec<u8> {
    let post = v1::SubmitPostRequest {
        author_id: author.into(),
        text: "hello".into(),
        ..v1::SubmitPostRequest::default()
    };
    post.encode_to_vec()
}

/// Messages as bytes.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
