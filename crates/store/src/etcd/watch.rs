//! A watch that goes from member to member.
//!
//! ```text
//!           a change, a sign of life                silent for QUIET
//!   ┌────▶ following ─────────────────────────────▶ asked for a sign of life
//!   │          │ ended, cancelled, no leader               │ silent for QUIET again
//!   └──────────┴───────── the next member ◀────────────────┘
//! ```
//!
//! It begins with the last change that was told, whose repetition is passed over: etcd has had faults in how it compacts the very first
//! revision of a watch. The revision in a sign of life is used for nothing: etcd 3.4.23 can be ahead of its own watch with it.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc::{Sender, channel};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::endpoints::{Door, Endpoints, Repeat, exchange};
use super::wire::{self, WatchAction};
use super::{RANGE, ask, interval, newest, number, revision, revision_of, text};
use crate::watch::{Feed, feed};
use crate::{Changed, Revision, StoreError, Watch};

const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// How long a member may be silent before it is asked for a sign of life, and then until it is left.
const QUIET: Duration = Duration::from_millis(1500);
/// Between two members.
const PAUSE: Duration = Duration::from_millis(50);

/// Begins a watch.
pub(super) async fn begin(
    endpoints: Arc<Endpoints>,
    runtime: &Handle,
    prefix: &str,
    after: Revision,
) -> Result<Watch, StoreError> {
    // Looking back to that revision fails in just the cases in which a watch from there would have gaps.
    let (key, range_end) = interval(prefix);
    let question = wire::RangeRequest { key, range_end, limit: 1, revision: number(after).max(1), keys_only: true };
    let answer = match ask::<_, wire::RangeResponse>(&endpoints, Repeat::Harmless, RANGE, question).await {
        Err(StoreError::Refused(status)) if status.code() == Code::OutOfRange => {
            return Err(StoreError::NotKnown { after, newest: newest(&endpoints).await? });
        }
        answer => answer?,
    };
    let (feed, watch) = feed(Vec::new());
    let cluster = cluster_of(answer.header.as_ref());
    let mut follower = Follower { endpoints, prefix: prefix.into(), told: after, cluster, feed };
    runtime.spawn(async move { follower.run().await });
    Ok(watch)
}

/// Why a member is not followed any more.
enum Left {
    /// Another one may do better.
    ForAnother,
    /// Nobody listens, or has been told that it is over.
    ForGood,
}

struct Follower {
    endpoints: Arc<Endpoints>,
    prefix: String,
    /// Everything up to this revision was told.
    told: Revision,
    /// The cluster that it is about.
    cluster: u64,
    feed: Feed,
}

impl Follower {
    async fn run(&mut self) {
        while self.feed.is_heard() {
            if let Some((door, turn)) = self.endpoints.door() {
                match self.follow(&door).await {
                    Left::ForGood => return,
                    Left::ForAnother => self.endpoints.pass_over(turn),
                }
            }
            sleep(PAUSE).await;
        }
    }

    async fn follow(&mut self, door: &Door) -> Left {
        let (requests, questions) = channel(2);
        let create = self.create();
        let begun = async {
            let stream = exchange::<_, wire::WatchResponse, _>(door.channel().await?, WATCH, ReceiverStream::new(questions));
            send(&requests, create);
            stream.await
        };
        let Ok(Ok(mut stream)) = timeout(self.endpoints.patience(), begun).await else {
            door.close().await;
            return Left::ForAnother;
        };
        let mut asked = false;
        loop {
            match timeout(QUIET, stream.message()).await {
                Ok(Ok(Some(response))) => {
                    asked = false;
                    if let Some(left) = self.take(response) {
                        return left;
                    }
                }
                Ok(_) => return Left::ForAnother,
                Err(_) if asked => {
                    door.close().await;
                    return Left::ForAnother;
                }
                Err(_) if !self.feed.is_heard() => return Left::ForGood,
                Err(_) => {
                    send(&requests, WatchAction::Progress(wire::WatchProgressRequest {}));
                    asked = true;
                }
            }
        }
    }

    fn create(&self) -> WatchAction {
        let (key, range_end) = interval(&self.prefix);
        WatchAction::Create(wire::WatchCreateRequest { key, range_end, start_revision: number(self.told).max(1) })
    }

    /// Tells of what a member says.
    fn take(&mut self, response: wire::WatchResponse) -> Option<Left> {
        let another = cluster_of(response.header.as_ref()) != self.cluster;
        if another || response.compact_revision > 0 {
            let newest = revision_of(response.header.as_ref());
            self.feed.end(StoreError::NotKnown { after: self.told, newest });
            return Some(Left::ForGood);
        }
        if response.canceled {
            return Some(Left::ForAnother);
        }
        let already = self.told;
        // A response has whole revisions.
        let changes = response.events.into_iter().filter_map(|event| {
            let kv = event.kv?;
            Some(Changed {
                key: text(kv.key),
                value: (event.kind != wire::DELETE).then_some(kv.value),
                revision: revision(kv.mod_revision),
            })
        });
        let new: Vec<Changed> = changes.filter(|change| change.revision > already).collect();
        self.told = new.iter().map(|change| change.revision).max().unwrap_or(already).max(already);
        (!self.feed.tell(new)).then_some(Left::ForGood)
    }
}

fn cluster_of(header: Option<&wire::Header>) -> u64 {
    header.map_or(0, |header| header.cluster)
}

fn send(requests: &Sender<wire::WatchRequest>, action: WatchAction) {
    // There is room: a question is only sent when the one before was answered. Otherwise the member is found silent, and left.
    let _ = requests.try_send(wire::WatchRequest { action: Some(action) });
}
