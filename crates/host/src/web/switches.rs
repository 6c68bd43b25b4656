//! Virtual switches.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use store::{Outcome, Transaction};
use switch::control::{DEFAULT_SWITCH, Request, StationStatus};
use switch::policy::{Bandwidth, PortPolicy};
use vmm::config::check_id;

use super::extract::{Body, Name, PageParams, Params};
use super::suggest::did_you_mean;
use super::{App, Refusal, ports};
use crate::net::{self, team};
use crate::records::{Cause, EventKind, EventRecord, NetRecord, SwitchKindRecord, SwitchRecord, UplinkRecord, VmRecord};
use crate::state::{Records, State, StateError};
use crate::vm::{Surroundings, checkpoints};

/// All switches, as they are told.
pub fn told(state: &State, surroundings: &Surroundings) -> Result<Vec<api::Switch>, StateError> {
    let vms = state.all::<VmRecord>()?;
    let status = surroundings.network.status();
    let count = |name: &str| {
        let nets = vms.iter().flat_map(|vm| &vm.record.nets);
        nets.filter(|net| net.switch().is_some_and(|(switch, _)| switch == name)).count() as u32
    };
    let tell = |switch: SwitchRecord| {
        let told = api::Switch {
            nets: count(&switch.name),
            pid: surroundings.network.pid(),
            error: surroundings.network.error(Some(&switch.name)).map(|cause| cause.message),
            name: switch.name,
            kind: api::SwitchKind::Private,
            uplink: None,
            team: None,
            capacity_bps: None,
            datapath: api::Datapath::default(),
            nics: Vec::new(),
            host_interface: None,
            host_address: None,
        };
        match switch.kind {
            SwitchKindRecord::External { uplink, capacity_bps, datapath } => {
                let port = status.iter().flat_map(|status| &status.ports).find(|port| port.name == told.name);
                let (uplink, team) = match uplink {
                    UplinkRecord::Nic { uplink } => (Some(uplink), None),
                    UplinkRecord::Team { team } => (None, Some(team::told(&team))),
                };
                let capacity_bps = Some(capacity_bps).filter(|bits| *bits > 0);
                let nics = port.and_then(|port| port.team.as_ref()).map(team::nics).unwrap_or_default();
                let datapath = team::datapath_told(datapath);
                api::Switch { kind: api::SwitchKind::External, uplink, team, capacity_bps, datapath, nics, ..told }
            }
            SwitchKindRecord::Internal { interface, address } => {
                api::Switch { kind: api::SwitchKind::Internal, host_interface: Some(interface), host_address: address, ..told }
            }
            SwitchKindRecord::Private => told,
        }
    };
    Ok(state.all::<SwitchRecord>()?.into_iter().map(|stored| tell(stored.record)).collect())
}

async fn all(app: &App) -> Result<Vec<api::Switch>, Refusal> {
    let surroundings = app.host.surroundings.clone();
    Ok(app.host.state.run(move |state| told(state, &surroundings)).await?)
}

async fn one(app: &App, name: &str) -> Result<api::Switch, Refusal> {
    let all = all(app).await?;
    let known: Vec<String> = all.iter().map(|switch| switch.name.clone()).collect();
    all.into_iter().find(|switch| switch.name == name).ok_or_else(|| missing(name, &known))
}

fn missing(name: &str, known: &[String]) -> Refusal {
    let way_out = did_you_mean(name, known.iter().map(String::as_str), "list those that there are");
    Refusal::not_found(format_args!("switch '{name}'"), &way_out)
}

fn bad(message: impl Into<String>, way_out: &str) -> Refusal {
    Refusal::senseless(Cause::new("bad-switch", message, way_out))
}

fn interface(name: String) -> Result<String, Refusal> {
    team::interface(name).map_err(Refusal::senseless)
}

fn capacity(bits: u64) -> Result<u64, Refusal> {
    let bandwidth = Bandwidth { capacity_bps: bits, ..Bandwidth::default() };
    let policy = PortPolicy { bandwidth, ..PortPolicy::default() };
    policy.check().map_err(|error| bad(error.to_string(), "tell what the wire carries in bits a second, or 0"))?;
    Ok(bits)
}

