//! Calls to whichever member answers.
//!
//! Each member has a connection of its own, and calls go to one of them until it fails: a balancer over all would go on giving calls to a
//! member that is frozen. What a member did not get, or what may be asked twice, is asked of the next one.

use std::error::Error;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::StoreError;

/// Between two rounds in which no member could answer.
const PAUSE: Duration = Duration::from_millis(50);

/// What etcd says before it does anything: it has no leader, it only listens, or has not been together with the others for long enough to have
/// their number changed.
const BEFORE: [&str; 3] = ["etcdserver: no leader", "etcdserver: rpc not supported for learner", "etcdserver: unhealthy cluster"];

/// Whether something may be asked again when it is not known whether it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing, or the same twice.
    Harmless,
    /// It could be done twice.
    Never,
}

/// Why one member did not do what was asked.
pub(super) enum Failure {
    /// etcd says no: it is not done, and no other member would.
    Refused(StoreError),
    /// It is not done; another member may.
    NotDone(String),
    /// It is done or not.
    Unsure(String),
}

/// One member, and the connection to it.
pub(super) struct Door {
    pub(super) url: String,
    endpoint: Endpoint,
    channel: Mutex<Option<Channel>>,
}

impl Door {
    pub(super) fn new(url: &str, endpoint: Endpoint) -> Door {
        Door { url: url.into(), endpoint, channel: Mutex::default() }
    }

    /// The connection; made if there is none.
    pub(super) async fn channel(&self) -> Result<Channel, Failure> {
        let mut channel = self.channel.lock().await;
        if let Some(channel) = &*channel {
            return Ok(channel.clone());
        }
        let made = self.endpoint.connect().await.map_err(|error| Failure::NotDone(self.says(&with_causes(&error))))?;
        Ok(channel.insert(made).clone())
    }

    /// Has a connection made anew next time.
    pub(super) async fn close(&self) {
        *self.channel.lock().await = None;
    }

    fn says(&self, reason: &str) -> String {
        format!("{}: {reason}", self.url)
    }
}

/// All members that are known.
pub(super) struct Endpoints {
    doors: RwLock<Arc<Vec<Arc<Door>>>>,
    /// Counts on when a member is passed over.
    current: AtomicUsize,
    /// How long a call may take.
    pub(super) deadline: Duration,
}

impl Endpoints {
    pub(super) fn new(doors: Vec<Door>, deadline: Duration) -> Endpoints {
        let endpoints = Endpoints { doors: RwLock::default(), current: AtomicUsize::new(0), deadline };
        endpoints.replace(doors);
        endpoints
    }

    pub(super) fn replace(&self, doors: Vec<Door>) {
        let doors = Arc::new(doors.into_iter().map(Arc::new).collect());
        *self.doors.write().unwrap_or_else(PoisonError::into_inner) = doors;
    }

