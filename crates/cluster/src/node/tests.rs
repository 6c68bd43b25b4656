use std::collections::BTreeSet;
use std::time::Duration;

use store::record::{Record, from_bytes, to_bytes};
use store::{LeaseId, Leases, MemoryStore, Outcome, Revision, Store, Transaction, Watch};

use super::{Config, Guarded, Node, renewal};
use crate::records::{
    AliveRecord, Holder, HostRecord, LocalFiles, MoveReason, MoveRecord, OwnerRecord, PlacementRecord, Power, alive_key,
    move_key, owner_key, placement_key,
};
use crate::{Action, Answer, Ending, Event, HostId, Moment, Notice, VmId};

/// How the store answers.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// It does what is asked for, and says so.
    Answers,
    /// It says that nobody knows; nothing is done yet.
    Late,
}

/// One node with a store.
struct Host {
    node: Node,
    store: MemoryStore,
    watch: Watch,
    now: Moment,
    mode: Mode,
    /// Transactions that may still come.
    late: Vec<Transaction>,
    /// What was to be done with VMs, and told.
    done: Vec<String>,
    /// Renewals are not answered.
    mute: bool,
}

const H1: &str = "h1";

fn web() -> VmId {
    "web".into()
}

impl Host {
    fn new() -> Host {
        let store = MemoryStore::new();
        let record = HostRecord { memory_mib: 8192, cpus: 8, ..HostRecord::default() };
        for host in [H1, "h2"] {
            store.commit(&Transaction::new().put(HostRecord::key(host), to_bytes(&record))).unwrap();
        }
        let placement = PlacementRecord {
            power: Power::On,
            start: 1,
            memory_mib: 1024,
            vcpus: 1,
            preferred: vec![H1.into()],
            ..PlacementRecord::default()
        };
        store.commit(&Transaction::new().put(placement_key(&web()), to_bytes(&placement))).unwrap();
        let mut host = Host {
            node: Node::new(Config::new(H1.into()), Moment::default(), None, Vec::new(), BTreeSet::new()),
            watch: store.watch("", Revision(0)).unwrap(),
            store,
            now: Moment::default(),
            mode: Mode::Answers,
            late: Vec::new(),
            done: Vec::new(),
            mute: false,
        };
        host.tell(Event::Timer);
        host
    }

    /// Another node follows this one on the same host.
    fn restart(&mut self, guarded: Option<Guarded>, running: Vec<VmId>) {
        self.restart_with(guarded, running, BTreeSet::new());
    }

    fn restart_with(&mut self, guarded: Option<Guarded>, running: Vec<VmId>, bound: BTreeSet<VmId>) {
        self.node = Node::new(Config::new(H1.into()), self.now, guarded, running, bound);
        self.done.clear();
        self.tell(Event::Timer);
    }

    fn guarded(&self) -> Option<Guarded> {
        Some(Guarded { lease: self.node.lease().unwrap(), deadline: self.now + Duration::from_secs(4) })
    }

