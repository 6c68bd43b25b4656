//! The host's certificate authority, and its certificate.
//!
//! The authority is made once, and clients are told to trust it (`ca.pem`). The certificate and its key are made anew at each start and are
//! nowhere but in memory.

use std::fs;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use crate::auth::{sha256, write_private};

/// How long the authority is valid.
const CA_DAYS: i64 = 20 * 365;
/// How long a certificate is valid: longer than a `marud` runs.
const CERTIFICATE_DAYS: i64 = 5 * 365;
/// Clocks differ.
const EARLIER: Duration = Duration::days(1);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
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
    /// TLS itself.
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
}

/// Makes what a server needs, for clients that know it under these names. The authority is in `directory`, and made if it is not there.
pub fn server(directory: &Path, host: &str, names: &[String]) -> Result<ServerConfig, TlsError> {
    let authority = |source| TlsError::Authority { path: directory.into(), source };
    let ca_key = read_or_make(directory)?;
    let issuer = Issuer::new(ca_params(&ca_key), ca_key);
    let key = KeyPair::generate().map_err(authority)?;
    let mut params = CertificateParams::new(names).map_err(authority)?;
    params.distinguished_name.push(DnType::CommonName, host);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, CERTIFICATE_DAYS);
    let certificate = params.signed_by(&key, &issuer).map_err(authority)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// What the authority's certificate says. All of it follows from the key, so that the certificate need not be read.
fn ca_params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("Maru CA {}", &sha256(key.public_key_raw())[..8]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn read_or_make(directory: &Path) -> Result<KeyPair, TlsError> {
    let (certificate, key) = (directory.join("ca.pem"), directory.join("ca.key"));
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::File { path, source }
    };
    let authority = |source| TlsError::Authority { path: directory.into(), source };
    fs::create_dir_all(directory).map_err(file(directory))?;
    // The certificate is written last: with it, the authority is whole.
    if certificate.try_exists().map_err(file(&certificate))? {
        let pem = fs::read_to_string(&key).map_err(file(&key))?;
        return KeyPair::from_pem(&pem).map_err(authority);
    }
    let pair = KeyPair::generate().map_err(authority)?;
    let mut params = ca_params(&pair);
    valid_for(&mut params, CA_DAYS);
    let pem = params.self_signed(&pair).map_err(authority)?.pem();
    write_private(&key, &pair.serialize_pem()).map_err(file(&key))?;
    write_private(&certificate, &pem).map_err(file(&certificate))?;
    Ok(pair)
}

fn valid_for(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - EARLIER;
    params.not_after = now + Duration::days(days);
}

/// Names that clients may know a server by: those given, the host's name, this machine itself, and the addresses by which it reaches others.
pub fn names(host: &str, listen: IpAddr, more: &[String]) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1", host].map(String::from).to_vec();
    if listen.is_unspecified() {
        names.extend(outward().iter().map(IpAddr::to_string));
    } else {
        names.push(listen.to_string());
    }
    names.extend_from_slice(more);
    names.sort();
    names.dedup();
    names.retain(|name| !name.is_empty());
    names
}

/// The addresses by which this machine reaches others, where it has a way to them. Nothing is sent.
fn outward() -> Vec<IpAddr> {
    // Nobody has these addresses (RFC 5737, RFC 3849), but the kernel knows from which of its own it would write to them.
    let ways = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];
    let own = |(from, to)| {
        let socket = UdpSocket::bind::<&str>(from)?;
        socket.connect::<&str>(to)?;
        socket.local_addr()
    };
    ways.into_iter().filter_map(|way| own(way).ok()).map(|address| address.ip()).collect()
}
