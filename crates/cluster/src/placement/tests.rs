use std::collections::BTreeSet;

use store::record::{Record, to_bytes};
use store::{Entry, LeaseId, Revision, Snapshot};

use super::{Fate, Verdict, Way};
use crate::records::{
    Affinity, AliveRecord, GroupRule, Holder, HostRecord, HostWanted, LocalFiles, OwnerRecord, PlacementRecord, PolicyRecord,
    Power, Priority, Scope, Strength,
};
use crate::{HostId, View, VmId};

/// A cluster in the making: hosts that live, and VMs where they are.
#[derive(Default)]
struct Cluster {
    entries: Vec<Entry>,
}

impl Cluster {
    fn put<T: Record>(&mut self, name: &str, record: &T) {
        let revision = Revision(self.entries.len() as u64 + 1);
        self.entries.push(Entry { key: T::key(name), value: to_bytes(record), revision, lease: None });
    }

    fn host(mut self, name: &str, change: impl FnOnce(&mut HostRecord)) -> Cluster {
        let mut record = HostRecord { memory_mib: 8192, cpus: 8, ..HostRecord::default() };
        change(&mut record);
        self.put(name, &record);
        self.put(name, &AliveRecord { incarnation: LeaseId(1) });
        self
    }

    fn vm(mut self, name: &str, on: Option<&str>, change: impl FnOnce(&mut PlacementRecord)) -> Cluster {
        let mut record = PlacementRecord { power: Power::On, memory_mib: 1024, vcpus: 1, ..PlacementRecord::default() };
        change(&mut record);
        self.put(name, &record);
        if let Some(host) = on {
            let holder = Some(Holder { host: host.into(), incarnation: LeaseId(1) });
            self.put(name, &OwnerRecord { holder, ..OwnerRecord::default() });
        }
        self
    }

