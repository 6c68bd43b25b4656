//! Images that clients send.

use std::time::Duration;

use axum::Extension;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};
use utoipa::IntoParams;
use uuid::Uuid;

use super::extract::{Name, Params};
use super::guard::Caller;
use super::images::{check_description, check_free, checksum, submit, usual_boot};
use super::tasks::{TaskAnswer, answer};
use super::{App, Refusal};
use crate::images::{self, Upload};
use crate::records::{Cause, ImageSourceRecord, ImportImageRecord};
use crate::state::StateError;
use crate::volumes::Volumes;

/// Files that may be sent at once. Who is slow has one of these places, and nothing else.
const MAX_UPLOADS: usize = 16;
static PLACES: Semaphore = Semaphore::const_new(MAX_UPLOADS);
/// What is written at once, in bytes.
const PIECE: usize = 1 << 20;
/// How long a client may take to send that much.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the file is, and what to make of it.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UploadParams {
    /// The volume for the image; `local`, or the first one, if left out.
    volume: Option<String>,
    /// What SHA-256 of the file must be, in hexadecimal.
    #[param(pattern = "^[0-9A-Fa-f]{64}$")]
    sha256: Option<String>,
    /// What the file means; found out by what is in it if left out.
    #[param(inline)]
    format: Option<api::ImageFormat>,
    /// What it is, for people: 1000 characters at most.
    #[serde(default)]
    #[param(max_length = 1000, required = false)]
    description: String,
    /// The kernel that a VM boots that is made from it and says nothing else.
    kernel: Option<String>,
    /// And the initial file system.
    initrd: Option<String>,
    /// And the kernel's command line.
    command_line: Option<String>,
    /// How long to wait for the task's end, in seconds: 0 to 300.
    #[param(minimum = 0, maximum = 300)]
    wait: Option<u32>,
}

/// Make an image from a file that is sent
///
/// The body is the file as it is, of any length for which the volume has space: `curl -T debian-12.qcow2 .../images/debian12`. A task makes the image
/// of it, as from any other file. An upload that breaks off, or takes more than two minutes for a megabyte, leaves nothing.
#[utoipa::path(put, path = "/images/{image}", tag = "images", operation_id = "upload_image", params(
    ("image" = String, Path, description = "The name of the new image"),
    UploadParams,
), request_body(content = String, content_type = "application/octet-stream", description = "A disk that needs no other file"),
responses(TaskAnswer))]
pub async fn upload(
    Shared(app): Shared<App>,
    Extension(caller): Extension<Caller>,
    Name(name): Name,
    Params(params): Params<UploadParams>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    check_type(&headers)?;
    let volumes = app.host.surroundings.volumes.clone();
    let (wait, by) = (params.wait, caller.name);
    let wanted = new(name, params, &volumes).map_err(Refusal::senseless)?;
    let name = wanted.name.clone();
    app.host.state.run(move |state| Ok(check_free(state, &name))).await??;
    let _place = PLACES.try_acquire().map_err(|_| {
        let message = format!("{MAX_UPLOADS} images are being sent already");
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too-many", message, "wait for one of them, and try again")
    })?;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0);
    let volume = wanted.volume.clone();
    let upload = blocking(move || {
        images::check_space(&volumes, &volume, length)?;
        Upload::begin(&volumes, &volume)
    });
    let upload = receive(upload.await?, body.into_data_stream()).await?;
    let (id, sha256, upload) = blocking(move || {
        let (id, sha256) = upload.finish()?;
        Ok((id, sha256, upload))
    })
    .await?;
    images::check_sha256(wanted.sha256.as_deref(), &sha256).map_err(Refusal::senseless)?;
    let wanted = ImportImageRecord { source: ImageSourceRecord::Upload { id, sha256 }, ..wanted };
    let changes = app.host.changes();
    let task = app.host.state.run(move |state| {
        let task = submit(state, None, wanted, &by);
        if task.is_ok() {
            upload.keep();
        }
        Ok(task)
    });
    answer(&app, task.await??, changes, wait).await
}

/// Checks what is wanted. What it is made from is not there yet.
fn new(name: String, params: UploadParams, volumes: &Volumes) -> Result<ImportImageRecord, Cause> {
    images::check_name(&name)?;
    check_description(&params.description)?;
    let names = volumes.names();
    let usual = || names.iter().find(|name| *name == "local").or(names.first()).cloned().unwrap_or_default();
    let volume = params.volume.unwrap_or_else(usual);
    volumes.root(&volume)?;
    let boot = match (params.kernel, params.initrd, params.command_line) {
        (None, None, None) => None,
        (kernel, initrd, command_line) => {
            let (kernel, command_line) = (kernel.unwrap_or_default(), command_line.unwrap_or_default());
            Some(usual_boot(&api::Boot { kernel, initrd, command_line }, volumes)?)
        }
    };
    Ok(ImportImageRecord {
        id: Uuid::new_v4(),
        name,
        description: params.description,
        volume,
        source: ImageSourceRecord::Upload { id: Uuid::nil(), sha256: String::new() },
        format: params.format.map(Into::into),
        sha256: params.sha256.as_deref().map(checksum).transpose()?,
        boot,
    })
}

/// Refuses what is no file: the parts of a form would become a part of the disk.
fn check_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let kind = kind.to_str().unwrap_or_default();
    if kind.split(';').next().is_some_and(|own| own.trim().eq_ignore_ascii_case("application/octet-stream")) {
        return Ok(());
    }
    let way_out = "send the file itself, with the header Content-Type: application/octet-stream (curl -T FILE)";
    Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-octets", format!("the body is '{kind}'"), way_out))
}

/// Takes all that is sent. No thread waits for the client: one is borrowed for each piece.
async fn receive(mut upload: Upload, mut stream: BodyDataStream) -> Result<Upload, Refusal> {
    let mut over = false;
    while !over {
        let deadline = Instant::now() + PATIENCE;
        let (mut parts, mut length) = (Vec::<Bytes>::new(), 0);
        while length < PIECE && !over {
            match timeout_at(deadline, stream.next()).await {
                Ok(Some(Ok(part))) => {
                    length += part.len();
                    parts.push(part);
                }
                Ok(None) => over = true,
                Ok(Some(Err(error))) => {
                    let message = format!("the body broke off: {error}");
                    return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad-body", message, "send the whole file"));
                }
                Err(_late) => {
                    let message = format!("{PIECE} bytes took longer than {} s to come", PATIENCE.as_secs());
                    return Err(Refusal::new(
                        StatusCode::REQUEST_TIMEOUT,
                        "too-slow",
                        message,
                        "try again with a better connection",
                    ));
                }
            }
        }
        upload = blocking(move || {
            parts.iter().try_for_each(|part| upload.take(part))?;
            Ok(upload)
        })
        .await?;
    }
    Ok(upload)
}

/// Does what waits for the disk where that hurts nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Cause> + Send + 'static) -> Result<T, Refusal> {
    let done = spawn_blocking(work).await.map_err(|_| Refusal::from(StateError::Ending))?;
    done.map_err(|cause| match cause.code.as_str() {
        "no-space" => Refusal { status: StatusCode::CONFLICT, cause },
        _ => Refusal::senseless(cause),
    })
}
