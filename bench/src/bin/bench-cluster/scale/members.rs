//! Three members of etcd on this machine, as a cluster has them: with TLS, and their data on a disk.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use bench::etcd;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use store::etcd::ClientTls;
use store::etcd::server::{Membership, Programs, Server, ServerConfig, ServerTls};
use store::{EtcdConfig, EtcdStore};
use tempfile::TempDir;

/// How many.
pub const MEMBERS: usize = 3;
/// How long they may take to find each other.
const READY: Duration = Duration::from_secs(60);
/// How long one call may take, as in `marud`.
const DEADLINE: Duration = Duration::from_secs(3);
/// As `marud` has it.
const QUOTA: u64 = 8 << 30;
/// Ports of the first member; the next ones have the following.
const PORT: usize = 2379;

/// The members. They end when this is dropped.
pub struct Members {
    servers: Vec<Server>,
    urls: Vec<String>,
    tls: ClientTls,
    // Goes after them.
    _directory: TempDir,
}

/// Who members and clients believe.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> anyhow::Result<Authority> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "bench-cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key)?.pem();
        Ok(Authority { pem, issuer: Issuer::new(params, key) })
    }

    /// A certificate for this address, and for the one that connections come from here, with its key.
    fn certificate(&self, address: Ipv4Addr) -> anyhow::Result<(String, String)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([address, Ipv4Addr::LOCALHOST].map(|address| address.to_string()))?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}

impl Members {
    /// Starts them, with data in a new directory below this one.
    pub fn start(below: &Path) -> anyhow::Result<Members> {
        let programs = Programs::find(&[etcd::programs()])?;
        let directory = tempfile::Builder::new().prefix("bench-cluster").tempdir_in(below)?;
        let authority = Authority::new()?;
        let (certificate, key) = authority.certificate(Ipv4Addr::LOCALHOST)?;
        let tls = ClientTls { authority: authority.pem.clone(), certificate, key };
        let url = |index: usize, what: usize| format!("https://{}:{}", etcd::own_address(), PORT + 2 * index + what);
        let members: Vec<(String, String)> = (0..MEMBERS).map(|index| (format!("m{index}"), url(index, 1))).collect();
        let mut servers = Vec::new();
        for (index, (name, peer_url)) in members.iter().enumerate() {
            let file = |suffix: &str| directory.path().join(format!("{name}.{suffix}"));
            let files = ServerTls { authority: file("ca"), certificate: file("pem"), key: file("key") };
            let (certificate, key) = authority.certificate(etcd::own_address())?;
            fs::write(&files.authority, &authority.pem)?;
            fs::write(&files.certificate, certificate)?;
            fs::write(&files.key, key)?;
            let config = ServerConfig {
                name: name.clone(),
                directory: file("data"),
                peer_url: peer_url.clone(),
                client_url: url(index, 0),
                members: members.clone(),
                membership: Membership::Create { token: "bench-cluster".into() },
                tls: Some(files),
                quota_bytes: QUOTA,
                corruption_check: Duration::from_secs(3600),
            };
            servers.push(Server::start(&programs, &config)?);
        }
        for server in &servers {
            server.wait_ready(Some(&tls), READY)?;
        }
        Ok(Members { servers, urls: (0..MEMBERS).map(|index| url(index, 0)).collect(), tls, _directory: directory })
    }

    /// A client whose nearest member is this one, modulo how many there are.
    pub fn client(&self, nearest: usize) -> anyhow::Result<EtcdStore> {
        let mut endpoints = self.urls.clone();
        endpoints.rotate_left(nearest % MEMBERS);
        Ok(EtcdStore::new(&EtcdConfig { endpoints, tls: Some(self.tls.clone()), deadline: DEADLINE })?)
    }

    /// The size of the largest database.
    pub fn file_bytes(&self, client: &EtcdStore) -> anyhow::Result<u64> {
        let mut largest = 0;
        for url in &self.urls {
            largest = largest.max(client.status(url)?.file_bytes);
        }
        Ok(largest)
    }

    /// The processor time that they have taken, all together.
    pub fn processor_time(&self) -> anyhow::Result<Duration> {
        self.servers.iter().map(|server| processor_time(&server.id().to_string())).sum()
    }
}

/// The processor time that a process has taken.
pub fn processor_time(process: &str) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name may have spaces; proc(5) numbers utime and stime 14 and 15, the name being 2.
    let (_, rest) = stat.rsplit_once(") ").context("a process without a name")?;
    let ticks: u64 = rest.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<_, _>>()?;
    // SAFETY: a number goes in, and one comes back.
    let in_a_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) })?;
    Ok(Duration::from_millis(ticks * 1000 / in_a_second))
}