    fn view(mut self) -> View {
        self.entries.sort_by(|a, b| a.key.cmp(&b.key));
        let mut view = View::default();
        let (_, errors) = view.replace(&Snapshot { revision: Revision(self.entries.len() as u64), entries: self.entries });
        assert!(errors.is_empty(), "{errors:?}");
        view
    }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn best(view: &mut View, vm: &str) -> Result<String, String> {
    view.best_host(&vm.into(), 0, Way::Start).map(String::from)
}

fn rule(affinity: Affinity, scope: Scope, strength: Strength) -> Vec<GroupRule> {
    vec![GroupRule { group: "web".into(), affinity, scope, strength }]
}

/// The only reason against a host.
fn refusal(verdicts: &[Verdict], host: &str) -> String {
    let verdict = verdicts.iter().find(|verdict| verdict.host.as_str() == host).unwrap();
    assert_eq!((verdict.score, verdict.reasons.len()), (None, 1), "{verdict:?}");
    verdict.reasons[0].to_string()
}

#[test]
fn every_reason_against_a_host_is_named() {
    let view = Cluster::default()
        .host("drained", |host| host.wanted = HostWanted::Drained)
        .host("full", |host| host.memory_mib = 1000)
        .host("small", |host| host.cpus = 1)
        .host("far", |host| host.volumes = names(&[]))
        .host("old", |host| host.cpu_features = names(&["sse"]))
        .host("other", |_| ())
        .host("good", |_| ())
        .vm("web", None, |vm| {
            vm.vcpus = 2;
            vm.possible = ["drained", "full", "small", "far", "old", "good"].map(HostId::from).into();
        });
    let mut cluster = view;
    // The volumes and features that the others have.
    for entry in &mut cluster.entries {
        let Some(name) = entry.key.strip_prefix(HostRecord::PREFIX).map(str::to_owned) else { continue };
        let mut record: HostRecord = store::record::from_bytes(&entry.key, &entry.value).unwrap();
        if name != "far" {
            record.volumes = names(&["shared"]);
        }
        if name != "old" {
            record.cpu_features = names(&["sse", "avx"]);
        }
        entry.value = to_bytes(&record);
    }
    let mut view = cluster
        .vm("needy", None, |vm| {
            (vm.vcpus, vm.volumes, vm.cpu_features) = (2, names(&["shared"]), names(&["avx"]));
            vm.possible = ["drained", "full", "small", "far", "old", "good"].map(HostId::from).into();
        })
        .view();
    let verdicts = view.explain(&"needy".into(), 0);
    assert_eq!(refusal(&verdicts, "drained"), "it is drained");
    assert_eq!(refusal(&verdicts, "full"), "1024 MiB of memory are needed and 1000 MiB are free");
    assert_eq!(refusal(&verdicts, "small"), "2 processors are needed and it has 1");
    assert_eq!(refusal(&verdicts, "far"), "it does not reach the volume shared");
    assert_eq!(refusal(&verdicts, "old"), "its processors do not have avx");
    assert_eq!(refusal(&verdicts, "other"), "it is none of the hosts that the VM may run on");
    assert_eq!((verdicts[0].host.as_str(), verdicts.len()), ("good", 7));
    assert_eq!(best(&mut view, "needy").unwrap(), "good");
}

#[test]
fn what_speaks_for_a_host_adds_up_to_its_score() {
    let view = Cluster::default()
        .host("h1", |_| ())
        .host("h2", |_| ())
        .vm("web", Some("h1"), |vm| {
            vm.preferred = vec!["h2".into()];
            vm.groups = rule(Affinity::Apart, Scope::Host, Strength::Soft);
        })
        .vm("other", Some("h2"), |vm| vm.groups = rule(Affinity::Apart, Scope::Host, Strength::Soft))
        .view();
    for verdict in view.explain(&"web".into(), 0) {
        use super::Reason::{Close, FailedHere, FreeCpus, FreeMemory, Near, Preferred, RanHere};
        let points = verdict.reasons.iter().map(|reason| match reason {
            FreeMemory(points) | FreeCpus(points) | Preferred(points) | RanHere(points) | FailedHere(points) => *points,
            Close(_, points) | Near(_, points) => *points,
            against => panic!("{against}"),
        });
        assert_eq!(verdict.score, Some(points.sum()), "{verdict:?}");
    }
}

#[test]
fn vms_spread_by_free_memory_and_the_preferred_host_comes_first() {
    let mut view = Cluster::default()
        .host("h1", |_| ())
        .host("h2", |_| ())
        .vm("big", Some("h1"), |vm| vm.memory_mib = 4096)
        .vm("web", None, |_| ())
        .vm("choosy", None, |vm| vm.preferred = vec!["h3".into(), "h1".into()])
        .view();
    assert_eq!(best(&mut view, "web").unwrap(), "h2");
    assert_eq!(best(&mut view, "choosy").unwrap(), "h1");
}

#[test]
fn hard_rules_are_kept_and_soft_ones_where_they_can_be() {
    let cluster = |strength, affinity, scope| {
        Cluster::default()
            .host("h1", |host| host.fault_domain = Some("rack1".into()))
            .host("h2", |host| host.fault_domain = Some("rack1".into()))
            .host("h3", |host| host.fault_domain = Some("rack2".into()))
            .vm("first", Some("h1"), |vm| vm.groups = rule(affinity, scope, strength))
            .vm("large", Some("h3"), |vm| vm.memory_mib = 6000)
            .vm("web", None, |vm| vm.groups = rule(affinity, scope, strength))
            .view()
    };
    assert_eq!(best(&mut cluster(Strength::Hard, Affinity::Apart, Scope::Host), "web").unwrap(), "h2");
    assert_eq!(best(&mut cluster(Strength::Hard, Affinity::Apart, Scope::FaultDomain), "web").unwrap(), "h3");
    assert_eq!(best(&mut cluster(Strength::Soft, Affinity::Apart, Scope::FaultDomain), "web").unwrap(), "h3");
    assert_eq!(best(&mut cluster(Strength::Hard, Affinity::Together, Scope::Host), "web").unwrap(), "h1");
    assert_eq!(best(&mut cluster(Strength::Soft, Affinity::Together, Scope::Host), "web").unwrap(), "h1");
    let mut full = cluster(Strength::Hard, Affinity::Apart, Scope::FaultDomain);
    let refused = |view: &mut View| best(view, "web").unwrap_err();
    let view = Cluster::default()
        .host("h1", |_| ())
        .vm("first", Some("h1"), |vm| vm.groups = rule(Affinity::Apart, Scope::Host, Strength::Hard))
        .vm("web", None, |vm| vm.groups = rule(Affinity::Apart, Scope::Host, Strength::Hard));
    assert_eq!(refused(&mut view.view()), "h1: VMs of the group web must be apart, and one is here");
    let view = Cluster::default()
        .host("h1", |_| ())
        .vm("first", Some("h1"), |vm| vm.groups = rule(Affinity::Apart, Scope::Host, Strength::Soft))
        .vm("web", None, |vm| vm.groups = rule(Affinity::Apart, Scope::Host, Strength::Soft));
    assert_eq!(best(&mut view.view(), "web").unwrap(), "h1");
    // A VM's own group does not count it where it is.
    assert!(full.suits(&"first".into(), &"h1".into(), 0));
}

#[test]
fn a_start_that_would_not_survive_a_failure_is_refused_with_the_number() {
    let cluster = |memory_mib: u64, survive_failures| {
        let mut cluster = Cluster::default()
            .host("h1", |_| ())
            .host("h2", |host| host.memory_mib = 4096)
            .vm("there", Some("h1"), |vm| vm.memory_mib = 3072)
            .vm("web", None, |vm| vm.memory_mib = memory_mib);
        cluster.put("policy", &PolicyRecord { survive_failures });
        cluster.view()
    };
    let refusal = |memory_mib, failures| cluster(memory_mib, failures).not_admitted(&"web".into());
    assert_eq!(refusal(1024, 1), None);
    assert!(refusal(1025, 1).unwrap().contains("and 1 MiB would be missing"));
    assert_eq!(refusal(1025, 0), None);
    assert!(refusal(1, 2).unwrap().contains("3073 MiB"));
    assert!(refusal(1, u32::MAX).unwrap().contains("3073 MiB"));
}

#[test]
fn a_vm_goes_where_there_is_room_for_its_files_and_is_started_where_they_are() {
    let local = |free: u64| [("local".to_owned(), free)].into();
    let mut view = Cluster::default()
        .host("h1", |host| (host.volumes, host.local, host.wanted) = (names(&["local@h1"]), local(0), HostWanted::Drained))
        .host("h2", |host| (host.volumes, host.local) = (names(&["local@h2", "shared"]), local(4000)))
        .host("h3", |host| host.local = local(5000))
        .host("h4", |_| ())
        .vm("web", Some("h1"), |vm| {
            vm.volumes = names(&["local@h1"]);
            vm.local = Some(LocalFiles { host: "h1".into(), volumes: local(4500) });
        })
        .view();
    let way = |volume, runs| Way::Move { volume, runs };
    assert_eq!(view.best_host(&"web".into(), 0, way(None, true)), Ok("h3".into()));
    let verdicts = view.explain_move(&"web".into(), 0, None);
    let small = "copies of the VM's files need 4500 MiB on its volume local, and 4000 MiB are free";
    assert_eq!(refusal(&verdicts, "h2"), small);
    assert_eq!(refusal(&verdicts, "h4"), "it has no volume local for copies of the VM's files");
    // What is free on a volume that others see, too, is not known here.
    assert_eq!(view.best_host(&"web".into(), 0, way(Some("shared"), true)), Ok("h2".into()));
    // Started, it is only there.
    assert_eq!(refusal(&view.explain(&"web".into(), 0), "h3"), "it does not reach the volume local@h1");
    assert!(view.best_host(&"web".into(), 0, Way::Start).is_err());
    assert!(view.what_if(&["h1".into()]).left_out().count() == 1, "a host that fails takes its files with it");
}

#[test]
fn one_that_is_off_needs_memory_that_there_is_and_not_memory_that_is_free() {
    let local = || [("local".to_owned(), 100)].into();
    let mut view = Cluster::default()
        .host("h1", |host| host.wanted = HostWanted::Drained)
        .host("h2", |host| (host.local, host.memory_mib) = (local(), 2048))
        .vm("there", Some("h2"), |vm| vm.memory_mib = 2000)
        .vm("web", None, |vm| (vm.power, vm.local) = (Power::Off, Some(LocalFiles { host: "h1".into(), volumes: local() })))
        .vm("big", None, |vm| {
            (vm.memory_mib, vm.local) = (4096, Some(LocalFiles { host: "h1".into(), volumes: local() }));
        })
        .view();
    let mut best = |vm: &str, runs| view.best_host(&vm.into(), 0, Way::Move { volume: None, runs });
    assert_eq!(best("web", false), Ok("h2".into()));
    assert!(best("web", true).is_err() && best("big", false).is_err());
}

#[test]
fn what_if_says_who_goes_where_and_who_fits_nowhere() {
    let view = Cluster::default()
        .host("h1", |_| ())
        .host("h2", |host| host.memory_mib = 3072)
        .vm("low", Some("h1"), |vm| (vm.priority, vm.memory_mib) = (Priority::Low, 2048))
        .vm("high", Some("h1"), |vm| (vm.priority, vm.memory_mib) = (Priority::High, 2048))
        .vm("off", Some("h1"), |vm| vm.power = Power::Off)
        .vm("there", Some("h2"), |_| ())
        .view();
    let outlook = view.what_if(&["h1".into()]);
    assert_eq!(outlook.fates[0], (VmId::from("high"), Fate::Goes("h2".into())));
    let left_out: Vec<(&VmId, &str)> = outlook.left_out().collect();
    let reason = "h1: it holds no lease; h2: 2048 MiB of memory are needed and 0 MiB are free";
    assert_eq!(left_out, [(&VmId::from("low"), reason)]);
    assert_eq!(outlook.fates.len(), 2);
    assert!(view.what_if(&["nowhere".into()]).fates.is_empty());
}

/// Whatever changes and in whichever order, the indexes are those of a view that is made anew.
#[test]
fn indexes_follow_all_changes() {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut entries: std::collections::BTreeMap<String, Entry> = std::collections::BTreeMap::new();
    let mut view = View::default();
    for step in 1..3000 {
        let (vm, host) = (format!("vm{}", rng.u32(0..6)), format!("h{}", rng.u32(0..4)));
        let groups = || rule(Affinity::Apart, Scope::FaultDomain, Strength::Hard);
        let (key, value) = match rng.u32(0..5) {
            0 => {
                let fault_domain = rng.bool().then(|| "rack".into());
                let wanted = if rng.bool() { HostWanted::Active } else { HostWanted::Drained };
                let record = HostRecord { memory_mib: rng.u64(0..9000), cpus: 4, fault_domain, wanted, ..HostRecord::default() };
                (HostRecord::key(&host), to_bytes(&record))
            }
            1 => (AliveRecord::key(&host), to_bytes(&AliveRecord { incarnation: LeaseId(rng.i64(1..3)) })),
            2 => {
                let power = if rng.bool() { Power::On } else { Power::Off };
                let memory_mib = rng.u64(0..3000);
                let local = rng.bool().then(|| LocalFiles { host: host.as_str().into(), volumes: [("local".into(), 1)].into() });
                let record =
                    PlacementRecord { power, memory_mib, local, vcpus: 1, groups: groups(), ..PlacementRecord::default() };
                (PlacementRecord::key(&vm), to_bytes(&record))
            }
            3 => {
                let holder = rng.bool().then(|| Holder { host: host.as_str().into(), incarnation: LeaseId(rng.i64(1..3)) });
                (OwnerRecord::key(&vm), to_bytes(&OwnerRecord { holder, ..OwnerRecord::default() }))
            }
            _ => {
                let record = crate::records::MoveRecord {
                    to: host.as_str().into(),
                    reason: crate::records::MoveReason::User,
                    volume: None,
                };
                (crate::records::MoveRecord::key(&vm), to_bytes(&record))
            }
        };
        let revision = Revision(step);
        let value = (rng.u32(0..3) > 0).then_some(value);
        match &value {
            Some(value) => entries.insert(key.clone(), Entry { key: key.clone(), value: value.clone(), revision, lease: None }),
            None => entries.remove(&key),
        };
        view.change(revision, &[store::Changed { key, value, revision }]);
        let mut anew = View::default();
        anew.replace(&Snapshot { revision, entries: entries.values().cloned().collect() });
        let homeless = |view: &View| view.homeless().cloned().collect::<Vec<_>>();
        let leftover = |view: &View| view.leftover().cloned().collect::<Vec<_>>();
        assert_eq!((homeless(&view), leftover(&view)), (homeless(&anew), leftover(&anew)), "step {step}");
        let keeps = |view: &View| view.hosts().flat_map(|(_, host)| host.keeps.iter().cloned()).collect::<Vec<_>>();
        assert_eq!(keeps(&view), keeps(&anew), "step {step}");
        for vm in (0..6).map(|number| VmId::from(format!("vm{number}"))) {
            let judged = |view: &View| {
                let mut judged: Vec<(HostId, Option<i64>, String)> = view
                    .explain(&vm, 0)
                    .into_iter()
                    .map(|verdict| (verdict.host, verdict.score, format!("{:?}", verdict.reasons)))
                    .filter(|(host, _, _)| entries.contains_key(&HostRecord::key(host.as_str())))
                    .collect();
                judged.sort();
                judged
            };
            assert_eq!(judged(&view), judged(&anew), "step {step}");
            assert_eq!(view.standing(&vm), anew.standing(&vm));
        }
    }
}
