//! A `marud` with fake monitors (`examples/fake-vmm.rs`), anywhere.

#![allow(dead_code, missing_docs)]

pub mod cluster;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::client::Client;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// A host's directories, with a `marud` or without one. Whatever still runs ends with it.
pub struct TestHost {
    pub directory: tempfile::TempDir,
    marud: Option<Child>,
    address: String,
    options: Vec<String>,
}

fn command(directory: &Path, options: &[String]) -> Command {
    let marud = PathBuf::from(env!("CARGO_BIN_EXE_marud"));
    let monitor = marud.parent().unwrap().join("examples/fake-vmm");
    assert!(monitor.exists(), "{} is missing: build it with `cargo build --release -p maru-host --examples`", monitor.display());
    let mut command = Command::new(marud);
    command.arg("--state").arg(directory.join("state")).arg("--run").arg(directory.join("run"));
    command.arg("--monitor").arg(monitor).arg("--cgroup").arg(directory.join("cgroup"));
    // Fake VMs take no memory.
    command.arg("--boot-id").arg(directory.join("boot-id"));
    command.args(["--listen", "127.0.0.1:0", "--memory-overcommit", "10000"]).args(options).stderr(Stdio::piped());
    command
}

impl TestHost {
    /// A host that nothing was done on yet.
    pub fn new() -> TestHost {
        TestHost::with_options(&[])
    }

    /// The same, with more options of `marud`.
    pub fn with_options(options: &[&str]) -> TestHost {
        let options = options.iter().map(ToString::to_string).collect();
        let directory = tempfile::tempdir().unwrap();
        // A switch that is not root any more finds its sockets.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let volume = directory.path().join("state/volumes/local");
        fs::create_dir_all(&volume).unwrap();
        fs::write(volume.join("vmlinuz"), "").unwrap();
        fs::write(directory.path().join("boot-id"), "first").unwrap();
        let mut host = TestHost { directory, marud: None, address: String::new(), options };
        host.start();
        host
    }