    fn tell(&mut self, event: Event) {
        let mut actions = self.node.step(self.now, event);
        loop {
            let mut events: Vec<Event> = actions.drain(..).filter_map(|action| self.act(action)).collect();
            let transactions = self.watch.try_transactions().into_iter();
            events.extend(transactions.map(|(revision, changes)| Event::Changed { revision, changes }));
            if events.is_empty() {
                return;
            }
            for event in events {
                actions.extend(self.node.step(self.now, event));
            }
        }
    }

    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Read => Some(Event::Entries(self.store.range("").unwrap())),
            Action::TakeLease { attempt } => {
                let lease = self.store.grant(Duration::from_secs(5)).unwrap().id;
                let record = to_bytes(&AliveRecord { incarnation: lease });
                let put = Transaction::new().absent(alive_key(&H1.into())).put_under(alive_key(&H1.into()), record, lease);
                Some(match self.store.commit(&put).unwrap() {
                    Outcome::Committed(_) => Event::LeaseTaken { attempt, lease },
                    Outcome::Conflict { key, .. } => Event::LeaseRefused { attempt, reason: key },
                })
            }
            Action::RenewLease { .. } if self.mute => None,
            Action::RenewLease { attempt, lease, alive } => {
                Some(match self.store.commit(&renewal(&H1.into(), lease, alive)).unwrap() {
                    Outcome::Committed(_) => Event::LeaseRenewed { attempt },
                    Outcome::Conflict { .. } => Event::LeaseEnded { lease },
                })
            }
            Action::Commit { commit, transaction } if self.mode == Mode::Late => {
                self.late.push(transaction);
                Some(Event::Committed { commit, answer: Answer::Unknown })
            }
            Action::Commit { commit, transaction } => {
                let answer = match self.store.commit(&transaction).unwrap() {
                    Outcome::Committed(revision) => Answer::Done(revision),
                    Outcome::Conflict { key, .. } => Answer::Conflict { key },
                };
                Some(Event::Committed { commit, answer })
            }
            Action::Start { vm, restore, .. } => self.note(format!("{} {vm}", if restore { "restore" } else { "start" })),
            Action::Stop(vm) => self.note(format!("stop {vm}")),
            Action::Save(vm) => self.note(format!("save {vm}")),
            Action::Kill(vm) => self.note(format!("kill {vm}")),
            Action::Tell(notice @ (Notice::LeaseLost { .. } | Notice::Unreadable(_) | Notice::GaveUp { .. })) => {
                self.note(notice.to_string())
            }
            Action::Copy { vm, to, .. } => self.note(format!("copy {vm} to {to}")),
            Action::EndCopy(vm) => self.note(format!("copy {vm} no more")),
            Action::Guard { .. } | Action::Beat { .. } | Action::Tell(_) => None,
        }
    }

    fn note(&mut self, what: String) -> Option<Event> {
        self.done.push(what);
        None
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = end.min(self.node.wake_at());
            self.tell(Event::Timer);
        }
    }

    fn ends(&mut self, ending: Ending) {
        self.tell(Event::VmEnded { vm: web(), ending });
    }

    fn owner(&self) -> Option<OwnerRecord> {
        let entry = self.store.get(&owner_key(&web())).unwrap()?;
        Some(from_bytes(&entry.key, &entry.value).unwrap())
    }

    fn took(&mut self) -> Vec<String> {
        std::mem::take(&mut self.done)
    }
}

/// h2 has a lease that the store does not end by itself. Gives it, and the revision of its record.
fn h2_lives(host: &Host) -> (LeaseId, Revision) {
    let lease = host.store.grant(Duration::from_secs(3600)).unwrap().id;
    let record = to_bytes(&AliveRecord { incarnation: lease });
    match host.store.commit(&Transaction::new().put_under(alive_key(&"h2".into()), record, lease)).unwrap() {
        Outcome::Committed(revision) => (lease, revision),
        conflict => panic!("{conflict:?}"),
    }
}

/// h2 lives, and web is to go there.
fn sent_to_h2(host: &mut Host) {
    h2_lives(host);
    let record = MoveRecord { to: "h2".into(), reason: MoveReason::User, volume: None };
    host.store.commit(&Transaction::new().put(move_key(&web()), to_bytes(&record))).unwrap();
    host.tell(Event::Timer);
}

#[test]
fn a_vm_is_placed_started_and_stopped_and_nothing_is_left_of_it() {
    let mut host = Host::new();
    assert_eq!(host.took(), ["start web"]);
    assert_eq!(host.owner().unwrap().holder.unwrap().host, HostId::from(H1));
    host.tell(Event::VmRunning(web()));
    let stop = crate::requests::stop(host.node.view(), &web()).unwrap();
    host.store.commit(&stop).unwrap();
    host.tell(Event::Timer);
    assert_eq!(host.took(), ["stop web"]);
    host.ends(Ending::Stopped);
    assert_eq!((host.owner(), host.took()), (None, vec![]));
}

