//! API keys: one row a key.

use std::sync::Arc;

use async_trait::async_trait;
use fjall::Keyspace;
use herald_model::{ApiKey, ApiKeyId, Scopes, time::Timestamp};
use parking_lot::Mutex;
use prost::Message;

use super::database::{self, Committed, Database, map_err};
use crate::{
    Error, ErrorKind, Result,
    api_keys::{self, Insertion},
};

/// Name of the keyspace.
pub(crate) const KEYSPACE: &str = "api_keys";

/// The embedded engine's [`ApiKeys`](crate::ApiKeys).
pub(crate) struct EmbeddedApiKeys {
    database: Arc<Database>,
    /// id, big-endian → [`Row`].
    keys: Keyspace,
    /// Held from the read of the rows until their change is applied.
    writing: Mutex<()>,
}

#[derive(Clone, PartialEq, Message)]
struct Row {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "vec", tag = "2")]
    secret_hash: Vec<u8>,
    #[prost(uint32, tag = "3")]
    scopes: u32,
    #[prost(int64, tag = "4")]
    created_at: i64,
    #[prost(int64, optional, tag = "5")]
    expires_at: Option<i64>,
    #[prost(int64, optional, tag = "6")]
    revoked_at: Option<i64>,
}

impl EmbeddedApiKeys {
    pub(crate) fn open(database: &Arc<Database>) -> Result<Self> {
        Ok(Self {
            keys: database.keyspace(KEYSPACE, database::options)?,
            database: Arc::clone(database),
            writing: Mutex::default(),
        })
    }

    fn read_all(&self) -> Result<Vec<ApiKey>> {
        let rows = self.keys.iter().map(|entry| {
            let (id, row) = entry.into_inner().map_err(map_err)?;
            decode(&id, &row)
        });
        let mut keys = rows.collect::<Result<Vec<_>>>()?;
        api_keys::sort(&mut keys);
        Ok(keys)
    }

    fn apply_insert(&self, key: &ApiKey, now: Timestamp) -> Result<Option<Committed>> {
        let _writing = self.writing.lock();
        let mut batch = self.database.batch();
        match api_keys::prepare_insertion(&self.read_all()?, key, now)? {
            Insertion::Nothing => return Ok(None),
            Insertion::Add => {}
            Insertion::Replace(id) => batch.remove(&self.keys, id.0.to_be_bytes()),
        }
        batch.insert(&self.keys, key.id.0.to_be_bytes(), encode(key));
        self.database.apply(batch).map(Some)
    }

    fn apply_revoke(&self, id: ApiKeyId, at: Timestamp) -> Result<Option<(ApiKey, Committed)>> {
        let _writing = self.writing.lock();
        let Some(row) = self.keys.get(id.0.to_be_bytes()).map_err(map_err)? else {
            return Ok(None);
        };
        let mut key = decode(&id.0.to_be_bytes(), &row)?;
        key.revoked_at.get_or_insert(at);
        // Written again if nothing changes: a revocation that is not durable yet is when this one returns.
        let mut batch = self.database.batch();
        batch.insert(&self.keys, id.0.to_be_bytes(), encode(&key));
        Ok(Some((key, self.database.apply(batch)?)))
    }
}

fn encode(key: &ApiKey) -> Vec<u8> {
    let row = Row {
        name: key.name.clone(),
        secret_hash: key.secret_hash.to_vec(),
        scopes: key.scopes.bits(),
        created_at: key.created_at.0,
        expires_at: key.expires_at.map(|at| at.0),
        revoked_at: key.revoked_at.map(|at| at.0),
    };
    row.encode_to_vec()
}

/// Decodes a row and its key in the keyspace.
pub(crate) fn decode(id: &[u8], row: &[u8]) -> Result<ApiKey> {
    let corrupt = || Error::new(ErrorKind::Corrupt, "can't decode a stored API key");
    let row = Row::decode(row).map_err(|_| corrupt())?;
    Ok(ApiKey {
        id: ApiKeyId(u64::from_be_bytes(id.try_into().map_err(|_| corrupt())?)),
        name: row.name,
        secret_hash: row.secret_hash.try_into().map_err(|_| corrupt())?,
        scopes: Scopes::from_bits(row.scopes),
        created_at: Timestamp(row.created_at),
        expires_at: row.expires_at.map(Timestamp),
        revoked_at: row.revoked_at.map(Timestamp),
    })
}

#[async_trait]
impl crate::ApiKeys for EmbeddedApiKeys {
    async fn insert(&self, key: &ApiKey, now: Timestamp) -> Result<()> {
        match self.apply_insert(key, now)? {
            Some(committed) => committed.await,
            None => Ok(()),
        }
    }

    async fn revoke(&self, id: ApiKeyId, at: Timestamp) -> Result<Option<ApiKey>> {
        match self.apply_revoke(id, at)? {
            Some((key, committed)) => committed.await.map(|()| Some(key)),
            None => Ok(None),
        }
    }

    async fn all(&self) -> Result<Vec<ApiKey>> {
        self.read_all()
    }
}
