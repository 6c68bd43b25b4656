//! The certificate authority, and the certificates that hosts prove themselves with.
//!
//! ```text
//!  tls/ca.pem, ca.key   the authority: of this host alone, or of its cluster, whose hosts all have it
//!      host.pem         the host's certificate, the authority's, and the host's key, in one file
//! ```
//!
//! A single host makes an authority at its first start, and clients are told to trust it. It becomes that of the cluster that is made on this
//! host; who joins takes it over. So each host makes its own certificate, at each start of `marud` and when two thirds of its time are over.
//! The same certificate serves all: the API's server, etcd for clients and members, and the client of both.
//!
//! Certificate and key are in one file, so that they change together: etcd reads them at each handshake.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use ring::hmac;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use store::etcd::ClientTls;
use store::etcd::server::ServerTls;
use time::{Duration, OffsetDateTime};

use crate::auth::{sha256, write_private};

/// How long the authority is valid.
const CA_DAYS: i64 = 20 * 365;
/// How long a host's certificate is valid.
const HOST_DAYS: i64 = 90;
/// After this time a host makes itself a new one.
pub const RENEWED_AFTER: Duration = Duration::days(60);
/// Clocks differ.
const EARLIER: Duration = Duration::days(1);
/// What the name of a host in its certificate begins with, among its other names: a URI, which no other name can be taken for.
const HOST_URI: &str = "maru:host:";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file.
    #[error("{} cannot be used", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Key or certificate.
    #[error("the certificate authority in {} cannot be used: move it away to have a new one, which clients must be told of", .path.display())]
    Authority {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        source: rcgen::Error,
    },
    /// The certificate, where another program wrote it.
    #[error("{} holds no certificate", .0.display())]
    NoCertificate(PathBuf),
    /// A name that no certificate can have.
    #[error("there can be no certificate for the host '{host}', known as {names}")]
    Names {
        /// The host.
        host: String,
        /// All its names.
        names: String,
        /// Why not.
        source: rcgen::Error,
    },
}

/// A certificate authority.
pub struct Authority {
    directory: PathBuf,
    pem: String,
    key: KeyPair,
}

/// A host's certificate with its key.
#[derive(Clone)]
pub struct HostCertificate {
    /// The certificate, and the authority's behind it, as PEM.
    pub chain: String,
    /// The key, as PEM.
    pub key: String,
    /// The authority's certificate, as PEM.
    pub authority: String,
    /// When it was made.
    pub made_at: OffsetDateTime,
}

impl Authority {
    /// The authority in this directory; made if there is none.
    pub fn read_or_make(directory: &Path) -> Result<Authority, AuthorityError> {
        let (certificate, key) = (directory.join("ca.pem"), directory.join("ca.key"));
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| AuthorityError::File { path, source }
        };
        let authority = |source| AuthorityError::Authority { path: directory.into(), source };
        fs::create_dir_all(directory).map_err(file(directory))?;
        // The certificate is written last: with it, the authority is whole.
        if certificate.try_exists().map_err(file(&certificate))? {
            let pem = fs::read_to_string(&certificate).map_err(file(&certificate))?;
            let key = fs::read_to_string(&key).map_err(file(&key))?;
            let key = KeyPair::from_pem(&key).map_err(authority)?;
            return Ok(Authority { directory: directory.into(), pem, key });
        }
        let pair = KeyPair::generate().map_err(authority)?;
        let mut params = ca_params(&pair);
        valid_for(&mut params, CA_DAYS);
        let pem = params.self_signed(&pair).map_err(authority)?.pem();
        Authority::replace(directory, &pem, &pair.serialize_pem())?;
        Ok(Authority { directory: directory.into(), pem, key: pair })
    }

    /// Puts another authority in the place of the one that may be there. After a crash on the way it is to be done again.
    pub fn replace(directory: &Path, pem: &str, key_pem: &str) -> Result<(), AuthorityError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| AuthorityError::File { path, source }
        };
        fs::create_dir_all(directory).map_err(file(directory))?;
        let (certificate, key) = (directory.join("ca.pem"), directory.join("ca.key"));
        write_private(&key, key_pem).map_err(file(&key))?;
        write_private(&certificate, pem).map_err(file(&certificate))
    }

    /// Its certificate, as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its key, as PEM: whoever has it is believed by all hosts.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// What all hosts that have this authority know, and nobody else, for one purpose.
    pub fn shared_secret(&self, purpose: &str) -> Vec<u8> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.key.serialize_der());
        hmac::sign(&key, purpose.as_bytes()).as_ref().to_vec()
    }

    /// SHA-256 of its certificate, in hexadecimal.
    ///
    /// # Errors
    /// When its file holds no certificate.
    pub fn fingerprint(&self) -> Result<String, AuthorityError> {
        let none = |_| AuthorityError::NoCertificate(self.directory.join("ca.pem"));
        Ok(sha256(&CertificateDer::from_pem_slice(self.pem.as_bytes()).map_err(none)?))
    }

    /// Makes a certificate for this host, and writes it to `host.pem`.
    pub fn issue(&self, host: &str, names: &[String]) -> Result<HostCertificate, AuthorityError> {
        let authority = |source| AuthorityError::Authority { path: self.directory.clone(), source };
        let unusable = |source| AuthorityError::Names { host: host.into(), names: names.join(", "), source };
        let issuer = Issuer::new(ca_params(&self.key), &self.key);
        let key = KeyPair::generate().map_err(authority)?;
        let mut params = CertificateParams::new(names).map_err(unusable)?;
        params.subject_alt_names.push(SanType::URI(format!("{HOST_URI}{host}").try_into().map_err(unusable)?));
        params.distinguished_name.push(DnType::CommonName, host);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, HOST_DAYS);
        let certificate = params.signed_by(&key, &issuer).map_err(authority)?.pem();
        // Who joins knows the fingerprint of the authority only, and finds its certificate here.
        let made = HostCertificate {
            chain: format!("{certificate}{}", self.pem),
            key: key.serialize_pem(),
            authority: self.pem.clone(),
            made_at: OffsetDateTime::now_utc(),
        };
        let path = self.directory.join("host.pem");
        write_private(&path, &format!("{}{}", made.chain, made.key)).map_err(|source| AuthorityError::File { path, source })?;
        Ok(made)
    }
}

