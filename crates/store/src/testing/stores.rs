//! The stores that the tests are about.

use std::time::Duration;

use super::{LeaseSubject, Subject};
use crate::etcd::tests::Cluster;
use crate::{Changed, EtcdStore, FileStore, Leases, MemoryStore, Replica, Revision, Store, Watch};

struct InFile {
    store: FileStore,
    _directory: tempfile::TempDir,
}

impl Subject for InFile {
    fn store(&self) -> &dyn Store {
        &self.store
    }

    fn compact(&self, up_to: Revision) {
        self.store.forget(up_to);
    }
}

impl Subject for MemoryStore {
    fn store(&self) -> &dyn Store {
        self
    }

    fn compact(&self, up_to: Revision) {
        MemoryStore::compact(self, up_to);
    }
}

impl LeaseSubject for MemoryStore {
    fn leases(&self) -> &dyn Leases {
        self
    }

    fn hear_for(&self, watch: &mut Watch, time: Duration) -> Option<Changed> {
        self.advance(self.now() + time);
        watch.try_next()
    }
}

impl Subject for Replica<MemoryStore> {
    fn store(&self) -> &dyn Store {
        self
    }

    fn compact(&self, up_to: Revision) {
        self.forget(up_to);
    }
}

struct InEtcd {
    store: EtcdStore,
    _cluster: Cluster,
}

impl Subject for InEtcd {
    fn store(&self) -> &dyn Store {
        &self.store
    }

    fn compact(&self, up_to: Revision) {
        self.store.compact(up_to).unwrap();
    }
}

impl LeaseSubject for InEtcd {
    fn leases(&self) -> &dyn Leases {
        &self.store
    }

    fn hear_for(&self, watch: &mut Watch, time: Duration) -> Option<Changed> {
        watch.next_within(time)
    }
}

macro_rules! for_every_store {
    () => {
        use super::super::suite;

        suite! {
            transactions::a_transaction_is_done_only_if_all_its_conditions_hold,
            transactions::a_conflict_names_the_first_condition_that_does_not_hold_and_what_is_there,
            transactions::each_change_has_a_revision_higher_than_all_before,
            transactions::what_changes_nothing_has_no_revision,
            transactions::of_several_changes_of_a_key_the_last_counts,
            transactions::a_range_has_the_keys_that_begin_so_in_their_order,
            transactions::a_part_has_the_first_keys_behind_another_one,
            transactions::what_is_too_long_or_too_much_is_refused_and_changes_nothing,
            transactions::a_store_is_a_map,
            watches::a_watch_hears_of_later_changes_below_its_prefix_in_their_order,
            watches::a_watch_from_any_revision_leads_to_what_is_there_now,
            watches::a_watch_from_a_forgotten_past_or_from_the_future_is_refused,
            watches::a_watch_that_is_dropped_disturbs_no_other,
            races::increments_of_many_threads_are_all_there_and_seen_in_order,
        }
    };
}

macro_rules! for_every_store_with_leases {
    () => {
        suite! {
            leases::entries_end_with_their_lease_at_once_and_watchers_are_told,
            leases::a_lease_lives_as_long_as_it_is_kept_alive,
            leases::a_revoked_lease_is_gone_with_its_entries,
            leases::the_last_put_decides_whose_an_entry_is,
            leases::a_condition_that_does_not_hold_comes_before_a_lease_that_is_gone,
        }
    };
}

mod file {
    use super::super::{leases, races, transactions, watches};

    fn subject() -> super::InFile {
        let directory = tempfile::tempdir().unwrap();
        super::InFile { store: crate::FileStore::open(directory.path()).unwrap(), _directory: directory }
    }

    for_every_store!();

    #[test]
    fn there_are_no_leases() {
        leases::a_put_under_a_lease_that_is_not_there_is_refused(&subject());
    }
}

mod memory {
    use super::super::{leases, races, transactions, watches};

    fn subject() -> crate::MemoryStore {
        crate::MemoryStore::new()
    }

    for_every_store!();
    for_every_store_with_leases!();
}

mod etcd {
    use super::super::{leases, races, transactions, watches};
    use crate::etcd::tests::Cluster;

    fn subject() -> super::InEtcd {
        let cluster = Cluster::of(1);
        super::InEtcd { store: cluster.client(), _cluster: cluster }
    }

    for_every_store!();
    for_every_store_with_leases!();
}

mod replica {
    use std::sync::Arc;

    use super::super::{races, transactions, watches};
    use crate::{MemoryStore, Replica};

    fn subject() -> Replica<MemoryStore> {
        Replica::new(Arc::new(MemoryStore::new())).unwrap()
    }

    for_every_store!();
}