#[test]
fn a_lease_ends_a_ttl_after_its_last_renewal_was_seen_however_long_it_lives_in_the_store() {
    let mut host = Host::new();
    let (lease, alive) = h2_lives(&host);
    let renew = |host: &mut Host| {
        let renewed = host.store.commit(&renewal(&"h2".into(), lease, alive)).unwrap();
        host.tell(Event::Timer);
        matches!(renewed, Outcome::Committed(_))
    };
    let lives = |host: &Host| host.store.get(&alive_key(&"h2".into())).unwrap().is_some();
    // One that was never renewed is left to the store.
    host.pass(Duration::from_secs(20));
    assert!(lives(&host));
    for _ in 0..10 {
        assert!(renew(&mut host));
        host.pass(Duration::from_millis(4999));
        assert!(lives(&host));
    }
    host.pass(Duration::from_millis(1));
    assert!(!lives(&host));
    assert!(!renew(&mut host), "a renewal after the end");
    // It comes back with another lease: what was seen of the one before is not held against it.
    h2_lives(&host);
    host.tell(Event::Timer);
    host.pass(Duration::from_secs(20));
    assert!(lives(&host));
}

#[test]
fn a_guest_that_powers_off_is_not_started_again() {
    let mut host = Host::new();
    host.tell(Event::VmRunning(web()));
    host.took();
    host.ends(Ending::PoweredOff);
    host.pass(Duration::from_secs(10));
    assert_eq!((host.owner(), host.took()), (None, vec![]));
    let entry = host.store.get(&placement_key(&web())).unwrap().unwrap();
    assert_eq!(from_bytes::<PlacementRecord>(&entry.key, &entry.value).unwrap().power, Power::Off);
}

#[test]
fn a_hand_over_that_may_still_come_rules_out_a_start() {
    let mut host = Host::new();
    host.tell(Event::VmRunning(web()));
    sent_to_h2(&mut host);
    assert_eq!(host.took(), ["start web", "save web"]);
    host.mode = Mode::Late;
    host.ends(Ending::Saved);
    host.pass(Duration::from_secs(2));
    // The hand-over is asked for again and again, and nothing is started: any of them may come.
    assert!(host.late.len() > 1);
    assert_eq!(host.took(), Vec::<String>::new());
    // The first comes now. All others come to nothing.
    let late = std::mem::take(&mut host.late);
    assert!(matches!(host.store.commit(&late[0]).unwrap(), Outcome::Committed(_)));
    assert!(late[1..].iter().all(|late| matches!(host.store.commit(late).unwrap(), Outcome::Conflict { .. })));
    host.mode = Mode::Answers;
    host.pass(Duration::from_secs(2));
    let owner = host.owner().unwrap();
    assert_eq!((owner.holder.unwrap().host, owner.saved), ("h2".into(), true));
    assert_eq!(host.took(), Vec::<String>::new());
}

#[test]
fn what_a_node_sent_before_its_end_comes_to_nothing_before_the_next_starts_the_vm() {
    let mut host = Host::new();
    host.tell(Event::VmRunning(web()));
    sent_to_h2(&mut host);
    host.mode = Mode::Late;
    host.ends(Ending::Saved);
    let late = std::mem::take(&mut host.late);
    host.mode = Mode::Answers;
    // marud crashes; the next one finds that it owns the VM, and that it does not run. Nobody told it of the hand-over.
    let guarded = host.guarded();
    host.store.commit(&Transaction::new().delete(move_key(&web()))).unwrap();
    host.restart(guarded, Vec::new());
    assert_eq!(host.took(), ["start web"]);
    assert!(late.iter().all(|late| matches!(host.store.commit(late).unwrap(), Outcome::Conflict { .. })));
}

