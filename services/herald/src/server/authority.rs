//! The private authority of `herald up --tls`, and the certificate of the server that it signs.
//!
//! Both are in the directory `tls` of the data directory. The authority is made once, so that clients that know it also
//! accept the certificates that follow; the certificate is made again before it ends, and when the machine has another name.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};
use x509_parser::{extensions::GeneralName, pem::parse_x509_pem};

/// The directory in the data directory.
const DIR: &str = "tls";
/// Time for which an authority is valid.
const AUTHORITY_VALID: Duration = Duration::days(3_650);
/// Time for which a certificate is valid.
const CERTIFICATE_VALID: Duration = Duration::days(365);
/// Rest of its validity at which an authority or a certificate is made anew.
const RENEWED_BEFORE: Duration = Duration::days(30);
/// Time before now at which validity begins, for clocks of clients that are behind.
const CLOCK_SKEW: Duration = Duration::hours(1);

/// The files of the authority and of the certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issued {
    /// The certificate of the authority, which clients verify the server with.
    pub(crate) authority: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// Makes what is missing or ends within 30 days, for `localhost`, the loopback addresses and the name of this machine.
/// `data_dir` must exist. All files are for the user of this process alone.
pub(super) fn issue(data_dir: &Path, now: OffsetDateTime) -> Result<Issued> {
    let dir = std::path::absolute(data_dir.join(DIR))?;
    let failed = || format!("can't make the certificate of --tls in {}", dir.display());
    make(&dir, &names(), now).with_context(failed)
}

fn make(dir: &Path, names: &[String], now: OffsetDateTime) -> Result<Issued> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let issued = Issued {
        authority: dir.join("ca.crt"),
        certificate: dir.join("server.crt"),
        key: dir.join("server.key"),
    };
    let authority_key = dir.join("ca.key");
    let known = read(&issued.authority)?.zip(read(&authority_key)?);
    let kept = known.filter(|(certificate, _)| lasts(certificate, now));
    let is_kept = kept.is_some();
    let (authority, key) = if let Some(kept) = kept {
        kept
    } else {
        let (certificate, key) = new_authority(now)?;
        // The key last: a certificate without its key is made again.
        write(&issued.authority, &certificate)?;
        write(&authority_key, &key)?;
        tracing::info!(file = %issued.authority.display(), "made a private authority");
        (certificate, key)
    };
    let certificate = read(&issued.certificate)?.zip(read(&issued.key)?);
    let is_good =
        |certificate: &str| lasts(certificate, now) && names_of(certificate).is_some_and(|has| has == names);
    if !is_kept || !certificate.is_some_and(|(certificate, _)| is_good(&certificate)) {
        let issuer = Issuer::from_ca_cert_pem(&authority, KeyPair::from_pem(&key)?)?;
        let (certificate, key) = new_certificate(&issuer, names, now)?;
        write(&issued.certificate, &certificate)?;
        write(&issued.key, &key)?;
        tracing::info!(file = %issued.certificate.display(), names = names.join(", "), "made a certificate");
    }
    Ok(issued)
}

fn new_authority(now: OffsetDateTime) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    // Authorities of several data directories have different names, so that clients can know them all.
    let name = format!("Herald private authority {}", uuid::Uuid::new_v4());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (now - CLOCK_SKEW, now + AUTHORITY_VALID);
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn new_certificate(
    issuer: &Issuer<'_, KeyPair>,
    names: &[String],
    now: OffsetDateTime,
) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name.push(DnType::CommonName, "Herald");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (now - CLOCK_SKEW, now + CERTIFICATE_VALID);
    let certificate = params.signed_by(&key, issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// The names and addresses by which clients on this machine and in its network call the server.
fn names() -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".into(), "::1".into()];
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // A name that can't be in a certificate is left out.
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if !host.is_empty() && host.chars().all(is_name) && !names.contains(&host) {
        names.push(host);
    }
    names
}

/// Whether a certificate is valid for more than 30 days. `false` if it can't be read.
fn lasts(certificate: &str, now: OffsetDateTime) -> bool {
    let Ok((_, pem)) = parse_x509_pem(certificate.as_bytes()) else {
        return false;
    };
    pem.parse_x509()
        .is_ok_and(|parsed| parsed.validity().not_after.timestamp() > (now + RENEWED_BEFORE).unix_timestamp())
}

/// The names and addresses of a certificate.
fn names_of(certificate: &str) -> Option<Vec<String>> {
    let (_, pem) = parse_x509_pem(certificate.as_bytes()).ok()?;
    let parsed = pem.parse_x509().ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let address = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = address.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(|address| address.to_string())
        }
        _ => None,
    };
    names.value.general_names.iter().map(text).collect()
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(anyhow!("can't read {}: {error}", path.display())),
    }
}

/// Replaces a file at once, for the user of this process alone.
fn write(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    let written = || -> io::Result<()> {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file: File = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    written().with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn contents(issued: &Issued) -> [String; 3] {
        [&issued.authority, &issued.certificate, &issued.key].map(|path| fs::read_to_string(path).unwrap())
    }

    #[test]
    fn what_ends_soon_or_has_other_names_is_made_anew() {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().join(DIR);
        let now = OffsetDateTime::now_utc();
        let names = ["localhost".to_owned(), "127.0.0.1".into(), "::1".into()];
        let issue = |names: &[String], now| contents(&make(&dir, names, now).unwrap());
        let [authority, certificate, key] = issue(&names, now);
        assert_eq!(names_of(&certificate).unwrap(), names);
        // At a later start all stays, until 30 days before the end.
        let same = issue(&names, now + Duration::days(334));
        assert_eq!(same, [authority.clone(), certificate.clone(), key.clone()]);
        let renewed = issue(&names, now + Duration::days(336));
        assert_eq!(renewed[0], authority);
        assert!(renewed[1] != certificate && renewed[2] != key);
        // The machine has another name.
        let more = [names.as_slice(), &["elsewhere".to_owned()]].concat();
        let renamed = issue(&more, now);
        assert_eq!(renamed[0], authority);
        assert_eq!(names_of(&renamed[1]).unwrap(), more);
        // The authority itself ends, and with it all that it has signed.
        let replaced = issue(&more, now + Duration::days(3_630));
        assert!(replaced[0] != authority && replaced[1] != renamed[1]);
    }

    #[test]
    fn the_files_are_private() {
        let data = tempfile::tempdir().unwrap();
        let issued = issue(data.path(), OffsetDateTime::now_utc()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let dir = data.path().join(DIR);
        assert_eq!(mode(&dir), 0o700);
        let files: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        assert_eq!(files.len(), 4);
        for file in files {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
        assert!(issued.authority.is_absolute());
    }
}
