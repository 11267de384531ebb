//! The control socket of `herald up`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use herald_mesh::{Mesh, Topology};
use herald_proto::mesh_v1::{
    BackupRequest, BackupResponse, CheckStreamsRequest, CheckStreamsResponse, RotateStorageKeyRequest,
    RotateStorageKeyResponse, StreamProblem,
    control_service_server::{ControlService, ControlServiceServer},
};
use herald_recovery::{Checker, Problem};
use herald_runtime::telemetry::error_chain;
use herald_store::{
    ErrorKind, Stores,
    encryption::{self, RotationProgress},
};
use tokio::{
    net::UnixListener,
    sync::{Semaphore, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Server};

use super::{
    backup::{Progress, Target},
    engine::Engine,
};

/// Reports of the progress that the caller has not read yet.
const REPORTS_MAX: usize = 16;

/// The path of the socket of a data directory.
pub(crate) fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}

/// The longest path of a socket, bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Whether a path is too long for a socket.
pub(crate) fn is_too_long(socket: &Path) -> bool {
    socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX
}

/// Serves the socket of a data directory.
pub(super) struct Control {
    pub(super) mesh: Mesh,
    pub(super) topology: Arc<Topology>,
    pub(super) engine: Engine,
    pub(super) data_dir: PathBuf,
    /// One backup or rotation at a time.
    pub(super) turn: Arc<Semaphore>,
}

/// Binds the socket of a data directory whose lock this process has. `None`, with a warning, if it can't.
pub(super) fn bind(data_dir: &Path) -> Option<UnixListener> {
    let path = socket(data_dir);
    // That of a process that was killed.
    let _ = std::fs::remove_file(&path);
    match UnixListener::bind(&path) {
        Ok(listener) => Some(listener),
        Err(error) => {
            let advice = if is_too_long(&path) {
                "the path of the control socket is too long: `herald backup` can copy the data directory only while this \
                 process is stopped; use a shorter data_dir, such as one relative to the working directory"
            } else {
                "no control socket, for example because the file system has none: `herald backup` can copy the data \
                 directory only while this process is stopped"
            };
            tracing::warn!(path = %path.display(), bytes_max = SOCKET_PATH_BYTES_MAX, %error, "{advice}");
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
        let path = socket(&self.data_dir);
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
        let turn = turn.map_err(|_| is_busy())?;
        let target = Target::prepare(&dir, Some(&self.data_dir));
        let target = target.map_err(|error| Status::invalid_argument(error_chain(error.as_ref())))?;
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
            let written = target
                .write(&mesh, &topology, &engine, Some(&data_dir), progress)
                .await;
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

    type RotateStorageKeyStream = ReceiverStream<Result<RotateStorageKeyResponse, Status>>;

    async fn rotate_storage_key(
        &self,
        _: Request<RotateStorageKeyRequest>,
    ) -> Result<Response<Self::RotateStorageKeyStream>, Status> {
        let turn = self.turn.clone().try_acquire_owned();
        let turn = turn.map_err(|_| is_busy())?;
        let keys = self.engine.storage_keys();
        let keys = keys.ok_or_else(|| Status::failed_precondition("this process has no store"))?;
        let (reports, answers) = mpsc::channel(REPORTS_MAX);
        tokio::spawn(async move {
            let _turn = turn;
            let progress = {
                let reports = reports.clone();
                // A report that finds no room is followed by another one.
                move |now: RotationProgress| {
                    let now = RotateStorageKeyResponse {
                        user_count: now.users,
                        user_count_total: now.users_estimated,
                        ..RotateStorageKeyResponse::default()
                    };
                    drop(reports.try_send(Ok(now)));
                }
            };
            let last = match encryption::rotate(&*keys, &progress).await {
                Ok(rotated) => Ok(RotateStorageKeyResponse {
                    user_count: rotated.users,
                    user_count_total: rotated.users,
                    encrypted_user_count: rotated.resealed,
                    key_id: rotated.key.to_string(),
                    forgotten_key_ids: rotated.forgotten.iter().map(ToString::to_string).collect(),
                    done: true,
                }),
                Err(error) if error.kind() == ErrorKind::Invalid => {
                    Err(Status::failed_precondition(error_chain(&error)))
                }
                Err(error) => Err(Status::internal(error_chain(&error))),
            };
            // Without a caller the rotation goes on all the same.
            let _ = reports.send(last).await;
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn check_streams(
        &self,
        _: Request<CheckStreamsRequest>,
    ) -> Result<Response<CheckStreamsResponse>, Status> {
        let stores = self.engine.stores();
        let stores = stores.ok_or_else(|| Status::failed_precondition("this process has no store"))?;
        let checker = checker(&self.mesh, &self.topology, stores);
        let problems = checker.check_thoroughly().await;
        let problems = problems.map_err(|error| Status::unavailable(error_chain(&error)))?;
        Ok(Response::new(CheckStreamsResponse {
            problems: problems.iter().map(stream_problem).collect(),
        }))
    }
}

fn is_busy() -> Status {
    Status::failed_precondition("a backup or a rotation of the storage key is going on: wait for its end")
}

/// Compares the streams with the store.
pub(super) fn checker(mesh: &Mesh, topology: &Arc<Topology>, stores: Stores) -> Checker {
    Checker {
        mesh: mesh.clone(),
        topology: topology.clone(),
        posts: stores.posts,
        dead_letters: stores.dead_letters,
        stream_marks: stores.stream_marks,
    }
}

/// A problem for the caller.
pub(super) fn stream_problem(problem: &Problem) -> StreamProblem {
    StreamProblem {
        id: problem.id().into(),
        description: problem.to_string(),
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
