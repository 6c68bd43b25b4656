//! Changing what a VM is to be.
//!
//! ```text
//!   patch ──▶ wanted ──▶ plan ──▶ disks are made ──▶ the monitor does it (live) ──▶ stored: the VM and its name
//!                          │            └──────────────── undone if it fails ──────────────┘
//!                          └──▶ refused as a whole, if a part of it cannot be done to a VM that runs
//! ```
//!
//! A VM that is off is merely stored anew. Everything before that can be done again: what the monitor has done already is passed over.

use std::path::Path;

use disk::tool::{self, Smaller};
use serde_json::Value;
use store::{Outcome, Transaction};
use uuid::Uuid;

use super::config::{self, Wanted};
use super::staging::Staging;
use super::work::{Progress, WorkError};
use super::{Surroundings, clone, disks, live, resources};
use crate::images;
use crate::net::{self, Held};
use crate::records::{Cause, DiskRecord, EventKind, EventRecord, ImageRecord, NameRecord, NetRecord, VmRecord};
use crate::state::{Records, State, StateError};
use crate::volumes::Volumes;

/// A VM's specification with a merge patch (RFC 7396).
pub fn patched(vm: &VmRecord, patch: &Value) -> Result<api::VmSpec, Cause> {
    let way_out = "send the fields that are to change, as in the VM's spec";
    let refuse = |message: String| Cause::new("bad-body", message, way_out);
    if !patch.is_object() {
        return Err(refuse("the patch is no JSON object".into()));
    }
    let mut spec = serde_json::to_value(vm.spec()).map_err(|error| refuse(error.to_string()))?;
    resources::merge(&mut spec, patch);
    let spec: Result<api::VmSpec, _> = serde_json::from_value(spec);
    let mut spec = spec.map_err(|error| refuse(format!("the patch makes no VM: {error}")))?;
    if patch.get("max_cpus").is_none() && spec.cpus < vm.max_cpus {
        // What is not named stays, though it goes without saying while it is the number of vCPUs.
        spec.max_cpus = Some(vm.max_cpus);
    }
    if patch.get("resources").is_none() {
        // The limits of devices go with them.
        let api::VmSpec { disks, nets, resources, .. } = &mut spec;
        resources.disks.retain(|id, _| disks.iter().any(|disk| disk.id.as_ref() == Some(id)));
        resources.nets.retain(|id, _| nets.iter().any(|net| net.id.as_ref() == Some(id)));
    }
    Ok(spec)
}

/// The patch with all names written out: who does it again finds the same.
pub fn resolved(vm: &VmRecord, patch: &Value, volumes: &Volumes, images: &[ImageRecord]) -> Result<(Value, Wanted), Cause> {
    let spec = patched(vm, patch)?;
    let is_own = |disk: &&api::Disk| disk.image.is_some() && vm.disks.iter().any(|own| Some(&own.id) == disk.id.as_ref());
    if let Some(disk) = spec.disks.iter().find(is_own) {
        let message = format!("the disk {} is there already, and is not made from an image", disk.id.as_deref().unwrap_or("?"));
        return Err(Cause::new("bad-vm", message, "leave out its image, or give the new disk another id"));
    }
    let wanted = config::edited(vm, &spec, volumes, images)?;
    let size = |disk: &DiskRecord| {
        let grown = wanted.grow.iter().find(|(id, _)| *id == disk.id).map(|(_, bytes)| *bytes);
        grown.or(wanted.make.iter().find(|new| new.file == disk.file).map(|new| new.size))
    };
    let mut patch = patch.clone();
    let refuse = |error: serde_json::Error| Cause::new("bad-body", error.to_string(), "see the API's document for its form");
    if patch.get("disks").is_some() {
        // By its id: it may get another name before this is done.
        let image = |disk: &DiskRecord| {
            let parent = wanted.make.iter().find(|new| new.file == disk.file)?.parent.as_ref()?;
            images.iter().find(|image| image.file == *parent).map(|image| image.id.to_string())
        };
        let told = |disk: &DiskRecord| api::Disk { size_bytes: size(disk), image: image(disk), ..disk.into() };
        patch["disks"] = serde_json::to_value(wanted.vm.disks.iter().map(told).collect::<Vec<_>>()).map_err(refuse)?;
    }
    if patch.get("nets").is_some() {
        patch["nets"] = serde_json::to_value(wanted.vm.nets.iter().map(api::Net::from).collect::<Vec<_>>()).map_err(refuse)?;
    }
    Ok((patch, wanted))
}