    /// Starts `marud` and waits until it listens.
    pub fn start(&mut self) {
        let mut child = command(self.directory.path(), &self.options).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut said = String::new();
        self.address = loop {
            let Some(line) = lines.next() else { panic!("marud ended: {said}") };
            if let Some((_, rest)) = line.split_once("listening at ") {
                break rest.split(',').next().unwrap().to_owned();
            }
            said += &line;
        };
        let told = fs::read_to_string(self.directory.path().join("state").join(api::ADDRESS_FILE)).unwrap();
        assert_eq!(told, format!("{}\n", self.address), "whoever is on the same machine finds it");
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(|line| eprintln!("{line}")));
        self.marud = Some(child);
    }

    /// Starts a `marud` that is to refuse; returns what it says.
    pub fn refuses_to_start(&self) -> String {
        let output = command(self.directory.path(), &self.options).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    }

    /// Has the host's power cut, and come back.
    pub fn reboot(&mut self) {
        self.kill();
        self.monitors().into_iter().for_each(end);
        until("the monitors' end", || self.monitors().is_empty().then_some(()));
        let id = self.directory.path().join("boot-id");
        fs::write(&id, fs::read_to_string(&id).unwrap() + "+").unwrap();
        self.start();
    }

    /// Ends `marud` as the kernel does when memory is short.
    pub fn kill(&mut self) {
        let mut child = self.marud.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn volume(&self, file: &str) -> PathBuf {
        self.directory.path().join("state/volumes/local").join(file)
    }

    /// All files in the volume, with those of its directories, in the order of their names.
    pub fn files(&self) -> Vec<String> {
        let root = self.volume("");
        let (mut directories, mut found) = (vec![root.clone()], Vec::new());
        while let Some(directory) = directories.pop() {
            let entries = match fs::read_dir(&directory) {
                // Whoever works in the volume has removed it meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound && directory != root => continue,
                entries => entries.unwrap(),
            };
            for path in entries.flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    directories.push(path);
                } else {
                    found.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found.sort();
        found
    }

    /// A client with the first token.
    pub fn client(&self) -> Client {
        let secret = fs::read_to_string(self.directory.path().join("state/admin.token")).unwrap();
        self.client_with(secret.trim())
    }

    /// A client with the first token, if there is one now: a host that joins or leaves a cluster has another one for a moment, or none.
    pub fn try_client(&self) -> Option<Client> {
        let file = |name| fs::read_to_string(self.directory.path().join("state").join(name)).ok();
        let (secret, authority) = (file("admin.token")?, file("tls/ca.pem")?);
        Client::new(&format!("https://{}", self.address), authority.as_bytes(), secret.trim()).ok()
    }

    pub fn client_with(&self, secret: &str) -> Client {
        let authority = fs::read(self.directory.path().join("state/tls/ca.pem")).unwrap();
        Client::new(&format!("https://{}", self.address), &authority, secret).unwrap()
    }

    /// A connection, for what a client does not do.
    pub fn connect(&self) -> StreamOwned<ClientConnection, TcpStream> {
        self.connect_as(None)
    }

    /// The same, as another host of the cluster.
    pub fn connect_as(&self, host: Option<&TestHost>) -> StreamOwned<ClientConnection, TcpStream> {
        let authority = CertificateDer::from_pem_file(self.directory.path().join("state/tls/ca.pem")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots);
        let config = match host.map(|host| host.directory.path().join("state/tls/host.pem")) {
            None => config.with_no_client_auth(),
            Some(file) => {
                let chain = CertificateDer::pem_file_iter(&file).unwrap().map(Result::unwrap).collect();
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&file).unwrap()).unwrap()
            }
        };
        let connection = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        StreamOwned::new(connection, TcpStream::connect(&self.address).unwrap())
    }

    /// The status and the body that are at an address above the API's.
    pub fn top(&self, path: &str, secret: &str) -> (u16, String) {
        let head =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {secret}\r\n\r\n");
        answer(self.connect(), &head)
    }

    /// The status and the body of what this host answers to another one, or to a stranger.
    pub fn answer_to(&self, host: Option<&TestHost>, method: &str, path: &str, body: &str) -> (u16, String) {
        let head = format!(
            "{method} {}{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            api::BASE,
            body.len()
        );
        answer(self.connect_as(host), &head)
    }

    /// Ids of the fake monitors that run for this host.
    pub fn monitors(&self) -> Vec<u32> {
        self.processes("fake-vmm")
    }

    /// Ids of the processes of this host that are this program, zombies left out: those have no command line.
    pub fn processes(&self, program: &str) -> Vec<u32> {
        let run = self.directory.path().join("run");
        let ours = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.split('\0').next().is_some_and(|name| name.ends_with(program)) && line.contains(run.to_str().unwrap())
        };
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(ours).collect()
    }

    /// Directories of running VMs.
    pub fn run_directories(&self) -> usize {
        fs::read_dir(self.directory.path().join("run/vms")).map_or(0, Iterator::count)
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        if self.marud.is_some() {
            self.kill();
        }
        for pid in self.monitors().into_iter().chain(self.processes("maru-switch")).chain(self.processes("maru-guard")) {
            end(pid);
        }
    }
}

/// Sends a request, and gives the status and the body of its answer.
fn answer(mut stream: StreamOwned<ClientConnection, TcpStream>, request: &str) -> (u16, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.into())
}

/// Kills a process of this host.
pub fn end(pid: u32) {
    // SAFETY: two numbers; the process was started for this test.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
}

pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, Duration::from_millis(5), what, look)
}

fn until_within<T>(limit: Duration, pause: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < limit, "timed out waiting for {what}");
        std::thread::sleep(pause);
    }
}

/// A small VM whose monitor does this.
pub fn spec(name: &str, words: &str) -> Value {
    json!({"name": name, "memory_bytes": 64 << 20, "boot": {"kernel": "local:vmlinuz", "command_line": words}})
}

/// What the host's API is asked in tests.
pub trait Asking {
    fn create(&self, spec: &Value) -> api::Vm;
    fn vm(&self, name: &str) -> api::Vm;
    /// Does something, and waits for its end.
    fn does(&self, path: &str) -> api::Task;
    /// The code of a refusal, with its status.
    fn refusal(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String);
}

impl Asking for Client {
    fn create(&self, spec: &Value) -> api::Vm {
        self.call("POST".parse().unwrap(), "/vms", Some(spec)).unwrap()
    }

    fn vm(&self, name: &str) -> api::Vm {
        self.get(&format!("/vms/{name}")).unwrap()
    }

    fn does(&self, path: &str) -> api::Task {
        let (method, path) = path.split_once(' ').unwrap();
        let task = self.call(method.parse().unwrap(), path, None::<&()>).unwrap();
        self.wait(task, |_| {}).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn refusal(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String) {
        let mut response = self.send(method.parse().unwrap(), path, headers, body).unwrap();
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string().unwrap();
        let error: api::Error =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{method} {path}: {status} {text}: {error}"));
        assert!(!error.message.is_empty() && !error.way_out.is_empty(), "{error:?}");
        (status, error.code)
    }
}
