//! The control socket of `herald up`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use herald_mesh::{Mesh, Topology};
use herald_proto::mesh_v1::{
    BackupRequest, BackupResponse,
    control_service_server::{ControlService, ControlServiceServer},
};
use herald_runtime::telemetry::error_chain;
use tokio::{
    net::UnixListener,
    sync::{Semaphore, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Server};

use super::{
    backup::{self, Progress},
    engine::Engine,
};

/// Reports of the progress that the caller has not read yet.
const REPORTS_MAX: usize = 16;

/// Serves the socket of a data directory.
pub(super) struct Control {
    pub(super) mesh: Mesh,
    pub(super) topology: Arc<Topology>,
    pub(super) engine: Engine,
    pub(super) data_dir: PathBuf,
    /// One backup at a time.
    pub(super) turn: Arc<Semaphore>,
}

/// Binds the socket of a data directory whose lock this process has. `None`, with a warning, if it can't.
pub(super) fn bind(data_dir: &Path) -> Option<UnixListener> {
    let path = backup::socket(data_dir);
    // That of a process that was killed.
    let _ = std::fs::remove_file(&path);
    match UnixListener::bind(&path) {
        Ok(listener) => Some(listener),
        // A path that is too long, or a file system without sockets.
        Err(error) => {
            tracing::warn!(
                path = %path.display(),
                %error,
                "no control socket: `herald backup` can copy the data directory only while this process is stopped"
            );
            None
        }
    }
}

impl Control {
    /// Serves until the shutdown, which waits while the store is copied.
    pub(super) async fn serve(
        self,
        listener: UnixListener,
        shutdown: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
        let path = backup::socket(&self.data_dir);
        let serving = Server::builder()
            .add_service(ControlServiceServer::new(self))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let served = shutdown.run_until_cancelled(serving).await;
        // A socket that nobody serves is removed at the next start, too.
        let _ = std::fs::remove_file(path);
        served.unwrap_or(Ok(()))
    }
}

#[tonic::async_trait]
impl ControlService for Control {
    type BackupStream = ReceiverStream<Result<BackupResponse, Status>>;

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let dir = PathBuf::from(request.into_inner().directory);
        let turn = self.turn.clone().try_acquire_owned();
        let turn =
            turn.map_err(|_| Status::failed_precondition("another backup is being made: wait for its end"))?;
        backup::prepare(&dir).map_err(|error| Status::invalid_argument(error_chain(error.as_ref())))?;
        let (reports, answers) = mpsc::channel(REPORTS_MAX);
        let (mesh, topology, engine) = (self.mesh.clone(), self.topology.clone(), self.engine.clone());
        let data_dir = self.data_dir.clone();
        tokio::spawn(async move {
            let _turn = turn;
            let progress = {
                let reports = reports.clone();
                // A report that finds no room is followed by another one.
                move |now| drop(reports.try_send(Ok(response(now))))
            };
            let written = backup::write(&mesh, &topology, &engine, Some(&data_dir), &dir, progress).await;
            let last = match written {
                Ok(manifest) => Ok(BackupResponse {
                    stream_count: manifest.streams.len() as u32,
                    stream_count_total: manifest.streams.len() as u32,
                    message_count: manifest.message_count(),
                    row_count: manifest.store_rows.unwrap_or(0),
                    done: true,
                }),
                Err(error) => Err(Status::internal(error_chain(error.as_ref()))),
            };
            // Without a caller the backup is complete all the same.
            let _ = reports.send(last).await;
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

fn response(now: Progress) -> BackupResponse {
    BackupResponse {
        stream_count: now.streams,
        stream_count_total: now.streams_total,
        message_count: now.messages,
        ..BackupResponse::default()
    }
}
