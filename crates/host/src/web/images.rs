//! Images.

use axum::extract::State as Shared;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;
use axum::{Extension, Json};
use disk::tool::{self, AnyFormat};
use serde::Deserialize;
use store::{Outcome, Transaction};
use utoipa::IntoParams;
use uuid::Uuid;

use super::extract::{Body, Name, Params, limit, page};
use super::guard::Caller;
use super::once::Once;
use super::suggest::did_you_mean;
use super::tasks::{MAX_WAITING, TaskAnswer, WaitParams, answer, read};
use super::{App, Refusal};
use crate::images::{self, Users};
use crate::records::{BootRecord, Cause, ImageRecord, ImageSourceRecord, ImportImageRecord, OperationRecord, TaskRecord};
use crate::state::{Records, State};
use crate::vm::config;
use crate::vm::delete::DeleteError;
use crate::volumes::Volumes;

/// The longest description, in characters.
const MAX_DESCRIPTION: usize = 1000;

/// Which images.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// Only the one with this name.
    name: Option<String>,
    /// Only those in this volume.
    volume: Option<String>,
    /// How many at once: 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Only those behind: `next` of the part before.
    after: Option<String>,
}

/// An image as it is told.
fn told(users: &Users, volumes: &Volumes, image: &ImageRecord) -> api::Image {
    let looked = volumes.find(&image.file).map_err(|cause| cause.message).and_then(|path| {
        let chain = tool::info(&path, AnyFormat::Own(disk::Format::Vhdx)).map_err(|error| error.to_string())?;
        Ok(chain.first().map_or(0, |disk| disk.disk_usage))
    });
    api::Image {
        id: image.id,
        name: image.name.clone(),
        description: image.description.clone(),
        volume: image.file.volume.clone(),
        file: image.file.to_string(),
        virtual_bytes: image.virtual_bytes,
        file_bytes: looked.as_ref().copied().unwrap_or(0),
        source: image.source.clone(),
        source_format: image.source_format.into(),
        source_bytes: image.source_bytes,
        sha256: image.sha256.clone(),
        boot: image.boot.as_ref().map(api::Boot::from),
        vms: users.of(image),
        created_by: image.created_by.clone(),
        created_at: image.created_at,
        error: looked.err(),
    }
}

fn find(state: &State, name: &str) -> Result<ImageRecord, Refusal> {
    let missing = || {
        let known: Vec<String> = images::all(state).into_iter().flatten().map(|image| image.name).collect();
        let way_out = did_you_mean(name, known.iter().map(String::as_str), "list those that there are");
        Refusal::not_found(format_args!("image '{name}'"), &way_out)
    };
    Ok(images::find(state, name)?.ok_or_else(missing)?.record)
}

/// List images
///
/// In the order of their names.
#[utoipa::path(get, path = "/images", tag = "images", operation_id = "list_images", params(ListParams), responses(
    (status = 200, description = "Images", body = api::Page<api::Image>),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn list(Shared(app): Shared<App>, Params(params): Params<ListParams>) -> Result<Json<api::Page<api::Image>>, Refusal> {
    let limit = limit(params.limit)?;
    let volumes = app.host.surroundings.volumes.clone();
    let listed = app.host.state.run(move |state| {
        let mut found = images::all(state)?;
        found.retain(|image| params.name.as_ref().is_none_or(|name| *name == image.name));
        found.retain(|image| params.volume.as_ref().is_none_or(|volume| *volume == image.file.volume));
        let part = page(found, params.after.as_deref(), limit, |image| image.name.clone());
        let users = Users::find(state)?;
        Ok(api::Page { items: part.items.iter().map(|image| told(&users, &volumes, image)).collect(), next: part.next })
    });
    Ok(Json(listed.await?))
}

