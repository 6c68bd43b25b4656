//! `maru switch`, `maru port` and `maru acl` with a `marud` whose VMs have fake monitors.

mod support;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{done, refused};

/// A host with `marud`, and a user whose context it is. What runs ends with it.
struct Host {
    directory: tempfile::TempDir,
    marud: Child,
}

fn program(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_maru")).with_file_name(name);
    assert!(program.exists(), "{} is missing: build it with `cargo build --release --workspace --examples`", program.display());
    program
}

impl Host {
    fn start() -> Host {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        // The switch may be another user than we are.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711)).unwrap();
        std::fs::create_dir_all(path.join("state/volumes/local")).unwrap();
        std::fs::write(path.join("state/volumes/local/vmlinuz"), "").unwrap();
        let mut marud = Command::new(program("marud"));
        marud.arg("--state").arg(path.join("state")).arg("--run").arg(path.join("run")).arg("--cgroup").arg(path.join("cgroup"));
        marud.arg("--monitor").arg(program("examples/fake-vmm")).arg("--switch").arg(program("maru-switch"));
        marud.args(["--listen", "127.0.0.1:0", "--memory-overcommit", "10000"]).stderr(Stdio::piped());
        let mut marud = marud.spawn().unwrap();
        let mut lines = BufReader::new(marud.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| Some(line.split_once("listening at ")?.1.split(',').next()?.to_owned()));
        let address = address.expect("marud listens");
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let host = Host { directory, marud };
        let (ca, token) = (path_of(&host, "state/tls/ca.pem"), path_of(&host, "state/admin.token"));
        host.does(&format!("context add h --server https://{address} --ca {ca} --token-file {token}"));
        host
    }

    fn run(&self, line: &str) -> Output {
        let mut maru = Command::new(env!("CARGO_BIN_EXE_maru"));
        maru.args(line.split(' ')).env("XDG_CONFIG_HOME", self.directory.path().join("config"));
        maru.env_remove("MARU_CONTEXT").env_remove("MARU_SWITCH_CONTROL").output().unwrap()
    }

    fn does(&self, line: &str) -> String {
        done(line, self.run(line))
    }

    fn refuses(&self, line: &str) -> String {
        refused(line, self.run(line))
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.does(&format!("{line} -o json"))).unwrap()
    }
}

fn path_of(host: &Host, path: &str) -> String {
    host.directory.path().join(path).display().to_string()
}

impl Drop for Host {
    fn drop(&mut self) {
        self.marud.kill().unwrap();
        self.marud.wait().unwrap();
        let run = path_of(self, "run/");
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&run) {
                // SAFETY: two numbers; the process was started for this test.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }
}

#[test]
fn switches_ports_and_rules_are_managed_by_their_names() {
    let host = Host::start();
    host.does("switch create lan");
    let said = host.does("switch create wan --uplink no-such-nic");
    assert!(said.contains("external") && said.contains("error") && said.contains("no-such-nic"), "{said}");
    host.does("vm create web --kernel local:vmlinuz --memory 64M --switch lan --net switch=lan,vlan=10,id=back");
    host.does("vm start web");
    let list = host.does("switch list");
    let rows: Vec<Vec<&str>> = list.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows, [vec!["lan", "private", "2", "yes"], vec!["wan", "external", "no-such-nic", "0", "no"]]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while host.json("port show web/net0")["connected"] != true {
        assert!(Instant::now() < deadline, "it is not connected");
    }
    let ports = host.does("port list");
    assert!(ports.contains("web/back") && ports.contains(" 10 "), "{ports}");
    assert!(host.does("switch status").contains("web/net0 of lan: connected"));
    assert_eq!(host.json("switch stations"), json!([]));

    assert_eq!(host.does("port set web/net0 --vlan 7 --dhcp-guard on"), "web: set-policy done\n");
    host.does("port set web/net0 --max-out 100M");
    let policy = &host.json("port show web/net0")["policy"];
    assert_eq!((&policy["vlan"]["vlan"], &policy["dhcp-server"]), (&json!(7), &json!("deny")), "what is not named stays");
    assert_eq!(policy["bandwidth"]["max-out-bps"], 100_000_000);
    host.does("acl add web/net0 --deny --in --weight 1");
    host.does("acl add web/net0 --allow --in --protocol tcp --local-port 22 --remote 10.0.0.0/8 --weight 10 --stateful 60s");
    host.does("acl add web/net0 --meter --remote 10.0.0.0/8");
    let rules = host.does("acl list web/net0");
    let first = "in:10  in         allow, stateful 60s  tcp, local port 22, remote 10.0.0.0/8";
    assert!(rules.contains(first) && rules.contains("meter"), "{rules}");
    let test = "acl test web/net0 --in --protocol tcp --local 10.0.0.5 --remote 10.1.2.3 --local-port";
    assert_eq!(host.does(&format!("{test} 22")), "it passes, and so do the answers: rule in:10 decides\n");
    assert_eq!(host.does(&format!("{test} 23")), "it is dropped: rule in:1 decides\n");
    let counted = host.json("port show web/net0")["rules"].clone();
    let names: Vec<&str> = counted.as_array().unwrap().iter().map(|told| told["rule"].as_str().unwrap()).collect();
    assert_eq!(names, ["in:1", "in:10", "0"]);
    host.does("acl remove web/net0 in:1 0");
    assert_eq!(host.json("acl list web/net0")["acl"], json!([]));
    assert_eq!(host.json("vm show web")["spec"]["nets"][0]["policy"]["extended-acl"].as_array().unwrap().len(), 1);
    // The switch's process says the same.
    let direct = format!("port list --control {} -o json", path_of(&host, "run/switch/own/control"));
    let ports: Value = serde_json::from_str(&host.does(&direct)).unwrap();
    let of_net0 = ports.as_array().unwrap().iter().find(|port| port["name"].as_str().unwrap().ends_with("/net0")).unwrap();
    assert_eq!(of_net0["policy"]["vlan"]["vlan"], 7);

    for (line, expected) in [
        ("switch create lan", "already"),
        ("switch create x --kind external", "name a NIC"),
        ("switch show lna", "did you mean 'lan'?"),
        ("switch edit lan", "nothing is to be changed"),
        ("switch delete lan", "web"),
        ("port set web/net0", "nothing is to be changed"),
        ("port set web/net0 --mac 52:54:00:00:00:01", "--mac-spoofing"),
        ("port set web/net9 --vlan 1", "net9"),
        ("port set web --vlan 1", "VM/CARD"),
        ("acl remove web/net0 in:1", "in:1"),
        ("acl add web/net0 --deny --in --weight 10", "weight 10"),
        ("vm create x --kernel local:vmlinuz --switch lna", "there is no switch 'lna'; there are: lan, wan"),
    ] {
        let said = host.refuses(line);
        assert!(said.contains(expected), "maru {line}: {said}");
    }
    host.does("vm stop web --force");
    host.does("vm delete web");
    host.does("switch delete lan wan");
    assert_eq!(host.json("switch list"), json!([]));
}
