//! Open vSwitch with DPDK, with what a case needs: in a directory of its own, beside one that may run on this machine.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::maru::RULES;
use crate::{Case, LOAD_CORE};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const PROGRAM: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const CONTROL: &str = "switch.ctl";
const PORTS: [&str; 2] = ["p0", "p1"];

/// A switch that runs.
pub struct Switch {
    directory: PathBuf,
    database: Child,
    switch: Option<Child>,
}

impl Switch {
    /// Starts one with two ports, which polls on one core.
    pub fn start(top: &Path, core: usize, case: Case) -> Result<Switch> {
        let directory = top.join("ovs");
        if directory.exists() {
            std::fs::remove_dir_all(&directory)?;
        }
        std::fs::create_dir(&directory)?;
        let database = directory.join("conf.db");
        done(Command::new("ovsdb-tool").arg("create").arg(&database).arg(SCHEMA))?;
        let remote = format!("punix:{}", directory.join("db.sock").display());
        let log = |name: &str| format!("--log-file={}", directory.join(name).display());
        let database =
            quiet(Command::new("ovsdb-server").arg(&database).args(["--remote", &remote, "--no-chdir", &log("db.log")]))
                .env("OVS_RUNDIR", &directory)
                .spawn()
                .context("ovsdb-server is missing: run this with `make bench-switch`")?;
        let mut switch = Switch { directory: directory.clone(), database, switch: None };
        wait(|| switch.directory.join("db.sock").exists())?;
        switch.configure(&["--no-wait", "init"])?;
        let mask = format!("other_config:pmd-cpu-mask={:#x}", 1 << core);
        let others = format!("other_config:dpdk-lcore-mask={:#x}", 1 << LOAD_CORE);
        let pages = format!("other_config:dpdk-hugepage-dir={}", crate::huge(top).display());
        let memory =
            [&pages, "other_config:dpdk-init=true", "other_config:dpdk-socket-mem=512", "other_config:dpdk-extra=--no-pci"];
        switch.configure(&[&["--no-wait", "set", "Open_vSwitch", ".", &mask, &others], &memory[..]].concat())?;
        let socket = format!("unix:{}", switch.directory.join("db.sock").display());
        let control = format!("--unixctl={}", switch.directory.join(CONTROL).display());
        let program = quiet(Command::new(PROGRAM).args([&socket, "--no-chdir", &log("switch.log"), &control]))
            .env("OVS_RUNDIR", &switch.directory)
            .spawn()
            .context("ovs-vswitchd with DPDK is missing: run this with `make bench-switch`")?;
        switch.switch = Some(program);
        switch.configure(&["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"])?;
        for port in PORTS {
            switch.configure(&["add-port", "br0", port, "--", "set", "Interface", port, "type=dpdkvhostuser"])?;
        }
        let flows = switch.directory.join("flows");
        std::fs::write(&flows, flows_of(case))?;
        done(
            Command::new("ovs-ofctl").args(["--bundle", "replace-flows", "br0"]).arg(&flows).env("OVS_RUNDIR", &switch.directory),
        )?;
        Ok(switch)
    }

    fn configure(&self, arguments: &[&str]) -> Result<String> {
        let socket = format!("--db=unix:{}", self.directory.join("db.sock").display());
        done(Command::new("ovs-vsctl").args([&socket, "--timeout=30"]).args(arguments).env("OVS_RUNDIR", &self.directory))
    }

    fn control(&self, command: &str) -> Result<String> {
        done(Command::new("ovs-appctl").arg("-t").arg(self.directory.join(CONTROL)).arg(command))
    }

    /// Where the two ports are.
    pub fn sockets(&self) -> [PathBuf; 2] {
        PORTS.map(|port| self.directory.join(port))
    }

    /// Counts cycles from now on.
    pub fn clear(&self) -> Result<()> {
        self.control("dpif-netdev/pmd-stats-clear").map(drop)
    }

    /// Cycles of busy time for each frame since then.
    pub fn cycles(&self) -> Result<f64> {
        let text = self.control("dpif-netdev/pmd-stats-show")?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("avg processing cycles per packet:"));
        let number = line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("no cycles in: {text}"))?;
        Ok(number.parse()?)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for child in self.switch.iter_mut().chain([&mut self.database]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

fn wait(condition: impl Fn() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !condition() {
        ensure!(begun.elapsed() < Duration::from_secs(10), "Open vSwitch's database does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Runs a command to its end; what it said.
fn done(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn flows_of(case: Case) -> String {
    let there = "in_port=p0,actions=output:p1";
    let back = "in_port=p1,actions=output:p0";
    match case {
        Case::Learn => "actions=NORMAL\n".into(),
        Case::Stateful => "table=0,priority=1,ip,ct_state=-trk,actions=ct(table=1)\n\
             table=1,ip,ct_state=+trk+new,in_port=p0,actions=ct(commit),output:p1\n\
             table=1,ip,ct_state=+trk+new,in_port=p1,actions=ct(commit),output:p0\n\
             table=1,ip,ct_state=+trk+est,in_port=p0,actions=output:p1\n\
             table=1,ip,ct_state=+trk+est,in_port=p1,actions=output:p0\n"
            .into(),
        Case::Hit | Case::Long => {
            let rules =
                (0..RULES).map(|number| format!("priority=100,ip,nw_src=10.0.{}.{},actions=drop\n", number >> 8, number & 255));
            rules.collect::<String>() + &format!("priority=1,{there}\npriority=1,{back}\n")
        }
    }
}
