//! What hosts ask each other when a VM goes from one to the other with its files. Nobody else can: they show their certificates.
//!
//! It is no part of the API's document: its form is that of the version that all hosts of a cluster run.

use std::io::{self, Read};
use std::time::Duration;

use axum::body::{Body as Streamed, Bytes};
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::{Extension, Json};
use futures_util::StreamExt;
use store::record::Stored;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::extract::{Body, Name};
use super::guard::Peer;
use super::{App, Refusal};
use crate::copies::receive::{self, Refused};
use crate::copies::{Asked, Place};
use crate::records::{CopyPhase, CopyRecord};
use crate::state::StateError;

/// Parts of what is sent that wait in memory.
const PARTS: usize = 8;
/// How long the other host may send nothing.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take until this host hears of what the other one has stored, and how often it is looked.
const HEARS: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Refusal {
        match refused {
            Refused::Cause(cause) => Refusal { status: StatusCode::CONFLICT, cause },
            Refused::State(error) => error.into(),
        }
    }
}

fn stranger() -> Refusal {
    let message = "only the host that has a VM copies its files";
    Refusal::new(StatusCode::FORBIDDEN, "no-host", message, "move the VM with `maru vm move`")
}

/// Where files of a VM are to be here, and whether there is room.
pub async fn plan(Shared(app): Shared<App>, peer: Option<Extension<Peer>>, body: Body) -> Result<Json<Vec<Place>>, Refusal> {
    let Extension(Peer(from)) = peer.ok_or_else(stranger)?;
    let asked: Asked = body.parse()?;
    let surroundings = app.host.surroundings.clone();
    let planned = app.host.state.run(move |state| Ok(receive::plan(state, &surroundings, &from, &asked)));
    Ok(Json(planned.await??))
}

/// Takes the files of a copy that another host makes to this one.
pub async fn take(
    Shared(app): Shared<App>,
    peer: Option<Extension<Peer>>,
    Name(id): Name,
    body: Streamed,
) -> Result<StatusCode, Refusal> {
    let Extension(Peer(from)) = peer.ok_or_else(stranger)?;
    let copy = find(&app, id, &from).await?;
    let (sender, receiver) = mpsc::channel(PARTS);
    let (state, surroundings) = (app.host.state.clone(), app.host.surroundings.clone());
    let mut work = spawn_blocking(move || {
        receive::receive(&state, &surroundings, &copy, &mut Incoming { parts: receiver, part: Bytes::new() })
    });
    let (mut stream, mut sender) = (body.into_data_stream(), Some(sender));
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            next = timeout(PATIENCE, stream.next()), if sender.is_some() => {
                let taken = match (next, &sender) {
                    (Ok(Some(Ok(part))), Some(sender)) => sender.send(part).await.is_ok(),
                    // Without its end, what came is not whole, and is known by that.
                    _ => false,
                };
                sender.take_if(|_| !taken);
            }
        }
    };
    done.map_err(|_| Refusal::from(StateError::Ending))??;
    Ok(StatusCode::NO_CONTENT)
}

/// The record of a copy, which the other host has just written.
async fn find(app: &App, id: String, from: &str) -> Result<Stored<CopyRecord>, Refusal> {
    let id = uuid::Uuid::parse_str(&id).map_err(|_| stranger())?.to_string();
    let hears = timeout(HEARS, async {
        loop {
            let name = id.clone();
            if let Some(stored) = app.host.state.run(move |state| state.read::<CopyRecord>(&name)).await? {
                return Ok::<_, Refusal>(stored);
            }
            sleep(LOOK).await;
        }
    });
    let copy = hears.await.map_err(|_| Refusal::not_found(format_args!("copy '{id}'"), "move the VM again"))??;
    let record = &copy.record;
    let expected = record.from == from && Some(record.to.as_str()) == app.host.state.own_host();
    if expected && record.phase == CopyPhase::Copying { Ok(copy) } else { Err(stranger()) }
}

/// What comes, for who reads it on a thread of its own.
struct Incoming {
    parts: mpsc::Receiver<Bytes>,
    part: Bytes,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() {
            let Some(part) = self.parts.blocking_recv() else { return Ok(0) };
            self.part = part;
        }
        let length = buffer.len().min(self.part.len());
        buffer[..length].copy_from_slice(&self.part.split_to(length));
        Ok(length)
    }
}
