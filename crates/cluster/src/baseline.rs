//! What the processors of all hosts have in common: what a VM is promised that may run on any of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::HostId;
use crate::records::HostRecord;

/// The common features, and who stands in the way of more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baseline {
    /// What all hosts have that have said what they have.
    pub features: BTreeSet<String>,
    /// What some have, by the hosts that lack it: who these are is why a VM is not promised that.
    pub lacking: BTreeMap<BTreeSet<HostId>, BTreeSet<String>>,
    /// Hosts that run VMs and have not said what their processors can do. No VM that was promised anything is placed there.
    pub silent: BTreeSet<HostId>,
}

/// What all `hosts` that run VMs have in common. A host without memory for VMs, as a witness is, does not count; one that is drained
/// does, as it comes back. If none has said what it has, there is nothing to promise, which is not the same as promising nothing.
///
/// ```
/// use cluster::baseline::baseline;
/// use cluster::records::HostRecord;
///
/// let host = |features: &[&str]| HostRecord {
///     memory_mib: 1024,
///     cpu_features: features.iter().map(|name| name.to_string()).collect(),
///     ..Default::default()
/// };
/// let (new, old) = (host(&["avx", "avx2", "sse2"]), host(&["avx", "sse2"]));
/// let common = baseline([(&"new".into(), &new), (&"old".into(), &old)]);
/// assert_eq!(common.features, old.cpu_features);
/// assert_eq!(common.to_string(), "2 CPU features in common: avx, sse2\nold: lacks avx2\n");
/// ```
pub fn baseline<'a>(hosts: impl IntoIterator<Item = (&'a HostId, &'a HostRecord)>) -> Baseline {
    let running = hosts.into_iter().filter(|(_, host)| host.memory_mib > 0);
    let (telling, silent): (Vec<_>, Vec<_>) = running.partition(|(_, host)| !host.cpu_features.is_empty());
    let mut baseline = Baseline { silent: silent.into_iter().map(|(id, _)| id.clone()).collect(), ..Baseline::default() };
    let all: BTreeSet<&String> = telling.iter().flat_map(|(_, host)| &host.cpu_features).collect();
    for feature in all {
        let without = telling.iter().filter(|(_, host)| !host.cpu_features.contains(feature));
        let without: BTreeSet<HostId> = without.map(|(id, _)| (*id).clone()).collect();
        let place = if without.is_empty() { &mut baseline.features } else { baseline.lacking.entry(without).or_default() };
        place.insert(feature.clone());
    }
    baseline
}

fn list(names: impl IntoIterator<Item = impl fmt::Display>) -> String {
    names.into_iter().map(|name| name.to_string()).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Baseline {
    /// In lines, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.features.len() {
            0 => writeln!(f, "no CPU features in common")?,
            1 => writeln!(f, "1 CPU feature in common: {}", list(&self.features))?,
            count => writeln!(f, "{count} CPU features in common: {}", list(&self.features))?,
        }
        for (hosts, features) in &self.lacking {
            writeln!(f, "{}: {} {}", list(hosts), if hosts.len() == 1 { "lacks" } else { "lack" }, list(features))?;
        }
        if !self.silent.is_empty() {
            let verb = if self.silent.len() == 1 { "has" } else { "have" };
            writeln!(
                f,
                "{}: {verb} not said what the processors can do; is KVM in use there, and Maru up to date?",
                list(&self.silent)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(of: &[&str]) -> BTreeSet<String> {
        of.iter().map(|name| String::from(*name)).collect()
    }

    fn of(hosts: &[(&str, u64, &[&str])]) -> Baseline {
        let host = |&(id, memory_mib, features): &(&str, u64, &[&str])| {
            (HostId::from(id), HostRecord { memory_mib, cpu_features: names(features), ..Default::default() })
        };
        let hosts: Vec<_> = hosts.iter().map(host).collect();
        baseline(hosts.iter().map(|(id, record)| (id, record)))
    }

    #[test]
    fn hosts_that_lack_the_same_are_named_together() {
        let common = of(&[
            ("a", 1, &["avx", "avx2", "sse2", "vendor_amd"]),
            ("b", 1, &["avx", "sse2", "vendor_intel"]),
            ("c", 1, &["avx", "sse2", "vendor_intel"]),
        ]);
        assert_eq!(common.features, names(&["avx", "sse2"]));
        assert_eq!(
            common.to_string(),
            "2 CPU features in common: avx, sse2\na: lacks vendor_intel\nb, c: lack avx2, vendor_amd\n"
        );
    }

    #[test]
    fn a_witness_does_not_count_and_a_host_that_is_silent_is_named() {
        let common = of(&[("a", 1, &["avx"]), ("b", 1, &[]), ("witness", 0, &[])]);
        assert_eq!((common.features.clone(), common.lacking.len()), (names(&["avx"]), 0));
        assert!(common.to_string().starts_with("1 CPU feature in common: avx\nb: has not said"), "{common}");
        assert_eq!(of(&[]).to_string(), "no CPU features in common\n");
    }

    proptest! {
        #[test]
        fn all_have_what_is_common_and_somebody_lacks_the_rest(
            sets in proptest::collection::vec(proptest::collection::btree_set("[a-e]", 1..5), 1..5),
        ) {
            let record = |cpu_features: &BTreeSet<String>| {
                HostRecord { memory_mib: 1, cpu_features: cpu_features.clone(), ..Default::default() }
            };
            let hosts: Vec<(HostId, HostRecord)> =
                sets.iter().enumerate().map(|(n, set)| (HostId::from(n.to_string()), record(set))).collect();
            let common = baseline(hosts.iter().map(|(id, record)| (id, record)));
            let model = sets.iter().skip(1).fold(sets[0].clone(), |all, set| all.intersection(set).cloned().collect());
            prop_assert_eq!(&common.features, &model);
            for (id, host) in &hosts {
                let lost = common.lacking.iter().filter(|(hosts, _)| hosts.contains(id)).flat_map(|(_, features)| features);
                let known: BTreeSet<String> = lost.chain(&host.cpu_features).cloned().collect();
                let all: BTreeSet<String> = sets.iter().flatten().cloned().collect();
                prop_assert_eq!(known, all);
            }
        }
    }
}
