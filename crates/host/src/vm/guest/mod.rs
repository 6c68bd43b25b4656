//! What runs in a VM, as far as its guest agent tells, and what the agent does there.
//!
//! ```text
//!  monitor: the agent opened its port ─▶ look() ─▶ GuestInfo, for the API
//!                                        shut_down(), freeze() ─▶ Frozen ─▶ thaw(), or by itself when its time is over
//! ```
//!
//! Nothing of it is trusted: an agent can lie about everything but cannot make anyone wait longer than for an answer's time.

mod protocol;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, sleep, sleep_until};

pub use protocol::AgentError;
use protocol::{Channel, plain};

/// How long the agent may take to answer a simple question.
const ANSWER: Duration = Duration::from_secs(5);
/// How long it may take to freeze or thaw: file systems are written out first.
const FREEZE: Duration = Duration::from_secs(30);
/// Between two looks at the guest: addresses change.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Between two tries to thaw an agent that does not answer.
const THAW_AGAIN: Duration = Duration::from_secs(2);
/// Network cards, and addresses of each, that are told.
const MAX_LISTED: usize = 64;

/// The guest of a VM.
#[derive(Default)]
pub struct Guest {
    channel: AsyncMutex<Option<Channel<UnixStream>>>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Whether the agent has its port open, as the monitor says.
    is_open: bool,
    /// Counts connections and openings: who looks for an earlier one stops.
    generation: u64,
    info: Option<api::Guest>,
}

impl Guest {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the port of a VM's new monitor, or of one that was found. A guest that an earlier `marud` has left frozen is thawed.
    pub async fn attach(self: &Arc<Self>, monitor: UnixStream, is_open: bool) {
        *self.channel.lock().await = Some(Channel::new(monitor));
        self.set_open(is_open);
    }

    /// The agent has opened its port, or closed it.
    pub fn set_open(self: &Arc<Self>, is_open: bool) {
        let mut seen = self.seen();
        seen.is_open = is_open;
        seen.generation += 1;
        seen.info = None;
        if is_open {
            tokio::spawn(self.clone().look(seen.generation));
        }
    }

    /// The VM has ended.
    pub async fn detach(self: &Arc<Self>) {
        self.set_open(false);
        *self.channel.lock().await = None;
    }

    /// Whether an agent is there. It may still not answer.
    pub fn has_agent(&self) -> bool {
        self.seen().is_open
    }

    /// What was told last.
    pub fn info(&self) -> Option<api::Guest> {
        self.seen().info.clone()
    }