/// What is done to a VM that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Devices that go.
    pub removed: Vec<String>,
    /// Disks that come.
    pub disks: Vec<DiskRecord>,
    /// Network cards that come.
    pub nets: Vec<NetRecord>,
    /// Another number of vCPUs.
    pub cpus: Option<u32>,
    /// Other bytes of memory, altogether.
    pub memory: Option<u64>,
    /// Other bytes for the balloon.
    pub balloon: Option<u64>,
    /// Cables that go out (`true`) or in.
    pub links: Vec<(String, bool)>,
    /// Disks that grow.
    pub grow: Vec<(String, u64)>,
}

/// What must be done to a VM that runs so that it becomes what is wanted; refuses what cannot be done.
pub fn plan(old: &VmRecord, wanted: &Wanted) -> Result<Plan, Cause> {
    let new = &wanted.vm;
    let refuse = |what: String| {
        let message = format!("{what} cannot be changed while the VM runs; nothing was changed");
        Err(Cause::new("vm-running", message, "stop it first, or leave this out"))
    };
    if (&new.boot, new.console, new.balloon, new.guest_agent) != (&old.boot, old.console, old.balloon, old.guest_agent) {
        return refuse("what it boots, its console, and whether it has a balloon and a port for a guest agent".into());
    }
    if new.max_cpus != old.max_cpus {
        return refuse("the maximum of vCPUs".into());
    }
    if new.cpu_features != old.cpu_features {
        return refuse("what it sees of the processors".into());
    }
    let max = |vm: &VmRecord| vm.max_memory_bytes.unwrap_or(vm.memory_bytes);
    if max(new) != max(old) {
        return refuse("the maximum of the memory".into());
    }
    let mut limits = new.told_resources();
    let before = old.told_resources();
    limits.disks.extend(
        before.disks.iter().filter(|(id, _)| !new.disks.iter().any(|disk| disk.id == **id)).map(|(id, it)| (id.clone(), *it)),
    );
    limits.nets.extend(
        before.nets.iter().filter(|(id, _)| !new.nets.iter().any(|net| net.id == **id)).map(|(id, it)| (id.clone(), *it)),
    );
    if limits != before {
        let message = "how much of the host the VM may have is not changed with all else while it runs; nothing was changed";
        return Err(Cause::new("vm-running", message, "change that by itself (maru vm limit)"));
    }
    let mut plan = Plan {
        cpus: (new.cpus != old.cpus).then_some(new.cpus),
        memory: (new.memory_bytes != old.memory_bytes).then_some(new.memory_bytes),
        balloon: (new.balloon_bytes != old.balloon_bytes).then_some(new.balloon_bytes),
        grow: wanted.grow.clone(),
        ..Plan::default()
    };
    for disk in &new.disks {
        match old.disks.iter().find(|own| own.id == disk.id) {
            None => plan.disks.push(disk.clone()),
            Some(own) if own == disk => {}
            Some(_) => return refuse(format!("the disk {}", disk.id)),
        }
    }
    for net in &new.nets {
        match old.nets.iter().find(|own| own.id == net.id) {
            None => plan.nets.push(net.clone()),
            Some(own) => {
                // Another switch, or another policy, is none of the monitor's business: its port's other end changes.
                let stays_on_switch = own.switch().is_some() && net.switch().is_some();
                let attachment = if stays_on_switch { net.attachment.clone() } else { own.attachment.clone() };
                let same = NetRecord { disconnected: net.disconnected, attachment, ..own.clone() };
                if same != *net {
                    return refuse(format!("the network card {}, but for its cable, its switch and its policy there,", net.id));
                }
                if own.disconnected != net.disconnected {
                    plan.links.push((net.id.clone(), net.disconnected));
                }
            }
        }
    }
    let disks = old.disks.iter().map(|disk| &disk.id).filter(|id| !new.disks.iter().any(|disk| disk.id == **id));
    let nets = old.nets.iter().map(|net| &net.id).filter(|id| !new.nets.iter().any(|net| net.id == **id));
    plan.removed = disks.chain(nets).cloned().collect();
    Ok(plan)
}

