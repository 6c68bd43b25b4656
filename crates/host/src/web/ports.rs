//! Ports of virtual switches, and what network cards may do there.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State as Shared};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use store::record::Stored;
use switch::acl::Direction;
use switch::control::{PortRules, PortStatus, Request, Status};
use switch::policy::PortPolicy;
use switch::vlan::VlanMode;
use utoipa::IntoParams;

use super::extract::{Body, Params, limit, page};
use super::tasks::{Conditions, TaskAnswer, WaitParams};
use super::vms::{Asked, etag, find};
use super::{App, Refusal};
use crate::net::{Network, policy as policies, port_name, port_of_switch};
use crate::records::{Cause, NetRecord, OperationRecord, SwitchKindRecord, SwitchRecord, VmRecord};
use crate::state::{State, StateError};
use crate::vm::policy;

/// Which ports.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// Only those of this switch.
    switch: Option<String>,
    /// Only those of the VM with this name.
    vm: Option<String>,
    /// How many at once: 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Only those behind: `next` of the part before.
    after: Option<String>,
}

fn shown_name(vm: &VmRecord, net: &NetRecord) -> String {
    format!("{}/{}", vm.name, net.id)
}

/// What ports of VMs are called for people, by their names in the switch.
pub fn names(vms: &[Stored<VmRecord>]) -> BTreeMap<String, String> {
    let nets = vms.iter().flat_map(|vm| vm.record.nets.iter().map(move |net| (&vm.record, net)));
    nets.map(|(vm, net)| (port_name(vm.id, &net.id), shown_name(vm, net))).collect()
}

/// All ports that there are, or will be when their VMs run.
pub fn told(state: &State, network: &Network) -> Result<Vec<api::Port>, StateError> {
    let status = network.status();
    let mut ports = Vec::new();
    for switch in state.all::<SwitchRecord>()?.into_iter().map(|stored| stored.record) {
        let Some(name) = port_of_switch(&switch) else { continue };
        let mut policy = PortPolicy::default();
        let kind = match switch.kind {
            SwitchKindRecord::External { capacity_bps, .. } => {
                policy.vlan = VlanMode::all();
                policy.bandwidth.capacity_bps = capacity_bps;
                api::PortKind::Uplink
            }
            _ => api::PortKind::Host,
        };
        let policy = policies::told(&policy);
        let port = api::Port { kind, ..port(name.clone(), switch.name, policy) };
        ports.push(observed(port, &name, network, status.as_deref()));
    }
    for vm in state.all::<VmRecord>()?.into_iter().map(|stored| stored.record) {
        ports.extend(vm.nets.iter().filter_map(|net| of_net(&vm, net, network, status.as_deref())));
    }
    ports.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(ports)
}

fn of_net(vm: &VmRecord, net: &NetRecord, network: &Network, status: Option<&Status>) -> Option<api::Port> {
    let (switch, policy) = net.switch()?;
    let port = port(shown_name(vm, net), switch.into(), policies::told(policy));
    let port = api::Port { vm: Some(vm.id), mac: Some(net.mac.clone()), ..port };
    Some(observed(port, &port_name(vm.id, &net.id), network, status))
}

fn port(name: String, switch: String, policy: api::PortPolicy) -> api::Port {
    api::Port {
        name,
        switch,
        kind: api::PortKind::Vm,
        vm: None,
        mac: None,
        connected: false,
        policy,
        counters: None,
        meters: BTreeMap::new(),
        rules: Vec::new(),
        error: None,
    }
}

/// A port with what the switch tells of it.
fn observed(port: api::Port, name: &str, network: &Network, status: Option<&Status>) -> api::Port {
    let error = network.error(Some(name)).map(|cause| cause.message);
    match status.and_then(|status| status.ports.iter().find(|port| port.name == name)) {
        Some(status) => api::Port {
            connected: status.connected,
            counters: Some(counters(status)),
            meters: status.meters.iter().map(|(rule, bytes)| (rule.to_string(), *bytes)).collect(),
            error,
            ..port
        },
        None => api::Port { error, ..port },
    }
}

/// What passed a port, seen from behind it.
fn counters(port: &PortStatus) -> api::PortCounters {
    let counters = &port.counters;
    api::PortCounters {
        received_packets: counters.tx_packets,
        received_bytes: counters.tx_bytes,
        sent_packets: counters.rx_packets,
        sent_bytes: counters.rx_bytes,
        drops: counters.drops.clone(),
        moves: counters.moves,
        not_learned: counters.not_learned,
    }
}

/// What the rules of a port have decided; nothing if the switch does not say so now.
fn rules(network: &Network, port: &str) -> Vec<api::RuleCounters> {
    let Ok(told) = network.ask::<PortRules>(&Request::Rules { name: port.into() }) else { return Vec::new() };
    let by_weight = told.extended_acl.iter().map(|told| {
        let direction = if told.rule.direction == Direction::Inbound { "in" } else { "out" };
        api::RuleCounters { rule: format!("{direction}:{}", told.rule.weight), packets: told.packets, bytes: told.bytes }
    });
    let by_prefix = told.acl.iter().enumerate();
    let by_prefix =
        by_prefix.map(|(number, told)| api::RuleCounters { rule: number.to_string(), packets: told.packets, bytes: told.bytes });
    by_weight.chain(by_prefix).collect()
}

