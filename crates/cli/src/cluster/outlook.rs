//! What would become of VMs, and what must not.

use api::client::Method;

use crate::output::Output;
use crate::remote::{Connect, RemoteError, fields, show_one, table};
use crate::vm::manage::segment;

/// `maru cluster what-if`.
pub fn what_if(down: &[String], connect: &Connect, output: Output) -> Result<(), RemoteError> {
    let hosts: Vec<String> = down.iter().map(|host| segment(host)).collect();
    let told: api::WhatIf = connect.client()?.get(&format!("/cluster/what-if?host_down={}", hosts.join(",")))?;
    show_one(output, &told, || {
        if told.vms.is_empty() {
            return format!("{} would fail: no VM runs there\n", told.down.join(", "));
        }
        let row = |vm: &api::VmFate| {
            let host = vm.goes_to.clone().unwrap_or_else(|| "-".into());
            [vm.vm.clone(), host, vm.waits.clone().unwrap_or_default()]
        };
        table(["VM", "GOES TO", "WAITS FOR"], told.vms.iter().map(row))
    })
}

/// `maru cluster policy`.
pub fn policy(survive_failures: Option<u32>, connect: &Connect, output: Output) -> Result<(), RemoteError> {
    let client = connect.client()?;
    let told: api::ClusterPolicy = match survive_failures {
        None => client.get("/cluster/policy")?,
        Some(survive_failures) => client.call(Method::PUT, "/cluster/policy", Some(&api::ClusterPolicy { survive_failures }))?,
    };
    show_one(output, &told, || fields(&[("survives failures of hosts", told.survive_failures.to_string())]))
}