/// Show an image
#[utoipa::path(get, path = "/images/{image}", tag = "images", operation_id = "show_image",
    params(("image" = String, Path, description = "Its name or id")), responses(
    (status = 200, description = "The image", body = api::Image),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn show(Shared(app): Shared<App>, Name(name): Name) -> Result<Json<api::Image>, Refusal> {
    let volumes = app.host.surroundings.volumes.clone();
    let shown = app
        .host
        .state
        .run(move |state| Ok(find(state, &name).and_then(|image| Ok(told(&Users::find(state)?, &volumes, &image)))));
    Ok(Json(shown.await??))
}

/// Make an image from a file
///
/// A task copies what is in the file into a VHDX image of `marud`'s own; the file stays as it is. It is a disk that needs no other file: raw, qcow2,
/// VMDK (in one file), VHD or VHDX. One that names another file is refused, whatever that is. The image is there when the task is done.
#[utoipa::path(post, path = "/images", tag = "images", operation_id = "import_image", request_body = api::NewImage, params(
    ("Idempotency-Key" = Option<String>, Header, description = "Up to 128 characters, remembered for a day"),
    WaitParams,
), responses(TaskAnswer))]
pub async fn import(
    Shared(app): Shared<App>,
    Extension(caller): Extension<Caller>,
    (method, uri): (Method, Uri),
    headers: HeaderMap,
    Params(params): Params<WaitParams>,
    body: Body,
) -> Result<Response, Refusal> {
    let once = Once::of(&caller, &headers, &method, &uri, &body.0)?;
    let wanted: api::NewImage = body.parse()?;
    let (volumes, changes) = (app.host.surroundings.volumes.clone(), app.host.changes());
    let made = app.host.state.run(move |state| {
        // An earlier try may have used up what is looked at here.
        let made = Once::made(once.as_ref(), state);
        Ok(made.and_then(|made| match made {
            Some(task) => read(state, task),
            None => submit(state, once.as_ref(), new(&wanted, &volumes).map_err(Refusal::senseless)?, &caller.name),
        }))
    });
    answer(&app, made.await??, changes, params.wait).await
}

/// Checks what is wanted.
fn new(wanted: &api::NewImage, volumes: &Volumes) -> Result<ImportImageRecord, Cause> {
    let file = volumes.parse(&wanted.source)?;
    volumes.find(&file)?;
    let volume = wanted.volume.clone().unwrap_or_else(|| file.volume.clone());
    volumes.root(&volume)?;
    images::check_name(&wanted.name)?;
    check_description(&wanted.description)?;
    Ok(ImportImageRecord {
        id: Uuid::new_v4(),
        name: wanted.name.clone(),
        description: wanted.description.clone(),
        volume,
        source: ImageSourceRecord::File { file },
        format: wanted.format.map(Into::into),
        sha256: wanted.sha256.as_deref().map(checksum).transpose()?,
        boot: wanted.boot.as_ref().map(|boot| usual_boot(boot, volumes)).transpose()?,
    })
}

/// What VMs are to boot that are made from an image: files that are there.
pub fn usual_boot(boot: &api::Boot, volumes: &Volumes) -> Result<BootRecord, Cause> {
    let boot = config::boot(boot, volumes)?;
    for file in [Some(&boot.kernel), boot.initrd.as_ref()].into_iter().flatten() {
        volumes.find(file)?;
    }
    Ok(boot)
}

/// A checksum, as it is stored.
pub fn checksum(text: &str) -> Result<String, Cause> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(Cause::new("bad-checksum", format!("'{text}' is no SHA-256"), "give it as 64 hexadecimal digits (sha256sum FILE)"))
}

/// Checks a description.
pub fn check_description(text: &str) -> Result<(), Cause> {
    let length = text.chars().count();
    if length > MAX_DESCRIPTION || text.contains('\0') {
        let way_out = format!("make it {MAX_DESCRIPTION} characters at most");
        return Err(Cause::new("bad-image", format!("a description of {length} characters"), way_out));
    }
    Ok(())
}

