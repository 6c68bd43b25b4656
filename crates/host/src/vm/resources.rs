//! What a VM may have of the host: from what the API is told to what is stored, and to what a monitor is told.

use std::num::{NonZeroU32, NonZeroU64};

use serde_json::{Map, Value};
use vmm::config::{BurstConfig, DiskLimits, NetLimits, RateConfig};

use crate::records::{Cause, CpuRecord, DiskLimitsRecord, NetLimitsRecord, RateRecord, ResourcesRecord, VmRecord};

/// The weights that control groups know.
const WEIGHTS: std::ops::RangeInclusive<u32> = 1..=10_000;
/// More processors than Linux knows, in per cent.
const MAX_PERCENT: u32 = 409_600;

fn bad(message: impl Into<String>, way_out: &str) -> Cause {
    Cause::new("bad-resources", message, way_out)
}

/// Checks what a VM with these devices is to have.
pub fn record(wanted: &api::Resources, vm: &VmRecord) -> Result<ResourcesRecord, Cause> {
    let cpu =
        CpuRecord { weight: wanted.cpu_weight, cap_percent: wanted.cpu_cap_percent, reserve_percent: wanted.cpu_reserve_percent };
    check_cpu(&cpu, vm)?;
    let mut resources = ResourcesRecord { cpu, ..ResourcesRecord::default() };
    for (id, limits) in &wanted.disks {
        if !vm.disks.iter().any(|disk| disk.id == *id) {
            let message = format!("the VM '{}' has no disk '{id}'", vm.name);
            return Err(bad(message, "name one of its disks by its id; `maru vm show` has them"));
        }
        let record = DiskLimitsRecord { iops: rate(limits.iops)?, bandwidth: rate(limits.bandwidth)? };
        if record != DiskLimitsRecord::default() {
            resources.disks.insert(id.clone(), record);
        }
    }
    for (id, limits) in &wanted.nets {
        if !vm.nets.iter().any(|net| net.id == *id) {
            let message = format!("the VM '{}' has no network card '{id}'", vm.name);
            return Err(bad(message, "name one of its cards by its id; `maru vm show` has them"));
        }
        if vm.nets.iter().any(|net| net.id == *id && net.switch().is_some()) && *limits != api::NetLimits::default() {
            let message = format!("the network card '{id}' is on a switch, whose policy limits it");
            return Err(bad(message, "leave the limit out, and give its port one (maru port set --max-out, --max-in)"));
        }
        let record = NetLimitsRecord { receive: rate(limits.receive)?, transmit: rate(limits.transmit)? };
        if record != NetLimitsRecord::default() {
            resources.nets.insert(id.clone(), record);
        }
    }
    Ok(resources)
}

/// What a VM has after a change: `change` takes the place of what it has, or is merged into it (RFC 7396).
pub fn changed(vm: &VmRecord, change: &Value, replace: bool) -> Result<ResourcesRecord, Cause> {
    let way_out = "see /api/v1/openapi.json for its form";
    let mut wanted = if replace {
        change.clone()
    } else {
        serde_json::to_value(vm.told_resources()).map_err(|error| bad(error.to_string(), way_out))?
    };
    if !replace {
        merge(&mut wanted, change);
    }
    let wanted = serde_json::from_value(wanted).map_err(|error| bad(format!("that cannot be understood: {error}"), way_out))?;
    record(&wanted, vm)
}

/// Merges a patch into a document (RFC 7396): an object's members one by one, of which `null` takes the member away. No deeper than JSON is
/// read.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else { return };
    for (name, change) in changes {
        if change.is_null() {
            members.remove(name);
        } else {
            merge(members.entry(name.clone()).or_insert(Value::Null), change);
        }
    }
}

fn check_cpu(cpu: &CpuRecord, vm: &VmRecord) -> Result<(), Cause> {
    if !WEIGHTS.contains(&cpu.weight) {
        return Err(bad(format!("a CPU weight of {}", cpu.weight), "give it 1 to 10000; 100 is usual"));
    }
    if let Some(cap) = cpu.cap_percent.filter(|cap| !(1..=MAX_PERCENT).contains(cap)) {
        return Err(bad(format!("a CPU cap of {cap} %"), "give it 1 to 409600 % of one processor, or no cap"));
    }
    let most = vm.max_cpus.saturating_mul(100).min(cpu.cap_percent.unwrap_or(u32::MAX));
    if cpu.reserve_percent > most {
        let message = format!("a CPU reserve of {} %, and the VM never gets more than {most} %", cpu.reserve_percent);
        return Err(bad(message, "reserve no more than its cap, and 100 % for each of its vCPUs"));
    }
    Ok(())
}

fn rate(rate: Option<api::Rate>) -> Result<Option<RateRecord>, Cause> {
    let Some(rate) = rate else { return Ok(None) };
    if rate.per_second == 0 {
        return Err(bad("a limit of 0 in each second", "give it 1 at least; leave it out for no limit"));
    }
    if let Some(burst) = rate.burst.filter(|burst| burst.per_second <= rate.per_second || burst.seconds == 0) {
        let message = format!("a burst of {} for {} s above {}", burst.per_second, burst.seconds, rate.per_second);
        return Err(bad(message, "let a burst be more than the rate, and last a second at least"));
    }
    Ok(Some(RateRecord { per_second: rate.per_second, burst: rate.burst.map(|burst| (burst.per_second, burst.seconds)) }))
}

/// The limits of a disk, for its monitor.
pub fn disk(resources: &ResourcesRecord, id: &str) -> DiskLimits {
    let limits = resources.disks.get(id).copied().unwrap_or_default();
    DiskLimits { iops: config(limits.iops), bandwidth: config(limits.bandwidth) }
}

/// The limits of a network card, for its monitor.
pub fn net(resources: &ResourcesRecord, id: &str) -> NetLimits {
    let limits = resources.nets.get(id).copied().unwrap_or_default();
    NetLimits { receive: config(limits.receive), transmit: config(limits.transmit) }
}

/// What is stored was checked: a rate of nothing cannot be there, and would be none.
fn config(rate: Option<RateRecord>) -> Option<RateConfig> {
    let rate = rate?;
    let burst = rate.burst.and_then(|(per_second, seconds)| {
        Some(BurstConfig { per_second: NonZeroU64::new(per_second)?, seconds: NonZeroU32::new(seconds)? })
    });
    Some(RateConfig { per_second: NonZeroU64::new(rate.per_second)?, burst })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_is_merged_as_rfc_7396_says() {
        // The examples of its appendix A.
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, &patch);
            assert_eq!(merged, result, "{target} {patch}");
        }
    }
}
