//! The way in: one file a service.

mod admission;
mod delivery;
mod device;
mod health;
mod mesh;
mod post;
mod preference;
mod server;
mod submit;
mod timeline;
mod watch;

pub(crate) use server::{Parts, serve};

use herald_model::{UserId, UserKey};
use herald_rpc::status;
use herald_store::Users;
use tonic::Status;

/// The key of a user, `None` for one Herald never heard of.
async fn find(users: &dyn Users, id: UserId) -> Result<Option<UserKey>, Status> {
    let keys = users.find(&[id]).await.map_err(|e| status::from_store(&e))?;
    Ok(keys.into_iter().next().flatten())
}

/// The key of a user, made if there was none.
async fn intern(users: &dyn Users, id: UserId) -> Result<UserKey, Status> {
    let keys = users.intern(&[id]).await.map_err(|e| status::from_store(&e))?;
    keys.into_iter().next().ok_or_else(|| {
        let error =
            herald_store::Error::new(herald_store::ErrorKind::Corrupt, "intern answered without a key");
        status::from_store(&error)
    })
}
