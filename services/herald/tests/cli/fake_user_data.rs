//! The fake user data service.

use std::sync::atomic::{AtomicBool, Ordering};

use herald_proto::v1::{user_data_service_server::UserDataService, *};
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};

use crate::server::{RpcResult, RpcStream, Server, time};

/// An erasure that never ends, and whether its record is sent.
#[derive(Default)]
pub(crate) struct Erasures {
    pub(crate) is_silent: AtomicBool,
}

#[tonic::async_trait]
impl UserDataService for Server {
    type ExportUserStream = RpcStream<ExportUserResponse>;

    async fn export_user(&self, _: Request<ExportUserRequest>) -> RpcResult<Self::ExportUserStream> {
        Err(Status::unimplemented("not used by these tests"))
    }

    type EraseUserStream = RpcStream<EraseUserResponse>;

    async fn erase_user(&self, request: Request<EraseUserRequest>) -> RpcResult<Self::EraseUserStream> {
        let user_id = self.record(request)?.user_id;
        let erasure = Erasure {
            erasure_id: 7,
            user_id,
            request_time: Some(time(0)),
            ..Erasure::default()
        };
        let is_sent = !self.erasures().is_silent.load(Ordering::Relaxed);
        let sent = is_sent.then(|| {
            Ok(EraseUserResponse {
                erasure: Some(erasure),
            })
        });
        Ok(Response::new(Box::pin(
            tokio_stream::iter(sent).chain(tokio_stream::pending()),
        )))
    }

    async fn list_erasures(&self, request: Request<ListErasuresRequest>) -> RpcResult<ListErasuresResponse> {
        let is_first = self.record(request)?.page_token.is_empty();
        Ok(Response::new(ListErasuresResponse {
            erasures: vec![Erasure {
                erasure_id: if is_first { 2 } else { 1 },
                ..Erasure::default()
            }],
            next_page_token: if is_first { "more".into() } else { String::new() },
        }))
    }
}