fn address(text: &str) -> Result<String, Refusal> {
    net::parse_address(text).map(|_| text.to_owned()).map_err(Refusal::senseless)
}

fn kind(wanted: &api::NewSwitch) -> Result<SwitchKindRecord, Refusal> {
    let api::NewSwitch { name: switch, kind, uplink, team, capacity_bps, datapath, host_interface, host_address } =
        wanted.clone();
    let has_way_out = uplink.is_some() || team.is_some() || capacity_bps.is_some() || datapath.is_some();
    let has_host = host_interface.is_some() || host_address.is_some();
    match kind {
        api::SwitchKind::External if has_host => Err(bad(
            "an external switch with an interface of the host",
            "make an internal one for the host; leave the interface and the address out",
        )),
        api::SwitchKind::External => {
            let uplink = match (uplink, team) {
                (Some(nic), None) => UplinkRecord::Nic { uplink: interface(nic)? },
                (None, Some(team)) => team::record(team).map_err(Refusal::senseless)?.into(),
                (None, None) => return Err(bad("an external switch without a way out", "name a NIC: uplink; or some: team")),
                (Some(_), Some(_)) => return Err(bad("a NIC and a team as the way out", "name all NICs in the team")),
            };
            let datapath = team::datapath_of(datapath.unwrap_or_default());
            Ok(SwitchKindRecord::External { uplink, capacity_bps: capacity(capacity_bps.unwrap_or(0))?, datapath })
        }
        _ if has_way_out => Err(bad(
            format!("a way out of a switch that is {kind}"),
            "make it external, or leave the NICs and what their wire carries out",
        )),
        api::SwitchKind::Internal => {
            let interface = interface(host_interface.unwrap_or(switch))?;
            let address = host_address.as_deref().map(address).transpose()?;
            Ok(SwitchKindRecord::Internal { interface, address })
        }
        api::SwitchKind::Private if has_host => Err(bad(
            "an interface of the host on a private switch",
            "make it internal, or leave the interface and the address out",
        )),
        api::SwitchKind::Private => Ok(SwitchKindRecord::Private),
    }
}

/// Refuses an interface that another switch has.
fn check_interface(state: &State, name: &str, kind: &SwitchKindRecord) -> Result<(), Refusal> {
    let wanted = kind.interfaces();
    for other in state.all::<SwitchRecord>()?.into_iter().map(|stored| stored.record).filter(|other| other.name != name) {
        if let Some(interface) = other.kind.interfaces().into_iter().find(|interface| wanted.contains(interface)) {
            let message = format!("the switch '{}' has the interface {interface}", other.name);
            return Err(Refusal::conflict("interface-in-use", message, "name another one, or delete that switch first"));
        }
    }
    Ok(())
}

/// List virtual switches
#[utoipa::path(get, path = "/switches", tag = "switches", operation_id = "list_switches", params(PageParams), responses(
    (status = 200, description = "All switches", body = api::Page<api::Switch>),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn list(Shared(app): Shared<App>, Params(params): Params<PageParams>) -> Result<Json<api::Page<api::Switch>>, Refusal> {
    Ok(Json(params.part(all(&app).await?, |switch| switch.name.clone())?))
}

