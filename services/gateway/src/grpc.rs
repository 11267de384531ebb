//! gRPC services; each file implements one service or a part of it.

mod admission;
mod authentication;
mod delivery;
mod device;
mod gate;
mod health;
mod key;
mod mesh;
mod message_size;
mod new_post;
mod origin;
mod post;
mod preference;
mod rate_limit;
mod routes;
mod server;
mod submit;
mod timeline;
mod watch;
mod wrong_port;

pub(crate) use server::{ServiceDeps, serve};

use herald_model::{UserId, UserKey};
use herald_rpc::status;
use herald_store::Users;
use tonic::Status;

/// Looks up the key of a user; `None` if the user has none.
async fn find_user(users: &dyn Users, id: UserId) -> Result<Option<UserKey>, Status> {
    let keys = users.find(&[id]).await.map_err(|e| status::from_store(&e))?;
    Ok(keys.into_iter().next().flatten())
}

/// Looks up the key of a user, or assigns one.
async fn intern_user(users: &dyn Users, id: UserId) -> Result<UserKey, Status> {
    let keys = users.intern(&[id]).await.map_err(|e| status::from_store(&e))?;
    keys.into_iter().next().ok_or_else(|| {
        let error = herald_store::Error::new(
            herald_store::ErrorKind::Corrupt,
            "the store returned no key for a user id",
        );
        status::from_store(&error)
    })
}
