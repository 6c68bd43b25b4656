//! Volumes.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use store::{Outcome, Transaction};
use vmm::config::check_id;

use super::extract::{Body, Name, PageParams, Params};
use super::{App, Refusal};
use crate::images;
use crate::records::{Cause, FileRef, ImageRecord, PlaceRecord, VmRecord, VolumeRecord};
use crate::state::{Records, State, StateError};
use crate::vm::Surroundings;
use crate::volumes::{Account, Directory, Volume, account};

/// All volumes, as they are told.
pub fn told(state: &State, surroundings: &Surroundings) -> Result<Vec<api::Volume>, StateError> {
    let vms: Vec<VmRecord> = state.all::<VmRecord>()?.into_iter().map(|stored| stored.record).collect();
    let accounts = account::count(&surroundings.volumes, &vms, &images::all(state)?);
    let mut records: BTreeMap<String, VolumeRecord> =
        state.all::<VolumeRecord>()?.into_iter().map(|stored| (stored.record.name.clone(), stored.record)).collect();
    let mut names = surroundings.volumes.names();
    // One that could not be opened is there, too.
    names.extend(records.values().filter(|record| record.place.is_some()).map(|record| record.name.clone()));
    names.sort();
    names.dedup();
    let tell = |name: String| {
        let record = records.remove(&name).unwrap_or_else(|| VolumeRecord::new(&name));
        tell(surroundings, &record, accounts.get(&name).copied().unwrap_or_default())
    };
    Ok(names.into_iter().map(tell).collect())
}

fn tell(surroundings: &Surroundings, record: &VolumeRecord, account: Account) -> api::Volume {
    let space = surroundings.volumes.space(&record.name);
    let error = match &space {
        None => Some("it could not be opened when marud started".into()),
        Some(Err(error)) => Some(error.to_string()),
        Some(Ok(_)) => None,
    };
    let (total, free) = space.and_then(Result::ok).map_or((0, 0), |space| (space.total, space.free));
    let path = match &record.place {
        Some(PlaceRecord::Directory { path }) => path.clone(),
        None => surroundings.volumes.root(&record.name).map_or_else(|_| String::new(), |root| root.display().to_string()),
    };
    // Other files are in the way of disks.
    let for_disks = free + account.allocated;
    api::Volume {
        name: record.name.clone(),
        kind: api::VolumeKind::Directory,
        path,
        managed: record.place.is_some(),
        shared: record.shared.is_some(),
        total_bytes: total,
        free_bytes: free,
        allocated_bytes: account.allocated,
        provisioned_bytes: account.provisioned,
        provisioned_percent: if for_disks == 0 { 0.0 } else { account.provisioned as f64 * 100.0 / for_disks as f64 },
        warning_percent: record.warning_percent,
        critical_percent: record.critical_percent,
        level: record.level.into(),
        error,
    }
}

async fn all(app: &App) -> Result<Vec<api::Volume>, Refusal> {
    let surroundings = app.host.surroundings.clone();
    Ok(app.host.state.run(move |state| told(state, &surroundings)).await?)
}