    async fn call<T: serde::de::DeserializeOwned>(
        &self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<T, AgentError> {
        if !self.has_agent() {
            return Err(AgentError::Absent);
        }
        let mut channel = self.channel.lock().await;
        channel.as_mut().ok_or(AgentError::Absent)?.call(command, arguments, limit).await
    }

    /// Asks again and again, for as long as this agent is there.
    async fn look(self: Arc<Self>, generation: u64) {
        if let Ok(status) = self.call::<String>("guest-fsfreeze-status", Value::Null, ANSWER).await
            && status == "frozen"
        {
            tracing::warn!("a guest was left frozen, and is thawed");
            self.thaw_for_certain().await;
        }
        loop {
            let info = self.ask_for_info().await;
            {
                let mut seen = self.seen();
                if seen.generation != generation {
                    return;
                }
                // An agent that is busy, or has its file systems frozen, is still what it was.
                if let Ok(info) = info {
                    seen.info = Some(info);
                }
            }
            sleep(LOOK_AGAIN).await;
            if self.seen().generation != generation {
                return;
            }
        }
    }

    async fn ask_for_info(&self) -> Result<api::Guest, AgentError> {
        let version: Version = self.call("guest-info", Value::Null, ANSWER).await?;
        // Older agents, and those of some systems, do not know all of these.
        let name: Option<HostName> = self.call("guest-get-host-name", Value::Null, ANSWER).await.ok();
        let system: Option<System> = self.call("guest-get-osinfo", Value::Null, ANSWER).await.ok();
        let cards: Vec<Card> = self.call("guest-network-get-interfaces", Value::Null, ANSWER).await.unwrap_or_default();
        Ok(api::Guest {
            agent_version: plain(&version.version),
            host_name: name.map(|name| plain(&name.host_name)),
            os: system.and_then(|system| system.pretty_name.or(system.name)).map(|name| plain(&name)),
            nets: cards.into_iter().take(MAX_LISTED).map(Card::told).collect(),
        })
    }

    /// Asks the guest to shut down. Fine means that it did not refuse: it may still take its time, or never do it.
    pub async fn shut_down(&self) -> Result<(), AgentError> {
        if !self.has_agent() {
            return Err(AgentError::Absent);
        }
        let mut channel = self.channel.lock().await;
        let channel = channel.as_mut().ok_or(AgentError::Absent)?;
        // An agent that does not answer is told from one that does as it is asked, which is not answered.
        channel.call::<Value>("guest-ping", Value::Null, ANSWER).await?;
        channel.ask("guest-shutdown", json!({ "mode": "powerdown" }), ANSWER).await
    }

    /// Has the guest write out its file systems and change nothing on them, for `limit` at most: then they are thawed, whatever became of
    /// who asked. Also if `marud` ends meanwhile: then when the next one finds the VM.
    ///
    /// # Errors
    /// When there is no agent, or it cannot do that; nothing stays frozen.
    pub async fn freeze(self: &Arc<Self>, limit: Duration) -> Result<Frozen, AgentError> {
        match self.call::<u64>("guest-fsfreeze-freeze", Value::Null, FREEZE).await {
            Ok(file_systems) => Ok(Frozen::new(self.clone(), file_systems, limit)),
            Err(AgentError::Absent) => Err(AgentError::Absent),
            Err(error) => {
                // It may have done it, or may do it yet.
                tokio::spawn({
                    let guest = self.clone();
                    async move { guest.thaw_for_certain().await }
                });
                Err(error)
            }
        }
    }

    /// Thaws, and tries again until that is done, or there is nobody to be thawed.
    async fn thaw_for_certain(&self) {
        loop {
            match self.call::<u64>("guest-fsfreeze-thaw", Value::Null, FREEZE).await {
                Ok(_) | Err(AgentError::Absent | AgentError::Refused(_)) => return,
                Err(error) => tracing::warn!("a guest is not thawed yet, trying again: {error}"),
            }
            sleep(THAW_AGAIN).await;
        }
    }
}

/// A guest whose file systems are frozen. Dropping it thaws them.
pub struct Frozen {
    guest: Arc<Guest>,
    /// How many file systems are frozen.
    pub file_systems: u64,
    deadline: Instant,
    /// Ends the time limit, and thaws.
    release: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Frozen {
    fn new(guest: Arc<Guest>, file_systems: u64, limit: Duration) -> Frozen {
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let (deadline, thawing) = (Instant::now() + limit, guest.clone());
        tokio::spawn(async move {
            tokio::select! {
                released = released => if released.is_ok() {
                    return;
                },
                () = sleep_until(deadline) => tracing::warn!("a guest was frozen for too long, and is thawed"),
            }
            thawing.thaw_for_certain().await;
        });
        Frozen { guest, file_systems, deadline, release: Some(release) }
    }

    /// Thaws the guest. Gives whether it was frozen all the time up to now: if not, what was done meanwhile is no better than a power cut.
    pub async fn thaw(mut self) -> bool {
        let in_time = Instant::now() < self.deadline;
        // What fails here is tried again by whom this was to release.
        let thawed = self.guest.call::<u64>("guest-fsfreeze-thaw", Value::Null, FREEZE).await;
        if thawed.is_ok()
            && let Some(release) = self.release.take()
        {
            let _ = release.send(());
        }
        // The agent gives the number of file systems that it had frozen.
        in_time && thawed.is_ok_and(|count| count > 0 || self.file_systems == 0)
    }
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct HostName {
    host_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct System {
    pretty_name: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Card {
    name: String,
    hardware_address: Option<String>,
    #[serde(default)]
    ip_addresses: Vec<Address>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Address {
    ip_address: String,
}

impl Card {
    fn told(self) -> api::GuestNet {
        let address = |address: &Address| address.ip_address.parse::<IpAddr>().ok().map(|address| address.to_string());
        api::GuestNet {
            name: plain(&self.name),
            mac: self.hardware_address.as_deref().map(plain),
            addresses: self.ip_addresses.iter().filter_map(address).take(MAX_LISTED).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