/// What is changed, for people.
fn described(old: &VmRecord, wanted: &Wanted) -> String {
    let new = &wanted.vm;
    let mut changes = Vec::new();
    if new.name != old.name {
        changes.push(format!("called '{}' from now on, '{}' before", new.name, old.name));
    }
    for (name, before, after) in [
        ("vCPUs", old.cpus.to_string(), new.cpus.to_string()),
        ("memory", old.memory_bytes.to_string(), new.memory_bytes.to_string()),
        ("balloon", old.balloon_bytes.to_string(), new.balloon_bytes.to_string()),
    ] {
        if before != after {
            changes.push(format!("{name} {after}, {before} before"));
        }
    }
    let devices = |vm: &VmRecord| -> Vec<String> {
        vm.disks.iter().map(|disk| disk.id.clone()).chain(vm.nets.iter().map(|net| net.id.clone())).collect()
    };
    let (before, after) = (devices(old), devices(new));
    changes.extend(after.iter().filter(|id| !before.contains(id)).map(|id| format!("{id} added")));
    changes.extend(before.iter().filter(|id| !after.contains(id)).map(|id| format!("{id} removed")));
    for net in &new.nets {
        let before = old.nets.iter().find(|own| own.id == net.id).and_then(NetRecord::switch);
        match (before, net.switch()) {
            (Some((before, _)), Some((now, _))) if before != now => changes.push(format!("{} is on the switch {now}", net.id)),
            (Some((_, before)), Some((_, now))) if before != now => changes.push(format!("{} has another policy", net.id)),
            _ => {}
        }
    }
    changes.extend(wanted.grow.iter().map(|(id, bytes)| format!("{id} has {bytes} bytes")));
    if changes.is_empty() { "it was changed".into() } else { changes.join("; ") }
}

/// Changes a VM. `control` is its monitor's socket, if it runs.
pub fn edit(
    state: &State,
    surroundings: &Surroundings,
    task: Uuid,
    patch: &Value,
    control: Option<&Path>,
    (vm, progress): (&VmRecord, &Progress),
) -> Result<Option<EventRecord>, WorkError> {
    let volumes = &surroundings.volumes;
    let made = Staging::resume(volumes, task)?;
    let wanted = config::edited(vm, &patched(vm, patch)?, volumes, &images::all(state)?)?;
    let plan = control.map(|_| plan(vm, &wanted)).transpose()?;
    if progress.is_cancelled() {
        // An earlier marud may have got far.
        return control.zip(plan).map_or(Err(WorkError::Cancelled), |(control, plan)| {
            live::take_back(control, surroundings, vm, &plan).map(|()| None)
        });
    }
    let staging = match made {
        Some(staging) => staging,
        None => {
            let _held = surroundings.hold_files();
            disks::check(state, &wanted.vm)??;
            net::check(state, &wanted.vm)??;
            let mut staging = Staging::begin(volumes, task)?;
            disks::make(&mut staging, &wanted.make, volumes)?;
            staging
        }
    };
    let ports;
    match control.zip(plan) {
        Some((control, plan)) => {
            // What goes has its port until it is gone, and what is undone has one again.
            ports = surroundings.network.hold(vm.id, &with_those_that_go(&wanted.vm, vm))?;
            // More memory must be there to be had.
            surroundings.ledger.admit(&wanted.vm, &wanted.vm.resources.cpu)?;
            live::apply(control, surroundings, vm, &plan, progress).inspect_err(|_| surroundings.ledger.note(vm))?;
        }
        None => {
            ports = Held::none();
            grow(vm, &wanted, surroundings)?;
        }
    }
    store(state, task, vm, &wanted)?;
    drop(ports);
    staging.keep();
    Ok(None)
}

