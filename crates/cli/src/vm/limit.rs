//! `maru vm limit`: how much of the host a VM may have.

use std::str::FromStr;

use api::client::Method;
use clap::Args;
use serde_json::{Map, Value, json};
use vmm::config::{DiskLimits, NetLimits, RateConfig};

use super::manage::segment;
use crate::options::{LimitsOption, NetLimitsOption};
use crate::remote::{RemoteError, TaskArgs, finish};

const AFTER_HELP: &str = "\
Each limit holds at once if the VM runs, and whenever it is started. What is not named stays as it is.

Per cent are of one processor of the host: 150% is one and a half. Where VMs compete, the weight says how much each gets beside the others; a
cap holds also when processors are idle; a reserve is what the VM gets whenever it needs it, and it is not started where that cannot be kept.

EXAMPLES
  Three times the processor time of a VM with the usual weight, and never more than one and a half processors:
    maru vm limit web --cpu-weight 300 --cpu-cap 150%

  500 operations a second, and up to 3000 for ten minutes after quiet times; 10 MiB a second towards the guest:
    maru vm limit web --limit-disk disk0=iops=500,iops-burst=3000,burst-seconds=600 --limit-net net0=receive=10M

  No limits any more:
    maru vm limit web --cpu-cap none --limit-disk disk0=none --limit-net net0=none";

/// `maru vm limit`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct LimitArgs {
    /// Its name or id
    vm: String,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    task: TaskArgs,
}

/// Limits, as they are written on the command line.
#[derive(Debug, Args)]
pub struct Limits {
    /// Its part of the processors beside other VMs: 1 to 10000, usually 100
    #[arg(long, value_name = "N")]
    cpu_weight: Option<u32>,
    /// The most that it gets of the processors
    #[arg(long, value_name = "PERCENT%|none")]
    cpu_cap: Option<Percent>,
    /// What it gets of the processors whenever it needs it
    #[arg(long, value_name = "PERCENT%|none")]
    cpu_reserve: Option<Percent>,
    /// Limits of a disk, by its id: ID=none, or ID= and parts like iops=N, iops-burst=N, bandwidth=SIZE, bandwidth-burst=SIZE, burst-seconds=N
    #[arg(long = "limit-disk", value_name = "ID=LIMITS")]
    disk_limits: Vec<Named<LimitsOption>>,
    /// Limits of a network card, by its id: ID=none, or ID= and parts like receive=SIZE, transmit=SIZE, and -burst of each, burst-seconds=N
    #[arg(long = "limit-net", value_name = "ID=LIMITS")]
    net_limits: Vec<Named<NetLimitsOption>>,
}

/// A part of the processors; 0 for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Percent(u32);

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Percent, String> {
        if text == "none" {
            return Ok(Percent(0));
        }
        let number = text.strip_suffix('%').and_then(|number| number.parse().ok());
        number.map(Percent).ok_or_else(|| format!("'{text}' is no part of a processor: write 150% for one and a half, or none"))
    }
}

/// Something that is for the device with this id.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named<T> {
    id: String,
    value: T,
}

impl<T: FromStr<Err: ToString>> FromStr for Named<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Named<T>, String> {
        let (id, rest) = text.split_once('=').ok_or("the form is ID=LIMITS, like disk0=iops=500")?;
        Ok(Named { id: id.into(), value: rest.parse().map_err(|error: T::Err| error.to_string())? })
    }
}

impl Limits {
    /// All of it, for a new VM.
    pub fn resources(&self) -> api::Resources {
        let rate = |rate: Option<RateConfig>| {
            rate.map(|rate| {
                let burst =
                    rate.burst.map(|burst| api::Burst { per_second: burst.per_second.get(), seconds: burst.seconds.get() });
                api::Rate { per_second: rate.per_second.get(), burst }
            })
        };
        let disk = |limits: &DiskLimits| api::DiskLimits { iops: rate(limits.iops), bandwidth: rate(limits.bandwidth) };
        let net = |limits: &NetLimits| api::NetLimits { receive: rate(limits.receive), transmit: rate(limits.transmit) };
        let usual = api::Resources::default();
        api::Resources {
            cpu_weight: self.cpu_weight.unwrap_or(usual.cpu_weight),
            cpu_cap_percent: self.cpu_cap.map(|Percent(cap)| cap).filter(|cap| *cap > 0),
            cpu_reserve_percent: self.cpu_reserve.map_or(0, |Percent(reserve)| reserve),
            disks: self.disk_limits.iter().map(|Named { id, value }| (id.clone(), disk(&value.0))).collect(),
            nets: self.net_limits.iter().map(|Named { id, value }| (id.clone(), net(&value.0))).collect(),
        }
    }

