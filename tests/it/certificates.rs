//! Certificates of servers and clients, by authorities that the tests make.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tempfile::TempDir;

/// PEM files: `ca.pem`, the authorities that are accepted; `server.crt` and `server.key`, a certificate for `localhost` and
/// 127.0.0.1 of the newest authority, for servers and clients; `other.pem`, another authority.
pub(crate) struct Certificates {
    dir: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
    old: Option<CertifiedIssuer<'static, KeyPair>>,
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let certificates = Self {
            dir: TempDir::new().unwrap(),
            authority: authority("first"),
            old: None,
        };
        certificates.write("ca.pem", &certificates.authority.pem());
        certificates.write("other.pem", &authority("other").pem());
        certificates.certify();
        certificates
    }

    pub(crate) fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub(crate) fn other(&self) -> PathBuf {
        self.dir.path().join("other.pem")
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.path().join("server.crt")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.dir.path().join("server.key")
    }

    /// Makes a new authority, which is accepted beside the old one.
    pub(crate) fn add_authority(&mut self) {
        let old = std::mem::replace(&mut self.authority, authority("second"));
        self.write("ca.pem", &format!("{}{}", old.pem(), self.authority.pem()));
        self.old = Some(old);
    }

    /// Accepts the newest authority alone.
    pub(crate) fn drop_old_authority(&mut self) {
        self.old = None;
        self.write("ca.pem", &self.authority.pem());
    }

    /// Makes a new certificate of the newest authority.
    pub(crate) fn certify(&self) {
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        self.write("server.crt", &certificate.pem());
        self.write("server.key", &key.serialize_pem());
    }

    /// Copies the certificate and its key into a directory, for its owner alone.
    pub(crate) fn write_to(&self, dir: &Path) {
        let owner = fs::metadata(dir).unwrap();
        for from in [self.certificate(), self.key()] {
            let path = dir.join(from.file_name().unwrap());
            fs::copy(&from, &path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}