/// List ports of virtual switches
///
/// In the order of their names: those of network cards, also of VMs that do not run, and those of the switches themselves.
#[utoipa::path(get, path = "/ports", tag = "switches", operation_id = "list_ports", params(ListParams), responses(
    (status = 200, description = "Ports", body = api::Page<api::Port>),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn list(Shared(app): Shared<App>, Params(params): Params<ListParams>) -> Result<Json<api::Page<api::Port>>, Refusal> {
    let limit = limit(params.limit)?;
    let network = app.host.surroundings.network.clone();
    let mut ports = app.host.state.run(move |state| told(state, &network)).await?;
    ports.retain(|port| params.switch.as_ref().is_none_or(|switch| *switch == port.switch));
    let of_vm = |vm: &str, port: &api::Port| port.name.split_once('/').is_some_and(|(name, _)| name == vm);
    ports.retain(|port| params.vm.as_ref().is_none_or(|vm| of_vm(vm, port)));
    Ok(Json(page(ports, params.after.as_deref(), limit, |port| port.name.clone())))
}

/// The network card of this name, if it is on a switch.
pub fn on_switch<'a>(vm: &'a VmRecord, net: &str) -> Result<&'a NetRecord, Refusal> {
    let found = vm.nets.iter().find(|card| card.id == net && card.switch().is_some());
    found.ok_or_else(|| {
        let what = format!("network card '{net}' on a switch in the VM '{}'", vm.name);
        Refusal::not_found(what, "look at the VM's network cards")
    })
}

/// Show the port of a network card
///
/// The `ETag` is the VM's.
#[utoipa::path(get, path = "/vms/{vm}/nets/{net}/port", tag = "switches", operation_id = "show_port", params(
    ("vm" = String, Path, description = "Its name or id"),
    ("net" = String, Path, description = "The id of its network card"),
), responses(
    (status = 200, description = "The port", body = api::Port, headers(("ETag" = String))),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn show(Shared(app): Shared<App>, Path((vm, net)): Path<(String, String)>) -> Result<Response, Refusal> {
    let network = app.host.surroundings.network.clone();
    let found = app.host.state.run(move |state| {
        Ok(find(state, &vm).and_then(|stored| {
            let card = on_switch(&stored.record, &net)?;
            let port = of_net(&stored.record, card, &network, network.status().as_deref());
            // A card on a switch has a port.
            let port = port.ok_or_else(|| Refusal::not_found("port", "look at the VM's network cards"))?;
            let rules = port.counters.as_ref().map(|_| rules(&network, &port_name(stored.record.id, &card.id)));
            Ok((api::Port { rules: rules.unwrap_or_default(), ..port }, etag(&stored)))
        }))
    });
    let (port, tag) = found.await??;
    let mut response = Json(port).into_response();
    if let Ok(value) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    Ok(response)
}

/// Set what a network card may do
///
/// What is left out is as usual. It holds from the next frame on if the VM runs.
#[utoipa::path(put, path = "/vms/{vm}/nets/{net}/policy", tag = "switches", operation_id = "set_policy", request_body = api::PortPolicy,
    params(
    ("vm" = String, Path, description = "Its name or id"),
    ("net" = String, Path, description = "The id of its network card"),
    Conditions,
    WaitParams,
), responses(TaskAnswer))]
pub async fn replace(
    Params(params): Params<WaitParams>,
    Path((_, net)): Path<(String, String)>,
    asked: Asked,
    body: Body,
) -> Result<Response, Refusal> {
    let wanted: api::PortPolicy = body.parse()?;
    let change = serde_json::to_value(&wanted).unwrap_or_default();
    asked.submit_body(&body.0, params.wait, |vm| operation(vm, net, change, true)).await
}

/// Change what a network card may do
///
/// A JSON merge patch (RFC 7396) of its policy: what is left out stays. It holds from the next frame on if the VM runs.
#[utoipa::path(patch, path = "/vms/{vm}/nets/{net}/policy", tag = "switches", operation_id = "change_policy",
    request_body = api::PortPolicy, params(
    ("vm" = String, Path, description = "Its name or id"),
    ("net" = String, Path, description = "The id of its network card"),
    Conditions,
    WaitParams,
), responses(TaskAnswer))]
pub async fn change(
    Params(params): Params<WaitParams>,
    Path((_, net)): Path<(String, String)>,
    asked: Asked,
    body: Body,
) -> Result<Response, Refusal> {
    let change: Value = body.parse()?;
    asked.submit_body(&body.0, params.wait, |vm| operation(vm, net, change, false)).await
}

/// What makes no sense for the card as it is need not become a task.
fn operation(vm: &VmRecord, net: String, change: Value, replace: bool) -> Result<OperationRecord, Refusal> {
    on_switch(vm, &net)?;
    if !change.is_object() {
        let way_out = "send the fields that are to change";
        return Err(Refusal::senseless(Cause::new("bad-policy", "the change is no JSON object", way_out)));
    }
    policy::changed(vm, &net, &change, replace).map_err(Refusal::senseless)?;
    Ok(OperationRecord::SetPolicy { net, change, replace })
}
