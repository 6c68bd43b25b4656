//! What is promised of etcd, with real ones.

mod admin;
mod failures;
mod processes;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::admin::MemberId;
use super::server::{Membership, Programs, Server, ServerConfig, ServerTls};
use super::{ClientTls, EtcdConfig, EtcdStore};

/// How long etcd may take for anything on a busy machine.
const LONG: Duration = Duration::from_secs(30);

/// etcd, as `scripts/install-deps` has unpacked it, or as it is installed.
pub fn programs() -> Programs {
    let build = std::env::var_os("MARU_BUILD_DIR").map(PathBuf::from);
    let build = build.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build"));
    Programs::find(&[build.join("etcd/usr/bin")]).unwrap_or_else(|error| panic!("{error}, or run `make deps-test`"))
}

/// A certificate authority.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for an address, and its key.
    fn certificate(&self, address: Ipv4Addr) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        // The second is the one that connections come from here; members check that of others.
        let mut params = CertificateParams::new([address, Ipv4Addr::LOCALHOST].map(|address| address.to_string())).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    pub fn client(&self) -> ClientTls {
        let (certificate, key) = self.certificate(Ipv4Addr::LOCALHOST);
        ClientTls { authority: self.pem.clone(), certificate, key }
    }
}

/// Members of etcd that run here, and trust each other and clients of one authority.
pub struct Cluster {
    pub configs: Vec<ServerConfig>,
    pub servers: Vec<Option<Server>>,
    pub authority: Authority,
    pub programs: Programs,
    pub directory: TempDir,
}

/// An address of the loopback network that no other process uses, so that no port has to be looked for, and lost to somebody.
fn address() -> Ipv4Addr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, a + 1, b, c)
}

impl Cluster {
    /// A cluster of some members, all of them ready.
    pub fn of(count: usize) -> Cluster {
        Cluster::with_quota(count, 64 << 20)
    }

    pub fn with_quota(count: usize, quota_bytes: u64) -> Cluster {
        let mut cluster = Cluster {
            configs: Vec::new(),
            servers: Vec::new(),
            authority: Authority::new(),
            programs: programs(),
            directory: tempfile::tempdir().unwrap(),
        };
        for _ in 0..count {
            let config = cluster.config(quota_bytes);
            cluster.configs.push(config);
        }
        let members: Vec<_> = cluster.configs.iter().flat_map(|config| config.members.clone()).collect();
        for index in 0..count {
            cluster.configs[index].members = members.clone();
            cluster.servers.push(None);
            cluster.start(index);
        }
        (0..count).for_each(|index| cluster.wait_ready(index));
        cluster
    }

    /// A member of a cluster of its own.
    pub fn config(&self, quota_bytes: u64) -> ServerConfig {
        static PORT: AtomicU16 = AtomicU16::new(2379);
        let (address, port) = (address(), PORT.fetch_add(2, Ordering::Relaxed));
        let name = format!("m{port}");
        let file = |suffix: &str| self.directory.path().join(format!("{name}.{suffix}"));
        let (certificate, key) = self.authority.certificate(address);
        let tls = ServerTls { authority: file("ca"), certificate: file("pem"), key: file("key") };
        std::fs::write(&tls.authority, &self.authority.pem).unwrap();
        std::fs::write(&tls.certificate, certificate).unwrap();
        std::fs::write(&tls.key, key).unwrap();
        let peer_url = format!("https://{address}:{}", port + 1);
        ServerConfig {
            directory: file("data"),
            members: vec![(name.clone(), peer_url.clone())],
            name,
            peer_url,
            client_url: format!("https://{address}:{port}"),
            membership: Membership::Create { token: "test".into() },
            tls: Some(tls),
            quota_bytes,
            corruption_check: Duration::from_secs(1),
        }
    }

    pub fn start(&mut self, index: usize) {
        self.servers[index] = Some(Server::start(&self.programs, &self.configs[index]).unwrap());
    }

    pub fn server(&self, index: usize) -> &Server {
        self.servers[index].as_ref().unwrap()
    }

    pub fn wait_ready(&self, index: usize) {
        self.server(index).wait_ready(Some(&self.authority.client()), LONG).unwrap();
    }

    /// Adds a member to those here, and starts it as a learner.
    pub fn join(&mut self, store: &EtcdStore) -> MemberId {
        let mut config = self.config(64 << 20);
        // All have to be together for some seconds before.
        let member = until("a place for a learner", || store.add_learner(&config.peer_url).ok());
        let own = config.members.clone();
        config.members = store.members().unwrap().into_iter().map(|member| (member.name, member.peer_urls[0].clone())).collect();
        config.members.retain(|(_, url)| *url != config.peer_url);
        config.members.extend(own);
        config.membership = Membership::Join;
        self.configs.push(config);
        self.servers.push(None);
        self.start(self.configs.len() - 1);
        member.id
    }

    pub fn url(&self, index: usize) -> &str {
        &self.configs[index].client_url
    }

    /// A client of all members, with the first one preferred.
    pub fn client(&self) -> EtcdStore {
        self.client_from(0)
    }

    /// A client of all members, with this one preferred.
    pub fn client_from(&self, first: usize) -> EtcdStore {
        let mut endpoints: Vec<String> = self.configs.iter().map(|config| config.client_url.clone()).collect();
        endpoints.rotate_left(first);
        self.client_with(endpoints, Duration::from_secs(6), self.authority.client())
    }

    pub fn client_with(&self, endpoints: Vec<String>, deadline: Duration, tls: ClientTls) -> EtcdStore {
        EtcdStore::new(&EtcdConfig { endpoints, tls: Some(tls), deadline }).unwrap()
    }

    /// The member that leads.
    pub fn leader(&self) -> usize {
        let store = self.client();
        let leader = until("a leader", || store.status(self.url(0)).ok()?.leader);
        let leads = |index: &usize| store.status(self.url(*index)).is_ok_and(|status| status.id == leader);
        (0..self.configs.len()).find(leads).unwrap()
    }

    /// Kills a member as a crash would.
    pub fn kill(&mut self, index: usize) {
        self.servers[index] = None;
    }

    /// Freezes a member until what is returned is dropped.
    pub fn freeze(&self, index: usize) -> Frozen {
        let pid = self.server(index).id();
        signal(pid, libc::SIGSTOP);
        Frozen { pid }
    }
}

pub struct Frozen {
    pid: u32,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal(self.pid, libc::SIGCONT);
    }
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: kill takes no pointers; the process is a child that was not waited for.
    assert_eq!(unsafe { libc::kill(pid.cast_signed(), signal) }, 0);
}

/// Asks until there is an answer.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "{what} has not come within {LONG:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