/// Makes the task for an image.
pub fn submit(state: &State, once: Option<&Once>, image: ImportImageRecord, by: &str) -> Result<TaskRecord, Refusal> {
    loop {
        if let Some(made) = Once::made(once, state)? {
            return read(state, made);
        }
        check_free(state, &image.name)?;
        let tasks = state.all::<TaskRecord>()?.into_iter().map(|stored| stored.record).filter(TaskRecord::is_unfinished);
        let waiting = tasks.filter(|task| matches!(task.operation, OperationRecord::ImportImage(_))).count();
        if waiting >= MAX_WAITING {
            let message = format!("{waiting} images are being made already");
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too-many", message, "wait for them, or cancel some"));
        }
        let host = state.own_host().map(Into::into);
        let task = TaskRecord { host, ..TaskRecord::of_image(image.clone(), by.into()) };
        let name = task.id.to_string();
        let transaction = Transaction::new().if_none::<TaskRecord>(&name).if_none::<ImageRecord>(&image.name).write(&name, &task);
        // Otherwise: the same request at the same time, or the name was taken meanwhile.
        if let Outcome::Committed(_) = state.commit(&Once::note(once, transaction, task.id))? {
            return Ok(task);
        }
    }
}

/// Refuses a name that another image has, or will have.
pub fn check_free(state: &State, name: &str) -> Result<(), Refusal> {
    if state.read::<ImageRecord>(name)?.is_some() || images::is_being_made(state, name)? {
        return Err(Refusal { status: StatusCode::CONFLICT, cause: images::name_taken(name) });
    }
    Ok(())
}

/// Change an image
///
/// Its name, its description, or what VMs boot that are made from it. VMs that were made from it stay as they are.
#[utoipa::path(patch, path = "/images/{image}", tag = "images", operation_id = "change_image", request_body = api::ImageChange,
    params(("image" = String, Path, description = "Its name or id")), responses(
    (status = 200, description = "The image", body = api::Image),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn change(Shared(app): Shared<App>, Name(name): Name, body: Body) -> Result<Json<api::Image>, Refusal> {
    let wanted: api::ImageChange = body.parse()?;
    let volumes = app.host.surroundings.volumes.clone();
    let changed = app.host.state.run(move |state| Ok(edit(state, &volumes, &name, &wanted)));
    Ok(Json(changed.await??))
}

fn edit(state: &State, volumes: &Volumes, name: &str, wanted: &api::ImageChange) -> Result<api::Image, Refusal> {
    let id = find(state, name)?.id.to_string();
    let new_name = wanted.name.as_deref().map(|name| images::check_name(name).map(|()| name));
    let new_name = new_name.transpose().map_err(Refusal::senseless)?;
    check_description(wanted.description.as_deref().unwrap_or_default()).map_err(Refusal::senseless)?;
    let boot = match &wanted.boot {
        None => None,
        Some(None) => Some(None),
        Some(Some(boot)) => Some(Some(usual_boot(boot, volumes).map_err(Refusal::senseless)?)),
    };
    let changed = images::change(state, &id, |image| {
        image.name = new_name.unwrap_or(&image.name).to_owned();
        image.description = wanted.description.clone().unwrap_or_else(|| image.description.clone());
        image.boot = boot.clone().unwrap_or_else(|| image.boot.clone());
    })?;
    let image = changed.map_err(|cause| Refusal { status: StatusCode::CONFLICT, cause })?;
    Ok(told(&Users::find(state)?, volumes, &image))
}

/// Delete an image
///
/// One that no VM is based on, at no checkpoint either; the answer names those that are.
#[utoipa::path(delete, path = "/images/{image}", tag = "images", operation_id = "delete_image",
    params(("image" = String, Path, description = "Its name or id")), responses(
    (status = 204, description = "It is not there any more"),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn delete(Shared(app): Shared<App>, Name(name): Name) -> Result<StatusCode, Refusal> {
    let surroundings = app.host.surroundings.clone();
    let deleted = app.host.state.run(move |state| {
        Ok(find(state, &name).and_then(|image| {
            images::delete(state, &surroundings, &image.id.to_string()).map_err(|error| match error {
                DeleteError::Refused(cause) => Refusal { status: StatusCode::CONFLICT, cause },
                DeleteError::State(error) => error.into(),
            })
        }))
    });
    deleted.await??;
    Ok(StatusCode::NO_CONTENT)
}