/// Show a virtual switch
#[utoipa::path(get, path = "/switches/{switch}", tag = "switches", operation_id = "show_switch",
    params(("switch" = String, Path, description = "Its name")), responses(
    (status = 200, description = "The switch", body = api::Switch),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn show(Shared(app): Shared<App>, Name(name): Name) -> Result<Json<api::Switch>, Refusal> {
    Ok(Json(one(&app, &name).await?))
}

/// Make a virtual switch
///
/// For administrators: it may open a network of the host to VMs. The switch is there at once; `error` says what it does not get, like a NIC
/// that there is not.
#[utoipa::path(post, path = "/switches", tag = "switches", operation_id = "create_switch", request_body = api::NewSwitch, responses(
    (status = 201, description = "The switch", body = api::Switch),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn create(Shared(app): Shared<App>, body: Body) -> Result<(StatusCode, Json<api::Switch>), Refusal> {
    let wanted: api::NewSwitch = body.parse()?;
    let name = wanted.name.clone();
    if name.contains('.') || check_id(&name).is_err() || name == DEFAULT_SWITCH {
        let message = format!("'{name}' cannot be a switch's name");
        let way_out = format!("use 1 to 64 letters, digits, '-' and '_', and not '{DEFAULT_SWITCH}'");
        return Err(Refusal::senseless(Cause::new("bad-name", message, way_out)));
    }
    let record = SwitchRecord { name: name.clone(), kind: kind(&wanted)? };
    let surroundings = app.host.surroundings.clone();
    app.host.state.run(move |state| Ok(insert(state, &surroundings, &record))).await??;
    Ok((StatusCode::CREATED, Json(one(&app, &name).await?)))
}

fn insert(state: &State, surroundings: &Surroundings, record: &SwitchRecord) -> Result<(), Refusal> {
    let name = &record.name;
    check_interface(state, name, &record.kind)?;
    let event = EventRecord::now(EventKind::SwitchCreated, format!("the switch '{name}' was made"));
    let transaction = Transaction::new().if_none::<SwitchRecord>(name).write(name, record).tell(&event);
    match state.commit(&transaction)? {
        Outcome::Committed(_) => wait_for(surroundings),
        Outcome::Conflict { .. } => {
            let message = format!("there is a switch called '{name}' already");
            Err(Refusal::conflict("name-taken", message, "choose another name"))
        }
    }
}

/// What is stored is done when it is answered, or `error` says why not.
fn wait_for(surroundings: &Surroundings) -> Result<(), Refusal> {
    surroundings.network.look().map_err(|cause| Refusal { status: StatusCode::SERVICE_UNAVAILABLE, cause })
}

/// Change a virtual switch
///
/// Its way out, or the host's address there. VMs stay attached, and so do the ports of those that run; NICs that stay go on meanwhile.
#[utoipa::path(patch, path = "/switches/{switch}", tag = "switches", operation_id = "change_switch", request_body = api::SwitchChange,
    params(("switch" = String, Path, description = "Its name")), responses(
    (status = 200, description = "The switch", body = api::Switch),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn change(Shared(app): Shared<App>, Name(name): Name, body: Body) -> Result<Json<api::Switch>, Refusal> {
    let wanted: api::SwitchChange = body.parse()?;
    let switch = one(&app, &name).await?.name;
    let surroundings = app.host.surroundings.clone();
    app.host.state.run(move |state| Ok(edit(state, &surroundings, &switch, &wanted))).await??;
    Ok(Json(one(&app, &name).await?))
}

fn edit(state: &State, surroundings: &Surroundings, name: &str, wanted: &api::SwitchChange) -> Result<(), Refusal> {
    loop {
        let stored = state.read::<SwitchRecord>(name)?.ok_or_else(|| missing(name, &[]))?;
        let mut record = stored.record.clone();
        if *wanted == api::SwitchChange::default() {
            return Ok(());
        }
        change_kind(name, &mut record.kind, wanted.clone())?;
        check_interface(state, name, &record.kind)?;
        let event = EventRecord::now(EventKind::SwitchChanged, format!("the switch '{name}' was changed"));
        let transaction = Transaction::new().if_still(name, &stored).write(name, &record).tell(&event);
        if let Outcome::Committed(_) = state.commit(&transaction)? {
            return wait_for(surroundings);
        }
    }
}

fn change_kind(name: &str, kind: &mut SwitchKindRecord, wanted: api::SwitchChange) -> Result<(), Refusal> {
    let api::SwitchChange { uplink, team, capacity_bps, datapath, host_address } = wanted;
    let has_way_out = uplink.is_some() || team.is_some() || capacity_bps.is_some() || datapath.is_some();
    match kind {
        SwitchKindRecord::External { uplink: own, capacity_bps: capacity, datapath: path } if host_address.is_none() => {
            match (uplink, team) {
                (Some(_), Some(_)) => {
                    return Err(bad("another NIC, and another team", "change one of them; a team has all NICs"));
                }
                (Some(nic), None) => *own = UplinkRecord::Nic { uplink: interface(nic)? },
                (None, Some(change)) => *own = team::changed(own, change).map_err(Refusal::senseless)?.into(),
                (None, None) => {}
            }
            *capacity = capacity_bps.map_or(Ok(*capacity), self::capacity)?;
            *path = datapath.map_or(*path, team::datapath_of);
            Ok(())
        }
        SwitchKindRecord::Internal { address, .. } if !has_way_out => {
            *address = host_address.as_deref().map(self::address).transpose()?.or(address.take());
            Ok(())
        }
        _ => {
            let way_out = "an external switch has NICs, an internal one an address of the host; a private one has neither";
            Err(bad(format!("the switch '{name}' has nothing of this kind"), way_out))
        }
    }
}

/// Delete a virtual switch
///
/// One that no VM uses, running or not.
#[utoipa::path(delete, path = "/switches/{switch}", tag = "switches", operation_id = "delete_switch",
    params(("switch" = String, Path, description = "Its name")), responses(
    (status = 204, description = "It is gone"),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn delete(Shared(app): Shared<App>, Name(name): Name) -> Result<StatusCode, Refusal> {
    let name = one(&app, &name).await?.name;
    let surroundings = app.host.surroundings.clone();
    app.host.state.run(move |state| Ok(forget(state, &surroundings, &name))).await??;
    Ok(StatusCode::NO_CONTENT)
}

fn forget(state: &State, surroundings: &Surroundings, name: &str) -> Result<(), Refusal> {
    loop {
        let stored = state.read::<SwitchRecord>(name)?.ok_or_else(|| missing(name, &[]))?;
        let uses = |vm: &VmRecord| vm.nets.iter().filter_map(NetRecord::switch).any(|(switch, _)| switch == name);
        for vm in state.all::<VmRecord>()?.into_iter().map(|stored| stored.record) {
            let checkpoints = checkpoints::tree(state, vm.id)?.checkpoints;
            if uses(&vm) || checkpoints.iter().any(|checkpoint| uses(&checkpoint.vm)) {
                let message = format!("the VM '{}', or a checkpoint of it, is attached to the switch '{name}'", vm.name);
                return Err(Refusal::conflict("switch-in-use", message, "attach it to another switch first, or delete it"));
            }
        }
        // A VM that is created meanwhile finds out when it is started, at the latest.
        let event = EventRecord::now(EventKind::SwitchDeleted, format!("the switch '{name}' was deleted"));
        let transaction = Transaction::new().if_still(name, &stored).forget::<SwitchRecord>(name).tell(&event);
        if let Outcome::Committed(_) = state.commit(&transaction)? {
            return wait_for(surroundings);
        }
    }
}

/// Show which station is behind which port of a virtual switch
#[utoipa::path(get, path = "/switches/{switch}/stations", tag = "switches", operation_id = "list_stations",
    params(("switch" = String, Path, description = "Its name")), responses(
    (status = 200, description = "All stations that it knows, up to 65536", body = api::Page<api::Station>),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn stations(Shared(app): Shared<App>, Name(name): Name) -> Result<Json<api::Page<api::Station>>, Refusal> {
    let name = one(&app, &name).await?.name;
    let surroundings = app.host.surroundings.clone();
    let asked = app.host.state.run(move |state| {
        let names = ports::names(&state.all::<VmRecord>()?);
        Ok(surroundings.network.ask::<Vec<StationStatus>>(&Request::Stations).map(|stations| (stations, names)))
    });
    let (stations, names) = match asked.await? {
        Ok(told) => told,
        Err(cause) => {
            // The process ends with the last switch: whoever deleted that meanwhile is why.
            one(&app, &name).await?;
            return Err(Refusal { status: StatusCode::SERVICE_UNAVAILABLE, cause });
        }
    };
    let tell = |station: StationStatus| api::Station {
        mac: station.mac.to_string(),
        vlan: station.vlan,
        port: names.get(&station.port).cloned().unwrap_or(station.port),
    };
    let items = stations.into_iter().filter(|station| station.switch == name).map(tell).collect();
    Ok(Json(api::Page { items, next: None }))
}