/// A node whose host alone reaches the files of web; nothing was done yet.
fn with_files(power: Power) -> Host {
    let mut host = Host::new();
    host.took();
    let key = placement_key(&web());
    let entry = host.store.get(&key).unwrap().unwrap();
    let placement: PlacementRecord = from_bytes(&entry.key, &entry.value).unwrap();
    let local = LocalFiles { host: H1.into(), volumes: [("local".to_owned(), 100)].into() };
    let record = PlacementRecord { power, volumes: ["local@h1".to_owned()].into(), local: Some(local), ..placement };
    let reached = HostRecord { memory_mib: 8192, cpus: 8, volumes: record.volumes.clone(), ..HostRecord::default() };
    let transaction = Transaction::new().put(key, to_bytes(&record)).put(HostRecord::key(H1), to_bytes(&reached));
    host.store.commit(&transaction).unwrap();
    host.tell(Event::VmRunning(web()));
    host
}

/// A node that runs web as bound to its host.
fn with_bound() -> Host {
    let mut host = with_files(Power::On);
    host.ends(Ending::Crashed("panic".into()));
    host.tell(Event::VmRunning(web()));
    assert_eq!(host.took(), ["start web"]);
    assert!(host.owner().unwrap().bound);
    host
}

/// Others have ended this host's lease.
fn lose_lease(host: &mut Host) {
    host.store.commit(&Transaction::new().delete(alive_key(&H1.into()))).unwrap();
    host.pass(Duration::from_secs(1));
}

const NONE_ENDS: &str = "the lease could not be proven in time: 0 VM(s) are killed here and may start elsewhere";

/// Whether web is this host's in its present life, and bound to it.
fn is_claimed(host: &Host) -> bool {
    let owner = host.owner().unwrap();
    owner.bound && owner.holder.unwrap() == Holder { host: H1.into(), incarnation: host.node.lease().unwrap() }
}

#[test]
fn a_bound_vm_runs_on_without_a_lease_and_the_next_life_of_its_host_has_it() {
    let mut host = with_bound();
    lose_lease(&mut host);
    assert_eq!(host.took(), [NONE_ENDS]);
    assert!(is_claimed(&host));
    // The same when the program around the node is another one then.
    host.store.commit(&Transaction::new().delete(alive_key(&H1.into()))).unwrap();
    host.restart_with(None, vec![web()], [web()].into());
    host.pass(Duration::from_secs(1));
    assert_eq!(host.took(), Vec::<String>::new());
    assert!(is_claimed(&host));
    // One that was not started as bound ends, whatever the record says, and is started anew.
    host.store.commit(&Transaction::new().delete(alive_key(&H1.into()))).unwrap();
    host.restart(None, vec![web()]);
    assert_eq!(host.took(), ["kill web"]);
    host.ends(Ending::Killed);
    host.pass(Duration::from_secs(2));
    assert_eq!(host.took(), ["start web"]);
}

#[test]
fn a_bound_vm_that_someone_has_taken_away_ends_with_the_next_lease() {
    let mut host = with_bound();
    let owner = OwnerRecord { holder: None, bound: false, ..host.owner().unwrap() };
    host.store.commit(&Transaction::new().put(owner_key(&web()), to_bytes(&owner)).delete(alive_key(&H1.into()))).unwrap();
    host.pass(Duration::from_secs(1));
    assert_eq!(host.took(), [NONE_ENDS, "kill web"]);
}

#[test]
fn what_became_of_a_bound_vm_without_a_lease_is_told_with_the_next() {
    let mut host = with_bound();
    host.mute = true;
    host.pass(Duration::from_secs(4));
    assert_eq!(host.took(), [NONE_ENDS]);
    host.ends(Ending::PoweredOff);
    assert!(host.owner().is_some(), "nothing can be said without a lease");
    host.mute = false;
    lose_lease(&mut host);
    assert_eq!((host.owner(), host.took()), (None, vec![]));
    let entry = host.store.get(&placement_key(&web())).unwrap().unwrap();
    assert_eq!(from_bytes::<PlacementRecord>(&entry.key, &entry.value).unwrap().power, Power::Off);
}

