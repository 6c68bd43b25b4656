//! What all hosts of the simulation share: where VMs run, and what is counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cluster::{HostId, Moment, VmId};

/// A number that many threads count.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What etcd was asked for, and what it told.
#[derive(Default)]
pub struct Load {
    /// Transactions of the core, those that put `alive/HOST` included.
    pub decided: Counter,
    /// Transactions with VMs' own records, as `marud` writes them when a VM starts or is saved.
    pub records: Counter,
    /// Transactions with what users are told.
    pub notices: Counter,
    /// Proven renewals: each is a keep-alive and a transaction.
    pub renewals: Counter,
    /// Other requests: reads, and grants of leases.
    pub others: Counter,
    /// Changes that were told by watches.
    pub told: Counter,
    /// Requests that failed, or of which nobody knows.
    pub failed: Counter,
}

/// How long nodes thought, in processor time of their threads.
#[derive(Clone, Copy, Default)]
pub struct Thought {
    /// The coordinator.
    pub coordinator: Duration,
    /// Its longest step.
    pub longest: Duration,
    /// All others together.
    pub others: Duration,
}

/// What happens to the VMs.
#[derive(Default)]
struct Vms {
    /// Where they run.
    run: BTreeMap<VmId, HostId>,
    /// How many are to.
    goal: usize,
    /// Since when so many run.
    reached: Option<Instant>,
    /// VMs that were started while they ran elsewhere.
    twice: Vec<VmId>,
}

/// All of it.
pub struct World {
    began: Instant,
    /// How long a VM takes to start.
    pub start: Duration,
    /// How long it takes to be saved.
    pub save: Duration,
    pub load: Load,
    thought: Mutex<Thought>,
    /// How long etcd took for each transaction of the core.
    commits: Mutex<Vec<Duration>>,
    /// Hosts that could not prove their lease in time, and when.
    unproven: Mutex<Vec<(HostId, Moment)>>,
    vms: Mutex<Vms>,
    changed: Condvar,
}

impl World {
    pub fn new(start: Duration, save: Duration) -> World {
        World {
            began: Instant::now(),
            start,
            save,
            load: Load::default(),
            thought: Mutex::default(),
            commits: Mutex::default(),
            unproven: Mutex::default(),
            vms: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The time as all hosts have it.
    pub fn now(&self) -> Moment {
        Moment(self.began.elapsed())
    }

    /// Counts how long a node thought.
    pub fn thought(&self, took: Duration, coordinates: bool) {
        let mut thought = self.thought.lock().unwrap_or_else(PoisonError::into_inner);
        if coordinates {
            thought.coordinator += took;
            thought.longest = thought.longest.max(took);
        } else {
            thought.others += took;
        }
    }

    /// What was thought since this was asked last.
    pub fn take_thought(&self) -> Thought {
        std::mem::take(&mut *self.thought.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes how long etcd took for a transaction of the core.
    pub fn committed(&self, took: Duration) {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).push(took);
    }

    /// How long etcd took for each of them since this was asked last.
    pub fn take_commits(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.commits.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that a host could not prove its lease in time.
    pub fn unproven(&self, host: &HostId) {
        self.unproven.lock().unwrap_or_else(PoisonError::into_inner).push((host.clone(), self.now()));
    }

    /// Hosts that could not prove their lease in time since this was asked last, and when, since the beginning.
    pub fn take_unproven(&self) -> Vec<(HostId, Moment)> {
        std::mem::take(&mut *self.unproven.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn vms(&self) -> MutexGuard<'_, Vms> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VM runs on a host from now on.
    pub fn runs(&self, vm: &VmId, host: &HostId) {
        let mut vms = self.vms();
        if vms.run.insert(vm.clone(), host.clone()).is_some() {
            vms.twice.push(vm.clone());
        }
        if vms.run.len() == vms.goal {
            vms.reached = Some(Instant::now());
            self.changed.notify_all();
        }
    }

    /// A VM does not run any more.
    pub fn ended(&self, vm: &VmId) {
        let mut vms = self.vms();
        vms.run.remove(vm);
        vms.reached = None;
    }

    /// Hosts have no power any more. Gives how many VMs they had.
    pub fn lost(&self, hosts: &[HostId]) -> usize {
        let mut vms = self.vms();
        let before = vms.run.len();
        vms.run.retain(|_, host| !hosts.contains(host));
        vms.reached = None;
        before - vms.run.len()
    }

    /// Says how many VMs are to run.
    pub fn set_goal(&self, goal: usize) {
        self.vms().goal = goal;
    }

    /// Waits until all VMs run, and gives since when; nothing if that takes longer than this.
    pub fn all_run(&self, patience: Duration) -> Option<Instant> {
        let waits = |vms: &mut Vms| vms.reached.is_none();
        let (vms, _) = self.changed.wait_timeout_while(self.vms(), patience, waits).unwrap_or_else(PoisonError::into_inner);
        vms.reached
    }

    /// VMs that ran on two hosts at once.
    pub fn ran_twice(&self) -> Vec<VmId> {
        self.vms().twice.clone()
    }
}

/// The processor time that this thread has taken.
pub fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to the one structure that it is given; each thread has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