    /// What is to change, as a JSON merge patch.
    pub fn patch(&self) -> Value {
        let mut patch = Map::new();
        let mut set = |name: &str, value: Option<Value>| value.map(|value| patch.insert(name.into(), value));
        set("cpu_weight", self.cpu_weight.map(Value::from));
        set("cpu_cap_percent", self.cpu_cap.map(|Percent(cap)| if cap == 0 { Value::Null } else { cap.into() }));
        set("cpu_reserve_percent", self.cpu_reserve.map(|Percent(reserve)| reserve.into()));
        let disks = self.disk_limits.iter().map(|Named { id, value: LimitsOption(limits) }| {
            (id.clone(), json!({"iops": rate(limits.iops), "bandwidth": rate(limits.bandwidth)}))
        });
        let nets = self.net_limits.iter().map(|Named { id, value: NetLimitsOption(limits) }| {
            (id.clone(), json!({"receive": rate(limits.receive), "transmit": rate(limits.transmit)}))
        });
        let some = |map: Map<String, Value>| Some(map).filter(|map| !map.is_empty()).map(Value::Object);
        set("disks", some(disks.collect()));
        set("nets", some(nets.collect()));
        Value::Object(patch)
    }
}

/// A rate, or `null`, which takes one away. So does a burst that is not there.
fn rate(rate: Option<RateConfig>) -> Value {
    let Some(rate) = rate else { return Value::Null };
    let burst = rate.burst.map(|burst| json!({"per_second": burst.per_second, "seconds": burst.seconds}));
    json!({"per_second": rate.per_second, "burst": burst})
}

/// Does it.
pub fn run(args: &LimitArgs) -> Result<(), RemoteError> {
    let client = args.task.connect.client()?;
    let path = format!("/vms/{}/resources", segment(&args.vm));
    let task = client.call(Method::PATCH, &path, Some(&args.limits.patch()))?;
    finish(&client, task, &args.task)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        limits: Limits,
    }

    fn patch(line: &[&str]) -> Result<Value, String> {
        let parsed = Command::try_parse_from([&["limit"], line].concat());
        parsed.map(|command| command.limits.patch()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_named_changes_and_nothing_else() {
        assert_eq!(patch(&[]), Ok(json!({})));
        assert_eq!(patch(&["--cpu-weight", "300", "--cpu-cap", "150%"]), Ok(json!({"cpu_weight": 300, "cpu_cap_percent": 150})));
        assert_eq!(
            patch(&["--cpu-cap", "none", "--cpu-reserve", "none"]),
            Ok(json!({"cpu_cap_percent": null, "cpu_reserve_percent": 0}))
        );
        assert_eq!(
            patch(&["--limit-disk", "a=iops=5,iops-burst=9", "--limit-disk", "b=none"]),
            Ok(json!({"disks": {
                "a": {"iops": {"per_second": 5, "burst": {"per_second": 9, "seconds": 60}}, "bandwidth": null},
                "b": {"iops": null, "bandwidth": null},
            }}))
        );
        assert_eq!(
            patch(&["--limit-net", "n=receive=1M"]).unwrap()["nets"]["n"]["receive"],
            json!({"per_second": 1 << 20, "burst": null})
        );
    }

    #[test]
    fn mistakes_are_explained() {
        for (line, expected) in [
            (["--cpu-cap", "150"], "write 150%"),
            (["--limit-disk", "disk0"], "the form is ID=LIMITS"),
            (["--limit-disk", "disk0=iops=many"], "'many' is no number"),
            (["--limit-net", "net0=bandwidth=1M"], "no part 'bandwidth'"),
        ] {
            let error = patch(&line).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