/// What the program says when the files are on h2.
fn copied(host: &mut Host) {
    let result = Ok(Transaction::new().absent("copied").put("copied", "to h2"));
    host.tell(Event::VmCopied { vm: web(), result });
}

#[test]
fn a_vm_is_given_away_with_its_files_or_not_at_all() {
    let mut host = with_files(Power::On);
    sent_to_h2(&mut host);
    assert_eq!(host.took(), ["save web"]);
    host.ends(Ending::Saved);
    host.pass(Duration::from_secs(60));
    assert_eq!(host.took(), ["copy web to h2"]);
    assert_eq!(host.owner().unwrap().holder.unwrap().host, HostId::from(H1), "nothing was given away");
    copied(&mut host);
    let owner = host.owner().unwrap();
    assert_eq!((owner.holder.unwrap().host, owner.saved, owner.home), ("h2".into(), true, None));
    assert_eq!(host.store.get("copied").unwrap().unwrap().value, b"to h2");
    assert_eq!(host.took(), Vec::<String>::new());
}

#[test]
fn a_vm_whose_files_cannot_be_copied_goes_on_where_it_was_also_when_that_is_drained() {
    let mut host = with_files(Power::On);
    sent_to_h2(&mut host);
    let drain = crate::requests::drain(host.node.view(), &H1.into()).unwrap();
    host.store.commit(&drain).unwrap();
    host.ends(Ending::Saved);
    assert_eq!(host.took(), ["save web", "copy web to h2"]);
    host.tell(Event::VmCopied { vm: web(), result: Err("h2 is full".into()) });
    assert_eq!(host.took(), ["restore web"]);
    assert_eq!(host.owner().unwrap().holder.unwrap().host, HostId::from(H1));
    assert_eq!(host.store.get(&move_key(&web())).unwrap(), None);
}

#[test]
fn copying_ends_when_the_move_does_and_the_vm_goes_on() {
    let mut host = with_files(Power::On);
    sent_to_h2(&mut host);
    host.ends(Ending::Saved);
    host.took();
    host.store.commit(&Transaction::new().delete(move_key(&web()))).unwrap();
    host.tell(Event::Timer);
    host.pass(Duration::from_secs(10));
    assert_eq!(host.took(), ["copy web no more"], "it is not started while its files may be read");
    host.tell(Event::VmCopied { vm: web(), result: Err("it was called off".into()) });
    assert_eq!(host.took(), ["restore web"]);
}

#[test]
fn a_vm_that_is_off_goes_with_its_files_unless_it_is_started_first() {
    let off = || {
        let mut host = with_files(Power::Off);
        host.ends(Ending::Stopped);
        assert_eq!((host.owner(), host.took()), (None, vec!["stop web".to_owned()]));
        h2_lives(&host);
        host.tell(Event::Timer);
        let moved = crate::requests::move_vm(host.node.view(), &web(), &"h2".into(), None).unwrap();
        host.store.commit(&moved).unwrap();
        host.tell(Event::Timer);
        assert_eq!(host.took(), ["copy web to h2"]);
        host
    };
    let mut host = off();
    copied(&mut host);
    assert!(host.store.get("copied").unwrap().is_some());
    assert_eq!((host.owner(), host.store.get(&move_key(&web())).unwrap()), (None, None));

    let mut host = off();
    let start = crate::requests::start(host.node.view(), &web()).unwrap();
    host.store.commit(&start).unwrap();
    host.tell(Event::Timer);
    assert_eq!(host.took(), ["copy web no more"]);
    // It was done just then, which comes to nothing.
    copied(&mut host);
    assert_eq!(host.took(), ["start web"]);
    assert_eq!(host.store.get("copied").unwrap(), None);
}