async fn one(app: &App, name: &str) -> Result<api::Volume, Refusal> {
    all(app).await?.into_iter().find(|volume| volume.name == name).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Refusal {
    Refusal::not_found(format_args!("volume '{name}'"), "list those that there are")
}

fn check_thresholds(record: &VolumeRecord) -> Result<(), Refusal> {
    let VolumeRecord { warning_percent, critical_percent, .. } = *record;
    if (1..=100).contains(&warning_percent) && (1..=100).contains(&critical_percent) && warning_percent <= critical_percent {
        return Ok(());
    }
    let message = format!("a warning at {warning_percent} %, and nearly full at {critical_percent} %");
    Err(Refusal::senseless(Cause::new("bad-volume", message, "give 1 to 100 %, and the warning no more than the other")))
}

/// List volumes
#[utoipa::path(get, path = "/volumes", tag = "volumes", operation_id = "list_volumes", params(PageParams), responses(
    (status = 200, description = "All volumes", body = api::Page<api::Volume>),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn list(Shared(app): Shared<App>, Params(params): Params<PageParams>) -> Result<Json<api::Page<api::Volume>>, Refusal> {
    Ok(Json(params.part(all(&app).await?, |volume| volume.name.clone())?))
}

/// Show a volume
#[utoipa::path(get, path = "/volumes/{volume}", tag = "volumes", operation_id = "show_volume",
    params(("volume" = String, Path, description = "Its name")), responses(
    (status = 200, description = "The volume", body = api::Volume),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn show(Shared(app): Shared<App>, Name(name): Name) -> Result<Json<api::Volume>, Refusal> {
    Ok(Json(one(&app, &name).await?))
}

/// Make a volume
///
/// For administrators: whoever may create VMs can use all files in it.
#[utoipa::path(post, path = "/volumes", tag = "volumes", operation_id = "create_volume", request_body = api::NewVolume, responses(
    (status = 201, description = "The volume", body = api::Volume),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn create(Shared(app): Shared<App>, body: Body) -> Result<(StatusCode, Json<api::Volume>), Refusal> {
    let wanted: api::NewVolume = body.parse()?;
    let name = wanted.name.clone();
    if name.contains('.') || check_id(&name).is_err() {
        let message = format!("'{name}' cannot be a volume's name");
        return Err(Refusal::senseless(Cause::new("bad-name", message, "use 1 to 64 letters, digits, '-' and '_'")));
    }
    let usual = VolumeRecord::new(&name);
    let record = VolumeRecord {
        place: Some(PlaceRecord::Directory { path: wanted.path.clone() }),
        warning_percent: wanted.warning_percent.unwrap_or(usual.warning_percent),
        critical_percent: wanted.critical_percent.unwrap_or(usual.critical_percent),
        ..usual
    };
    check_thresholds(&record)?;
    let surroundings = app.host.surroundings.clone();
    app.host.state.run(move |state| Ok(insert(state, &surroundings, record, wanted.shared))).await??;
    Ok((StatusCode::CREATED, Json(one(&app, &name).await?)))
}

fn insert(state: &State, surroundings: &Surroundings, mut record: VolumeRecord, shared: bool) -> Result<(), Refusal> {
    let name = record.name.clone();
    let taken = || {
        let message = format!("there is a volume called '{name}' already");
        Refusal::conflict("name-taken", message, "choose another name")
    };
    let path = record.place.as_ref().map(|PlaceRecord::Directory { path }| path.clone()).unwrap_or_default();
    let is_here = |root: std::path::PathBuf| std::fs::canonicalize(&path).is_ok_and(|real| real == root);
    // One of the command line may become one that all hosts see.
    let given = surroundings.volumes.root(&name).ok();
    let is_given = shared && given.clone().is_some_and(is_here);
    if given.is_some() && !is_given {
        return Err(taken());
    }
    let place = record.place.as_mut().map(|PlaceRecord::Directory { path }| path);
    let volume = match (place, given) {
        (Some(path), None) => Some(surroundings.volumes.make(path).map_err(Refusal::senseless)?),
        (Some(_), Some(root)) => Some(Arc::new(
            Directory::open(&root)
                .map_err(|error| Refusal::senseless(Cause::new("bad-volume", error.to_string(), "see what the directory is")))?,
        ) as Arc<dyn Volume>),
        (None, _) => None,
    };
    if let (true, Some(volume)) = (shared, &volume) {
        let marked = Directory::open(volume.root()).and_then(|directory| directory.share());
        record.shared = Some(marked.map_err(|error| {
            let message = format!("the mark in {} cannot be written: {error}", volume.root().display());
            Refusal::senseless(Cause::new("bad-volume", message, "make it writable for marud"))
        })?);
    }
    // It may be there from before, without a place: one of the command line that is not given any more.
    let stored = state.read::<VolumeRecord>(&name)?;
    if stored.as_ref().is_some_and(|stored| stored.record.place.is_some()) {
        return Err(taken());
    }
    let transaction = Transaction::new().write(&name, &record);
    let transaction = match &stored {
        Some(stored) => transaction.if_still(&name, stored),
        None => transaction.if_none::<VolumeRecord>(&name),
    };
    match (state.commit(&transaction)?, volume) {
        (Outcome::Committed(_), Some(volume)) => surroundings.volumes.insert(&name, volume),
        (Outcome::Committed(_), None) => {}
        (Outcome::Conflict { .. }, _) => return Err(taken()),
    }
    Ok(())
}

/// Change a volume's alarms
#[utoipa::path(patch, path = "/volumes/{volume}", tag = "volumes", operation_id = "change_volume", request_body = api::VolumeChange,
    params(("volume" = String, Path, description = "Its name")), responses(
    (status = 200, description = "The volume", body = api::Volume),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn change(Shared(app): Shared<App>, Name(name): Name, body: Body) -> Result<Json<api::Volume>, Refusal> {
    let wanted: api::VolumeChange = body.parse()?;
    let volume = one(&app, &name).await?.name;
    app.host.state.run(move |state| Ok(edit(state, &volume, &wanted))).await??;
    Ok(Json(one(&app, &name).await?))
}

fn edit(state: &State, name: &str, wanted: &api::VolumeChange) -> Result<(), Refusal> {
    loop {
        let stored = state.read::<VolumeRecord>(name)?;
        let mut record = stored.as_ref().map_or_else(|| VolumeRecord::new(name), |stored| stored.record.clone());
        record.warning_percent = wanted.warning_percent.unwrap_or(record.warning_percent);
        record.critical_percent = wanted.critical_percent.unwrap_or(record.critical_percent);
        check_thresholds(&record)?;
        let transaction = Transaction::new().write(name, &record);
        let transaction = match &stored {
            Some(stored) => transaction.if_still(name, stored),
            None => transaction.if_none::<VolumeRecord>(name),
        };
        if let Outcome::Committed(_) = state.commit(&transaction)? {
            return Ok(());
        }
    }
}

/// Delete a volume
///
/// One that no VM uses, and that has no image. Its files stay where they are.
#[utoipa::path(delete, path = "/volumes/{volume}", tag = "volumes", operation_id = "delete_volume",
    params(("volume" = String, Path, description = "Its name")), responses(
    (status = 204, description = "It is no volume any more"),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn delete(Shared(app): Shared<App>, Name(name): Name) -> Result<StatusCode, Refusal> {
    let volume = one(&app, &name).await?;
    if !volume.managed {
        let message = format!("the volume '{name}' is one of marud's command line");
        return Err(Refusal::conflict("not-managed", message, "start marud without it"));
    }
    let surroundings = app.host.surroundings.clone();
    app.host.state.run(move |state| Ok(forget(state, &surroundings, &name))).await??;
    Ok(StatusCode::NO_CONTENT)
}

fn forget(state: &State, surroundings: &Surroundings, name: &str) -> Result<(), Refusal> {
    loop {
        let stored = state.read::<VolumeRecord>(name)?.ok_or_else(|| missing(name))?;
        for vm in state.all::<VmRecord>()?.into_iter().map(|stored| stored.record) {
            let boot = [Some(&vm.boot.kernel), vm.boot.initrd.as_ref()].into_iter().flatten();
            let uses = |file: &FileRef| file.volume == name;
            let saved = vm.saved.iter().map(|saved| &saved.file);
            if boot.chain(vm.disks.iter().map(|disk| &disk.file)).chain(saved).any(uses) {
                let message = format!("the VM '{}' has files in the volume '{name}'", vm.name);
                return Err(Refusal::conflict("volume-in-use", message, "delete that VM first, or give it other files"));
            }
        }
        if let Some(image) = state.all::<ImageRecord>()?.iter().find(|image| image.record.file.volume == name) {
            let message = format!("the image '{}' is in the volume '{name}'", image.record.name);
            return Err(Refusal::conflict("volume-in-use", message, "delete that image first"));
        }
        // A VM that is created meanwhile finds out when it is started, at the latest.
        let transaction = Transaction::new().if_still(name, &stored).forget::<VolumeRecord>(name);
        if let Outcome::Committed(_) = state.commit(&transaction)? {
            surroundings.volumes.give_up(name);
            return Ok(());
        }
    }
}
