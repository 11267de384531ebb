//! TLS of ports ([`ServerTls`]) and of the calls to other processes ([`ClientTls`]), from PEM files.
//!
//! - TLS 1.2 and 1.3 (RFC 5246, RFC 8446) by rustls with ring. HTTP/2 is agreed on by ALPN (RFC 7301).
//! - The files are read again each second. When they have changed, new connections use what is in them; open connections go
//!   on. While the new files can't be used (half written, or a key of another certificate), the old ones stay in use, and an
//!   error is logged.
//! - No TLS session is resumed: a client certificate that has expired, or whose authority is no longer accepted, is
//!   refused at the next connection.

mod cause;
mod client;
mod config;
mod expiry;
mod files;
mod probe;
mod reload;
mod server;
mod verify;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use cause::Cause;
pub use client::{Changes, ClientFiles, ClientTls};
pub use config::{ClientCertificates, InternalTlsConfig, TlsConfig};
pub use expiry::register_certificates;
pub(crate) use files::is_open_to_others;
pub use files::{Error, ErrorKind};
pub use probe::probe;
pub use server::{Protocols, ServerFiles, ServerTls};

/// The cryptography of all connections.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