#[test]
fn copies_of_what_was_given_away_in_vain_are_asked_for_again() {
    let mut host = with_files(Power::On);
    sent_to_h2(&mut host);
    host.ends(Ending::Saved);
    host.took();
    host.store.commit(&Transaction::new().put("copied", "by someone else")).unwrap();
    copied(&mut host);
    host.pass(Duration::from_secs(1));
    assert_eq!(host.took(), ["copy web to h2"]);
    assert_eq!(host.owner().unwrap().holder.unwrap().host, HostId::from(H1));
}

#[test]
fn a_restarted_node_leaves_its_vms_alone() {
    let mut host = Host::new();
    host.tell(Event::VmRunning(web()));
    let (guarded, before) = (host.guarded(), host.owner());
    host.restart(guarded, vec![web()]);
    host.pass(Duration::from_secs(20));
    assert_eq!((host.took(), host.owner()), (vec![], before));
}

#[test]
fn saved_memory_is_restored_once() {
    let mut host = Host::new();
    host.tell(Event::VmRunning(web()));
    host.took();
    host.ends(Ending::Saved);
    assert_eq!(host.took(), ["restore web"]);
    // The mark is gone before it runs: whatever happens now, an old state does not come back.
    assert!(!host.owner().unwrap().saved);
    host.ends(Ending::Crashed("a fault".into()));
    assert_eq!(host.took(), ["start web"]);
}

#[test]
fn more_moves_that_lead_nowhere_than_a_transaction_holds_are_called_off() {
    let mut host = Host::new();
    let vms = (0..200).map(|number| VmId::from(format!("vm{number}")));
    for some in vms.collect::<Vec<_>>().chunks(50) {
        let moved = some.iter().fold(Transaction::new(), |transaction, vm| {
            let moving = MoveRecord { to: "h9".into(), reason: MoveReason::User, volume: None };
            transaction.put(placement_key(vm), to_bytes(&PlacementRecord::default())).put(move_key(vm), to_bytes(&moving))
        });
        host.store.commit(&moved).unwrap();
    }
    host.tell(Event::Timer);
    host.pass(Duration::from_secs(5));
    assert_eq!(host.store.range("moves/").unwrap().entries, []);
}

/// h1 is about to be switched off.
fn goes_down(host: &mut Host) {
    host.tell(Event::VmRunning(web()));
    host.took();
    let down = crate::requests::go_down(host.node.view(), &H1.into(), "first").unwrap();
    host.store.commit(&down).unwrap();
    host.tell(Event::Timer);
}

#[test]
fn a_vm_that_no_other_host_takes_is_saved_when_its_host_goes_down_and_goes_on_when_it_is_back() {
    let mut host = Host::new();
    goes_down(&mut host);
    assert_eq!(host.took(), ["save web"]);
    host.ends(Ending::Saved);
    host.pass(Duration::from_secs(5));
    let owner = host.owner().unwrap();
    assert_eq!((owner.holder, owner.saved, host.node.runs_vms(), host.took()), (None, true, false, vec![]));
    let record = host.node.view().host(&H1.into()).unwrap().record.clone().unwrap().record;
    host.store.commit(&Transaction::new().put(HostRecord::key(H1), to_bytes(&record.started("second")))).unwrap();
    host.pass(Duration::from_secs(1));
    assert_eq!(host.took(), ["restore web"]);
    assert_eq!(host.owner().unwrap().home, None);
}

#[test]
fn a_vm_that_another_host_takes_leaves_one_that_goes_down_and_knows_where_it_was() {
    let mut host = Host::new();
    h2_lives(&host);
    goes_down(&mut host);
    assert_eq!(host.took(), ["save web"]);
    host.ends(Ending::Saved);
    let owner = host.owner().unwrap();
    assert_eq!((owner.holder.unwrap().host, owner.saved, owner.home.unwrap().host), ("h2".into(), true, H1.into()));
}