/// The network cards that a VM is to have, and those that it has until then.
fn with_those_that_go(wanted: &VmRecord, old: &VmRecord) -> Vec<NetRecord> {
    let gone = old.nets.iter().filter(|net| !wanted.nets.iter().any(|other| other.id == net.id));
    wanted.nets.iter().chain(gone).cloned().collect()
}

/// Policies that were changed by themselves since the VM was as `old` stay changed.
fn with_policies_of(mut vm: VmRecord, old: &VmRecord, stored: &VmRecord) -> VmRecord {
    for net in &mut vm.nets {
        let of = |vm: &VmRecord| vm.nets.iter().find(|other| other.id == net.id).map(|other| other.attachment.clone());
        match (of(old), of(stored)) {
            (Some(before), Some(now)) if before != now => net.attachment = now,
            _ => {}
        }
    }
    vm
}

/// Grows disks that nobody uses.
fn grow(vm: &VmRecord, wanted: &Wanted, surroundings: &Surroundings) -> Result<(), WorkError> {
    for (id, bytes) in &wanted.grow {
        if let Some(disk) = vm.disks.iter().find(|disk| disk.id == *id) {
            let path = surroundings.volumes.find(&disk.file)?;
            tool::resize(&path, clone::format(disk, &path), *bytes, Smaller::Refuse)?;
        }
    }
    Ok(())
}

/// Stores the changed VM with its name. Not the task's end: before that, nothing of what was made may look half-made.
fn store(state: &State, task: Uuid, old: &VmRecord, wanted: &Wanted) -> Result<(), WorkError> {
    let id = old.id.to_string();
    loop {
        let stored = state.read::<VmRecord>(&id)?.ok_or_else(|| StateError::Gone(format!("the VM {id}")))?;
        // What happened to it meanwhile stays: it may have been stopped.
        let VmRecord { power, started_at, last_end, saved, host, owned_at, .. } = stored.record.clone();
        let vm = VmRecord { power, started_at, last_end, saved, host, owned_at, ..wanted.vm.clone() };
        let vm = match stored.record.resources == old.resources {
            true => vm,
            // They were changed by themselves meanwhile.
            false => VmRecord { resources: stored.record.resources.clone(), ..vm },
        };
        let vm = with_policies_of(vm, old, &stored.record);
        if vm == stored.record && wanted.grow.is_empty() {
            // An earlier marud got as far as this.
            return Ok(());
        }
        let event = EventRecord::now(EventKind::VmChanged, described(old, wanted)).of_vm(vm.id, &vm.name).by_task(Some(task));
        let mut transaction = Transaction::new().if_still(&id, &stored).write(&id, &vm).tell(&event);
        if vm.name != stored.record.name {
            transaction = transaction
                .if_none::<NameRecord>(&vm.name)
                .write(&vm.name, &NameRecord { vm: vm.id })
                .forget::<NameRecord>(&stored.record.name);
        }
        if let Outcome::Committed(_) = state.commit(&transaction)? {
            return Ok(());
        }
        if vm.name != stored.record.name && state.read::<NameRecord>(&vm.name)?.is_some() {
            return Err(clone::name_taken(&vm.name).into());
        }
    }
}