impl HostCertificate {
    /// For a client of etcd.
    pub fn etcd_client(&self) -> ClientTls {
        ClientTls { authority: self.authority.clone(), certificate: self.chain.clone(), key: self.key.clone() }
    }
}

/// The files that etcd reads, in the directory of the authority.
pub fn etcd_server(directory: &Path) -> ServerTls {
    let host = directory.join("host.pem");
    ServerTls { authority: directory.join("ca.pem"), certificate: host.clone(), key: host }
}

/// Names that clients may know a server by: those given, the host's name, this machine itself, and these addresses.
pub fn names(host: &str, addresses: &[IpAddr], more: &[String]) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1", host].map(String::from).to_vec();
    names.extend(addresses.iter().map(IpAddr::to_string));
    names.extend_from_slice(more);
    names.sort();
    names.dedup();
    names.retain(|name| !name.is_empty());
    names
}

/// The name of the host whose certificate this is, if it is one of a host. Whether it is to be believed was checked by TLS.
pub fn host_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let host = certificate.valid_uri_names().find_map(|uri| uri.strip_prefix(HOST_URI))?;
    Some(host.to_owned())
}

/// What the authority's certificate says. All of it follows from the key, so that the certificate need not be read.
fn ca_params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("Maru CA {}", &sha256(key.public_key_raw())[..8]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn valid_for(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - EARLIER;
    params.not_after = now + Duration::days(days);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_certificate_says_which_host_it_is_and_a_name_alone_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::read_or_make(directory.path()).unwrap();
        let again = Authority::read_or_make(directory.path()).unwrap();
        assert_eq!(authority.fingerprint().unwrap(), again.fingerprint().unwrap());
        let of = |host: &str, names: &[&str]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let made = authority.issue(host, &names).unwrap();
            host_of(&CertificateDer::from_pem_slice(made.chain.as_bytes()).unwrap())
        };
        assert_eq!(of("h1", &["127.0.0.1", "h2"]), Some("h1".into()));
        let ca = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
        assert_eq!(host_of(&ca), None);
        assert_eq!(host_of(&CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])), None);
    }

    #[test]
    fn certificate_and_key_change_together() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::read_or_make(directory.path()).unwrap();
        let first = authority.issue("h1", &[]).unwrap();
        let second = authority.issue("h1", &[]).unwrap();
        assert_ne!(first.key, second.key);
        let file = fs::read_to_string(directory.path().join("host.pem")).unwrap();
        assert_eq!(file, format!("{}{}", second.chain, second.key));
    }
}
