//! `make bench-list`: how long it takes to list many VMs: a real `marud` over TLS on the loopback network, first by itself, with its store in a
//! file, then as a host of a cluster, with etcd. There, nearly all VMs are other hosts'.
//!
//! One VM is made through the API; the others are its record with other names, written into the store while no `marud` runs: making a VM looks at
//! all that there are.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use api::client::{Client, Method};
use bench::etcd;
use bench::stats::Summary;
use bench::table::table;
use lexopt::prelude::*;
use serde_json::{Value, json};
use store::{FileStore, Store, Transaction};

const HELP: &str = "\
bench-list: how long it takes to list many VMs

  --vms N       VMs (20000)
  --rounds N    how often each is asked (20)
  --dir DIR     where marud keeps its state (a new directory in the one for temporary files)
";

/// Hosts that VMs are said to be on.
const HOSTS: usize = 128;
/// How long a host may take to become a cluster.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(100);
/// VMs that are written at once.
const WRITTEN_AT_ONCE: usize = 32;

struct Options {
    vms: usize,
    rounds: usize,
    directory: PathBuf,
}

fn main() -> ExitCode {
    match parse().and_then(|options| options.map_or(Ok(()), |options| run(&options))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-list: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> anyhow::Result<Option<Options>> {
    let mut options = Options { vms: 20_000, rounds: 20, directory: std::env::temp_dir() };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("vms") => options.vms = parser.value()?.parse()?,
            Long("rounds") => options.rounds = parser.value()?.parse()?,
            Long("dir") => options.directory = parser.value()?.into(),
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    ensure!(options.vms > 0 && options.rounds > 0, "there has to be something to be listed, and once at least");
    Ok(Some(options))
}

/// A program that was built with this one.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    ensure!(program.is_file(), "{} is not there: is it built, with make build?", program.display());
    Ok(program)
}

/// A `marud` that ends with this.
struct Marud {
    child: Child,
    address: String,
}

impl Drop for Marud {
    fn drop(&mut self) {
        // It loses nothing by that, and may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Marud {
    /// Starts it, and waits until it listens.
    fn start(directory: &Path) -> anyhow::Result<Marud> {
        let mut command = Command::new(program("marud")?);
        command.arg("--etcd").arg(etcd::programs());
        command.arg("--state").arg(directory.join("state")).arg("--run").arg(directory.join("run"));
        command
            .arg("--cgroup")
            .arg(directory.join("cgroup"))
            .arg("--listen")
            .arg(format!("{}:8420", etcd::own_address()))
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("marud")?;
        let said = child.stderr.take().context("marud says nothing")?;
        let mut marud = Marud { child, address: String::new() };
        let mut lines = BufReader::new(said).lines().map_while(Result::ok);
        let listens = |line: &String| Some(line.split_once("listening at ")?.1.split(',').next()?.to_owned());
        let mut words = String::new();
        for line in lines.by_ref() {
            if let Some(address) = listens(&line) {
                marud.address = address;
                break;
            }
            words += &line;
        }
        ensure!(!marud.address.is_empty(), "marud has ended: {words}");
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(marud)
    }

    fn client(&self, directory: &Path) -> anyhow::Result<Client> {
        let secret = fs::read_to_string(directory.join("state/admin.token"))?;
        let authority = fs::read(directory.join("state/tls/ca.pem"))?;
        Ok(Client::new(&format!("https://{}", self.address), &authority, secret.trim())?)
    }
}

/// Makes one VM, as users do.
fn make_one(directory: &Path) -> anyhow::Result<api::Vm> {
    let volume = directory.join("state/volumes/local");
    fs::create_dir_all(&volume)?;
    fs::write(volume.join("vmlinuz"), "")?;
    fs::write(volume.join("base.raw"), vec![0; 1 << 20])?;
    let marud = Marud::start(directory)?;
    let spec = json!({
        "name": "vm-00000",
        "cpus": 2,
        "memory_bytes": 2_u64 << 30,
        "boot": {"kernel": "local:vmlinuz", "command_line": "console=ttyS0 root=/dev/vda1 ro quiet"},
        "disks": [{"file": "local:base.raw", "read_only": true}],
        "nets": [{"tap": "tap0"}],
    });
    Ok(marud.client(directory)?.call(Method::POST, "/vms", Some(&spec))?)
}

/// Writes the others.
fn write_others(directory: &Path, first: &api::Vm, vms: usize) -> anyhow::Result<()> {
    let store = FileStore::open(&directory.join("state"))?;
    let read = |key: String| -> anyhow::Result<Value> {
        let entry = store.get(&key)?.with_context(|| format!("there is no {key}"))?;
        Ok(serde_json::from_slice(&entry.value)?)
    };
    let mut vm = read(format!("vms/{}", first.id))?;
    let mut named = read(format!("names/{}", first.spec.name))?;
    let numbers: Vec<usize> = (1..vms).collect();
    for some in numbers.chunks(WRITTEN_AT_ONCE) {
        let mut transaction = Transaction::new();
        for number in some {
            // In another order than their names.
            let id = format!("{:08x}-0000-4000-8000-000000000000", (*number as u32).wrapping_mul(0x9e37_79b9));
            let name = format!("vm-{number:05}");
            vm["data"]["id"] = json!(id);
            vm["data"]["name"] = json!(name);
            named["data"]["vm"] = json!(id);
            // While there is no cluster, that means nothing.
            vm["data"]["host"] = json!(format!("h{}", number % HOSTS));
            transaction = transaction.put(format!("vms/{id}"), vm.to_string()).put(format!("names/{name}"), named.to_string());
        }
        store.commit(&transaction)?;
    }
    Ok(())
}

/// The body of an answer.
fn body(client: &Client, path: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    client.send(Method::GET, path, &[], b"")?.into_body().into_reader().read_to_string(&mut text)?;
    Ok(text)
}

/// All parts of a list, as they come: how many, how many bytes they have, and how long each took.
fn parts(client: &Client) -> anyhow::Result<(usize, usize)> {
    let (mut path, mut parts, mut bytes) = ("/vms".to_owned(), 0, 0);
    loop {
        let text = body(client, &path)?;
        (parts, bytes) = (parts + 1, bytes + text.len());
        // It is the last of the fields; names of VMs need no escapes.
        match text.rsplit_once("\"next\":\"").and_then(|(_, rest)| rest.split('"').next()) {
            Some(next) => path = format!("/vms?after={next}"),
            None => return Ok((parts, bytes)),
        }
    }
}

fn listed_by_cli(directory: &Path) -> anyhow::Result<usize> {
    let output = Command::new(program("maru")?).env("XDG_CONFIG_HOME", directory).args(["vm", "list"]).output()?;
    if !output.status.success() {
        bail!("maru vm list: {}", String::from_utf8_lossy(&output.stderr));
    }
    // Below a line with the heads.
    Ok(output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count() - 1)
}

fn add_context(directory: &Path, address: &str) -> anyhow::Result<()> {
    let mut command = Command::new(program("maru")?);
    command.env("XDG_CONFIG_HOME", directory).args(["context", "add", "bench", "--server", &format!("https://{address}")]);
    command.arg("--ca").arg(directory.join("state/tls/ca.pem")).arg("--token-file").arg(directory.join("state/admin.token"));
    let output = command.output()?;
    ensure!(output.status.success(), "maru context add: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn run(options: &Options) -> anyhow::Result<()> {
    let directory = tempfile::Builder::new().prefix("bench-list").tempdir_in(&options.directory)?;
    let directory = directory.path();
    let first = make_one(directory)?;
    write_others(directory, &first, options.vms)?;
    let begin = Instant::now();
    let marud = Marud::start(directory)?;
    let start = begin.elapsed();
    add_context(directory, &marud.address)?;
    println!("{} VMs; marud listens {} ms after its start", options.vms, millis(start));
    measure_all("A host by itself", options, directory, &marud)?;
    let begin = Instant::now();
    become_cluster(directory, &marud)?;
    println!("\nit is a cluster {} ms after it was told so", millis(begin.elapsed()));
    measure_all("A host of a cluster", options, directory, &marud)
}

/// Makes a cluster of the host, and waits until it answers as one.
fn become_cluster(directory: &Path, marud: &Marud) -> anyhow::Result<()> {
    let asked = json!({"name": "bench", "host": "h0"});
    marud.client(directory)?.call::<Value>(Method::POST, "/cluster", Some(&asked))?;
    let end = Instant::now() + PATIENCE;
    loop {
        // It starts anew meanwhile, and has another authority then.
        let status = marud.client(directory).and_then(|client| Ok(client.get::<api::ClusterStatus>("/cluster")?));
        match status {
            Ok(status) if status.cluster.is_some() => break,
            Err(error) if Instant::now() > end => return Err(error.context("no cluster came of it")),
            _ => std::thread::sleep(LOOK),
        }
    }
    add_context(directory, &marud.address)
}

fn measure_all(title: &str, options: &Options, directory: &Path, marud: &Marud) -> anyhow::Result<()> {
    let client = marud.client(directory)?;
    let mut rows = vec![["what", "ms: median (from, to)", "bytes"].map(String::from).to_vec()];
    let mut measure = |what: &str, work: &dyn Fn() -> anyhow::Result<usize>| -> anyhow::Result<()> {
        // Connections are made, and memory is touched for the first time.
        let bytes = work()?;
        let mut times = Vec::new();
        for _ in 0..options.rounds {
            let begin = Instant::now();
            work()?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        rows.push(vec![what.into(), Summary::of(times).to_string(), bytes.to_string()]);
        Ok(())
    };
    measure("one part, of 1000 VMs", &|| Ok(body(&client, "/vms")?.len()))?;
    measure("the last part", &|| Ok(body(&client, &format!("/vms?after=vm-{:05}", options.vms.saturating_sub(1001)))?.len()))?;
    measure("one VM by its name", &|| Ok(body(&client, "/vms?name=vm-00000")?.len()))?;
    measure("those that run: none", &|| Ok(body(&client, "/vms?state=running")?.len()))?;
    measure("all parts, one after the other", &|| Ok(parts(&client)?.1))?;
    measure("all parts, understood", &|| {
        let vms: Vec<api::Vm> = client.list("/vms")?;
        ensure!(vms.len() == options.vms, "{} VMs are listed", vms.len());
        Ok(0)
    })?;
    measure("`maru vm list`", &|| {
        let lines = listed_by_cli(directory)?;
        ensure!(lines == options.vms, "{lines} VMs are listed");
        Ok(0)
    })?;
    print!("\n{title}\n\n{}", table(&rows));
    Ok(())
}

fn millis(time: Duration) -> String {
    format!("{:.0}", time.as_secs_f64() * 1e3)
}
