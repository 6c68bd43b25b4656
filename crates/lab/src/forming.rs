//! Hosts that become one cluster, by the commands that a user would type.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::host::{Host, SHARED_DIR};
use crate::lab::{Lab, LabError};

/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(100);

impl Lab {
    /// Makes one cluster of all hosts, which have to be [managed](crate::LabSpec::managed) and to have
    /// [etcd](crate::LabSpec::etcd); with a [shared directory](crate::LabSpec::shared_dir), it gets the volume `shared`. The last may be a
    /// [witness](crate::LabSpec::witness). `progress` is told of each step.
    ///
    /// # Errors
    /// When a command fails, or what it leads to does not come within two minutes.
    pub fn form_cluster(&self, progress: &mut dyn FnMut(&str)) -> Result<(), LabError> {
        let first = self.host(0);
        progress(&format!("{} becomes a cluster", first.name()));
        run(first, &format!("maru cluster create {}", addresses(first)))?;
        until(first, "it answers as a cluster", |status| !status["cluster"].is_null())?;
        for (index, host) in self.hosts().iter().enumerate().skip(1) {
            let witness = if index < self.vm_hosts().len() { "" } else { " --witness" };
            progress(&format!("{} joins it{}", host.name(), witness.replace(" --", " as ")));
            let token = json(first, "maru cluster token")?["token"].as_str().unwrap_or_default().to_owned();
            run_with(host, &format!("maru cluster join{witness} {}", addresses(host)), &token)?;
        }
        let voters = match self.hosts().len() {
            0..=2 => 1,
            3..=6 => 3,
            _ => 5,
        };
        progress(&format!("waiting until {voters} keep the store"));
        until(first, "enough hosts keep the store", |status| {
            let hosts = status["cluster"]["hosts"].as_array().map_or(&[][..], Vec::as_slice);
            let alive = hosts.iter().filter(|host| host["alive"] == true).count();
            alive == self.hosts().len()
                && hosts.iter().filter(|host| host["store"] == "voter" && host["store_answers"] == true).count() == voters
        })?;
        if self.shared_dir().is_dir() {
            progress("the volume shared is made");
            run(first, &format!("maru volume create shared {SHARED_DIR} --shared"))?;
        }
        Ok(())
    }
}

/// Its addresses on the cables, as options.
fn addresses(host: &Host) -> String {
    format!("--address {} --address {}", host.address(0), host.address(1))
}

/// Runs a command line on a host.
fn run(host: &Host, command: &str) -> Result<String, LabError> {
    run_with(host, command, "")
}

/// The same, with something for its standard input.
fn run_with(host: &Host, command: &str, input: &str) -> Result<String, LabError> {
    let output = host.exec_with(["sh", "-ec", command], input.as_bytes())?;
    if output.success() {
        return Ok(output.text());
    }
    let reason = format!("{}{}", output.text(), output.error_text()).trim().to_owned();
    Err(LabError::Cluster { host: host.name().to_owned(), what: command.to_owned(), reason })
}

fn json(host: &Host, command: &str) -> Result<Value, LabError> {
    let text = run(host, &format!("{command} -o json"))?;
    serde_json::from_str(&text).map_err(|error| LabError::Cluster {
        host: host.name().to_owned(),
        what: command.to_owned(),
        reason: format!("it is no JSON: {error}"),
    })
}

/// Waits until something is so; it is given the state of the cluster, or nothing while there is none.
fn until(host: &Host, what: &str, so: impl Fn(&Value) -> bool) -> Result<(), LabError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = json(host, "maru cluster status");
        if so(status.as_ref().unwrap_or(&Value::Null)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let reason = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            return Err(LabError::Cluster { host: host.name().to_owned(), what: format!("waiting until {what}"), reason });
        }
        std::thread::sleep(LOOK);
    }
}