    pub(super) fn doors(&self) -> Arc<Vec<Arc<Door>>> {
        self.doors.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The member that is asked now, and its turn.
    pub(super) fn door(&self) -> Option<(Arc<Door>, usize)> {
        let (doors, turn) = (self.doors(), self.current.load(Ordering::Relaxed));
        Some((doors.get(turn.checked_rem(doors.len())?)?.clone(), turn))
    }

    /// Goes on to the next member, unless someone else has.
    pub(super) fn pass_over(&self, turn: usize) {
        let _ = self.current.compare_exchange(turn, turn.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// How long one of several members is waited for.
    pub(super) fn patience(&self) -> Duration {
        self.deadline / 3
    }

    /// Asks members until one answers or the time is over.
    pub(super) async fn call<T, F>(&self, repeat: Repeat, work: impl Fn(Channel) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let end = Instant::now() + self.deadline;
        let mut reason = None;
        loop {
            for _ in 0..self.doors().len() {
                let Some((door, turn)) = self.door() else { break };
                let left = end.saturating_duration_since(Instant::now());
                let patience = if repeat == Repeat::Harmless { left.min(self.patience()) } else { left };
                match attempt(&door, self.patience().min(left), patience, &work).await {
                    Ok(answer) => return Ok(answer),
                    Err(Failure::Refused(error)) => return Err(error),
                    Err(Failure::Unsure(reason)) if repeat == Repeat::Never => {
                        self.pass_over(turn);
                        return Err(StoreError::Unknown(reason));
                    }
                    Err(Failure::NotDone(text) | Failure::Unsure(text)) => {
                        self.pass_over(turn);
                        // One that the end has cut short does not say why.
                        if reason.is_none() || Instant::now() < end {
                            reason = Some(text);
                        }
                    }
                }
                if Instant::now() >= end {
                    break;
                }
            }
            if Instant::now() + PAUSE >= end {
                let reason = reason.unwrap_or_else(|| "no member is known".into());
                return Err(StoreError::Unavailable { waited: self.deadline, reason });
            }
            sleep(PAUSE).await;
        }
    }
}

/// Asks one member. A connection has to come about within a part of the time: until then, nothing was sent, and another member can be asked.
pub(super) async fn attempt<T, F>(
    door: &Door,
    connecting: Duration,
    patience: Duration,
    work: impl Fn(Channel) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let end = Instant::now() + patience;
    let Ok(channel) = timeout(connecting, door.channel()).await else {
        return Err(Failure::NotDone(door.says(&format!("no connection within {connecting:?}"))));
    };
    let channel = channel?;
    match timeout(end.saturating_duration_since(Instant::now()), work(channel)).await {
        Ok(Err(Failure::Unsure(reason))) => {
            door.close().await;
            Err(Failure::Unsure(door.says(&reason)))
        }
        Ok(Err(Failure::NotDone(reason))) => Err(Failure::NotDone(door.says(&reason))),
        Ok(done) => done,
        Err(_) => {
            door.close().await;
            Err(Failure::Unsure(door.says(&format!("no answer within {patience:?}"))))
        }
    }
}

/// One question, one answer.
pub(super) async fn unary<Q, A>(channel: Channel, path: &'static str, question: Q) -> Result<A, Failure>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let mut grpc = ready(channel).await?;
    let answer = grpc.unary(led(question), PathAndQuery::from_static(path), ProstCodec::default()).await;
    Ok(answer.map_err(failure)?.into_inner())
}

/// One question, many answers.
pub(super) async fn answers<Q, A>(channel: Channel, path: &'static str, question: Q) -> Result<Streaming<A>, Failure>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let mut grpc = ready(channel).await?;
    let answers = grpc.server_streaming(led(question), PathAndQuery::from_static(path), ProstCodec::default()).await;
    Ok(answers.map_err(failure)?.into_inner())
}

/// Many questions, many answers.
pub(super) async fn exchange<Q, A, S>(channel: Channel, path: &'static str, questions: S) -> Result<Streaming<A>, Failure>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
    S: tokio_stream::Stream<Item = Q> + Send + 'static,
{
    let mut grpc = ready(channel).await?;
    let answers = grpc.streaming(led(questions), PathAndQuery::from_static(path), ProstCodec::<Q, A>::default()).await;
    Ok(answers.map_err(failure)?.into_inner())
}

async fn ready(channel: Channel) -> Result<Grpc<Channel>, Failure> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX);
    grpc.ready().await.map_err(|error| Failure::NotDone(with_causes(&error)))?;
    Ok(grpc)
}

/// A request that a member without a leader refuses, instead of waiting for one.
fn led<Q>(question: Q) -> Request<Q> {
    let mut request = Request::new(question);
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    request
}

/// What an error of a call says about what was done.
pub(super) fn failure(status: Status) -> Failure {
    let text = with_causes(&status);
    if causes(&status).any(|error| error.is::<tonic::ConnectError>()) {
        return Failure::NotDone(text);
    }
    let said = status.message();
    match status.code() {
        Code::ResourceExhausted if said.contains("database space exceeded") => Failure::Refused(StoreError::Full),
        // Too much to do at this moment.
        Code::ResourceExhausted => Failure::NotDone(text),
        Code::Unavailable if BEFORE.contains(&said) => Failure::NotDone(text),
        Code::DataLoss
        | Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::NotFound
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => Failure::Refused(StoreError::Refused(Box::new(status))),
        _ => Failure::Unsure(text),
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// An error with what led to it: tonic says "transport error", and the rest below.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let name = |error: &(dyn Error + 'static)| error.to_string();
    let texts: Vec<String> = match causes(error).next().and_then(|first| first.downcast_ref::<Status>()) {
        Some(status) => std::iter::once(status.message().to_owned()).chain(causes(error).skip(1).map(name)).collect(),
        None => causes(error).map(name).collect(),
    };
    let mut said = String::new();
    for text in texts.iter().filter(|text| !text.is_empty()) {
        if !said.contains(text.as_str()) {
            if !said.is_empty() {
                said.push_str(": ");
            }
            said.push_str(text);
        }
    }
    said
}