#[test]
fn a_vm_that_cannot_be_saved_is_shut_down_when_its_host_goes_down_and_is_still_to_run() {
    let mut host = Host::new();
    goes_down(&mut host);
    assert_eq!(host.took(), ["save web"]);
    host.tell(Event::VmRunning(web()));
    assert_eq!(host.took(), ["stop web"]);
    host.ends(Ending::PoweredOff);
    let owner = host.owner().unwrap();
    assert_eq!((owner.holder, owner.saved, owner.failures.len()), (None, false, 0));
    let entry = host.store.get(&placement_key(&web())).unwrap().unwrap();
    assert_eq!(from_bytes::<PlacementRecord>(&entry.key, &entry.value).unwrap().power, Power::On);
}

#[test]
fn a_lease_that_was_not_proven_in_time_is_lost_whatever_comes_later() {
    let mut host = Host::new();
    host.tell(Event::VmRunning(web()));
    host.took();
    host.mute = true;
    host.pass(Duration::from_millis(3999));
    assert_eq!(host.took(), Vec::<String>::new());
    let attempt = host.node.count;
    host.now = host.now + Duration::from_millis(1);
    host.tell(Event::LeaseRenewed { attempt });
    assert_eq!(
        host.took(),
        ["the lease could not be proven in time: 1 VM(s) are killed here and may start elsewhere", "kill web"]
    );
    assert_eq!(host.node.lease(), None);
}

#[test]
fn a_vm_that_fails_too_often_is_given_up() {
    let mut host = Host::new();
    host.tell(Event::WallClock { unix_s: 1_000_000 });
    host.took();
    for _ in 0..3 {
        host.ends(Ending::StartFailed("no disk".into()));
        assert_eq!(host.took(), ["start web"]);
    }
    host.ends(Ending::StartFailed("no disk".into()));
    let told = host.took();
    assert!(told[0].contains("no disk, after 3 restart(s) in 3600 s; `maru vm start web` tries anew"), "{told:?}");
    assert_eq!(told.len(), 1);
    let start = crate::requests::start(host.node.view(), &web()).unwrap();
    host.store.commit(&start).unwrap();
    host.tell(Event::Timer);
    assert_eq!(host.took(), ["start web"]);
}

#[test]
fn failures_that_are_long_ago_do_not_count() {
    let mut host = Host::new();
    for hour in 1..10 {
        host.tell(Event::WallClock { unix_s: 1_000_000 + hour * 2000 });
        host.took();
        host.ends(Ending::Crashed("a fault".into()));
        assert_eq!(host.took(), ["start web"]);
    }
}

#[test]
fn records_that_cannot_be_read_are_told_and_stop_nothing_else() {
    let mut host = Host::new();
    host.took();
    let junk = Transaction::new().put("owners/web", "junk").put("hosts/h2", "{}").put("alive/", "").put("moves/x/y", "[]");
    host.store.commit(&junk).unwrap();
    host.tell(Event::Timer);
    let told = host.took();
    assert!(told.iter().any(|told| told.contains("'owners/web' is malformed")), "{told:?}");
    // Whoever owns it is not known, so it is not run here, nor given to anybody; and it is told once.
    assert!(told.contains(&"kill web".into()));
    host.ends(Ending::Killed);
    host.pass(Duration::from_secs(700));
    assert_eq!(host.took(), Vec::<String>::new());
    assert_eq!(host.store.get("owners/web").unwrap().unwrap().value, b"junk");
}

#[test]
fn what_a_vm_needs_holds_on_when_it_cannot_be_read_any_more() {
    let mut host = Host::new();
    host.tell(Event::VmRunning(web()));
    host.took();
    host.store.commit(&Transaction::new().put("placements/web", "{}")).unwrap();
    host.pass(Duration::from_secs(700));
    let told = host.took();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(host.owner().unwrap().holder.unwrap().host, HostId::from(H1));
}
