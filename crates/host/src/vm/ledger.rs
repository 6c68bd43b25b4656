//! What the running VMs have of the host together: whether one more fits in, and what each one's share is.
//!
//! # Memory
//! A VM counts with all the memory that it may take, not with what its guest has touched: what was promised can be had. Starting one is refused
//! where the sum would be more than the host has, less what it keeps for itself.
//!
//! # Processors
//! Control groups know weights and caps, and no reserve. A reserve is kept in two ways: a VM is not started where the reserves of all would be more
//! than the processors, and the weight of a VM whose share could fall below its reserve is raised until it cannot ([`weights`]). So a
//! VM that needs its reserve gets it, at once; one that does not need it leaves it to the others.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::Cgroups;
use crate::records::{Cause, CpuRecord, VmRecord};

/// The largest weight of a control group.
const MAX_WEIGHT: u64 = 10_000;
/// What the host keeps for itself: this part of its memory, and this at least.
const KEPT_PART: u64 = 20;
const KEPT_MIN: u64 = 64 << 20;

/// What the host has for VMs.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// How much of it may be given out, in per cent: more than 100 gives out more than there is.
    pub overcommit_percent: u32,
    /// Processors.
    pub cpus: u32,
}

impl Capacity {
    /// What the host keeps for itself, in bytes.
    pub fn kept_bytes(&self) -> u64 {
        (self.memory_bytes / KEPT_PART).max(KEPT_MIN)
    }

    /// The memory that VMs may have together, in bytes.
    pub fn for_vms_bytes(&self) -> u64 {
        let own = u128::from(self.memory_bytes.saturating_sub(self.kept_bytes()));
        u64::try_from(own * u128::from(self.overcommit_percent) / 100).unwrap_or(u64::MAX)
    }

    fn percent(&self) -> u64 {
        u64::from(self.cpus) * 100
    }
}

/// What a running VM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taken {
    memory_bytes: u64,
    cpu: CpuRecord,
    /// The weight that its control group has, if that was written.
    written: Option<u32>,
    /// Whether it is being started.
    is_starting: bool,
}

/// What all have.
#[derive(Debug)]
pub struct Ledger {
    capacity: Capacity,
    taken: Mutex<BTreeMap<Uuid, Taken>>,
}

impl Ledger {
    /// One in which no VM runs.
    pub fn new(capacity: Capacity) -> Ledger {
        Ledger { capacity, taken: Mutex::default() }
    }

    /// What there is.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of memory that running VMs have together.
    pub fn memory_taken(&self) -> u64 {
        self.lock().values().map(|taken| taken.memory_bytes).sum()
    }

    /// Notes a VM that runs already, whether it fits in or not.
    pub fn note(&self, vm: &VmRecord) {
        self.lock().insert(vm.id, taken(vm, &vm.resources.cpu));
    }

    /// Lets a VM have what it is to have, or, if it has something already, this instead. Nobody else gets it from now on.
    pub fn admit(&self, vm: &VmRecord, cpu: &CpuRecord) -> Result<(), Cause> {
        let mut all = self.lock();
        let wanted = taken(vm, cpu);
        let others = || all.iter().filter(|(id, _)| **id != vm.id).map(|(_, taken)| taken);
        let before = all.get(&vm.id);
        let memory: u64 = others().map(|taken| taken.memory_bytes).sum();
        if before.is_none_or(|before| before.memory_bytes < wanted.memory_bytes) {
            self.check_memory(&vm.name, wanted.memory_bytes, memory)?;
        }
        let reserved: u64 = others().map(|taken| u64::from(taken.cpu.reserve_percent)).sum();
        let reserve = u64::from(cpu.reserve_percent);
        if before.is_none_or(|before| before.cpu.reserve_percent < cpu.reserve_percent)
            && reserve > 0
            && reserved + reserve > self.capacity.percent()
        {
            let message = format!(
                "'{}' reserves {reserve} % of a processor; running VMs have reserved {reserved} % of the {} % of this host",
                vm.name,
                self.capacity.percent()
            );
            return Err(Cause::new("no-cpu", message, "reserve less, or stop another VM with a reserve"));
        }
        let (written, is_starting) = before.map_or((None, false), |before| (before.written, before.is_starting));
        all.insert(vm.id, Taken { written, is_starting, ..wanted });
        Ok(())
    }

    fn check_memory(&self, name: &str, wanted: u64, taken: u64) -> Result<(), Cause> {
        let most = self.capacity.for_vms_bytes();
        if taken.saturating_add(wanted) <= most {
            return Ok(());
        }
        let mib = |bytes: u64| bytes >> 20;
        let Capacity { memory_bytes, overcommit_percent, .. } = self.capacity;
        let message = format!(
            "'{name}' needs {} MiB; running VMs have {} MiB of the {} MiB for VMs ({} MiB of the host, less {} MiB that it keeps for itself, \
             given out to {overcommit_percent} %)",
            mib(wanted),
            mib(taken),
            mib(most),
            mib(memory_bytes),
            mib(self.capacity.kept_bytes()),
        );
        Err(Cause::new("no-memory", message, "stop another VM, give this one less, or start marud with more --memory-overcommit"))
    }

    /// A VM is being started, or is not any more. While it is, it goes before those that run: among a hundred busy ones its monitor would
    /// not get ready in time.
    pub fn set_starting(&self, vm: Uuid, is_starting: bool) {
        if let Some(taken) = self.lock().get_mut(&vm) {
            taken.is_starting = is_starting;
        }
    }

    /// A VM has ended: others may have what it had.
    pub fn release(&self, vm: Uuid) {
        self.lock().remove(&vm);
    }

    /// Gives each VM's control group its weight, where it is not what it was.
    pub fn share(&self, cgroups: &Cgroups) {
        let mut all = self.lock();
        let cpus: Vec<CpuRecord> = all.values().map(|taken| taken.cpu).collect();
        for ((id, taken), weight) in all.iter_mut().zip(weights(self.capacity.percent(), &cpus)) {
            let weight = if taken.is_starting { MAX_WEIGHT as u32 } else { weight };
            if taken.written == Some(weight) {
                continue;
            }
            match cgroups.set_weight(*id, weight) {
                Ok(true) => taken.written = Some(weight),
                // It has no group yet, or there are none here.
                Ok(false) => {}
                Err(error) => tracing::warn!(vm = %id, "its CPU weight cannot be set: {error}"),
            }
        }
        let written = all.iter().filter_map(|(id, taken)| Some((*id, taken.written?)));
        if let Err(error) = cgroups.balance(written) {
            tracing::warn!("VMs that are bound to this host and others do not share processors as they should: {error}");
        }
    }
}

fn taken(vm: &VmRecord, cpu: &CpuRecord) -> Taken {
    Taken { memory_bytes: vm.memory_bytes, cpu: *cpu, written: None, is_starting: false }
}

/// The weights with which each VM gets its reserve at least when all are busy, and what is left goes by the wanted weights.
///
/// A VM whose part of what the others leave would be less than its reserve gets a weight that makes it the reserve. That takes from the others, so it
/// is done until nobody falls short.
fn weights(percent: u64, cpus: &[CpuRecord]) -> Vec<u32> {
    let mut is_raised = vec![false; cpus.len()];
    let sum = |is_raised: &[bool], raised: bool, of: fn(&CpuRecord) -> u32| -> u64 {
        cpus.iter().zip(is_raised).filter(|(_, is)| **is == raised).map(|(cpu, _)| u64::from(of(cpu))).sum()
    };
    let (free, wanted) = loop {
        let free = percent.saturating_sub(sum(&is_raised, true, |cpu| cpu.reserve_percent));
        let wanted = sum(&is_raised, false, |cpu| cpu.weight);
        let falls_short = |index: &usize| {
            let cpu = &cpus[*index];
            !is_raised[*index] && u64::from(cpu.reserve_percent) * wanted > free * u64::from(cpu.weight)
        };
        let Some(index) = (0..cpus.len()).find(falls_short) else { break (free, wanted) };
        is_raised[index] = true;
    };
    let weight = |(cpu, is_raised): (&CpuRecord, &bool)| match (is_raised, wanted) {
        (false, _) => u64::from(cpu.weight),
        // All have no more than their reserves.
        (true, 0) => u64::from(cpu.reserve_percent),
        (true, _) => (u64::from(cpu.reserve_percent) * wanted).div_ceil(free.max(1)),
    };
    let weights: Vec<u64> = cpus.iter().zip(&is_raised).map(weight).collect();
    let largest = weights.iter().copied().max().unwrap_or(1).max(MAX_WEIGHT);
    weights.into_iter().map(|weight| (weight * MAX_WEIGHT / largest).max(1) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(weight: u32, reserve_percent: u32) -> CpuRecord {
        CpuRecord { weight, cap_percent: None, reserve_percent }
    }

    #[test]
    fn weights_are_as_wanted_until_a_reserve_would_not_be_kept() {
        assert_eq!(weights(200, &[cpu(100, 0), cpu(300, 0)]), [100, 300]);
        // Half of 200 % is enough for 80 %, and not for 150 %.
        assert_eq!(weights(200, &[cpu(100, 0), cpu(100, 80)]), [100, 100]);
        assert_eq!(weights(200, &[cpu(100, 0), cpu(100, 150)]), [100, 300]);
        // What the first takes makes the second fall short.
        assert_eq!(weights(100, &[cpu(100, 50), cpu(100, 30), cpu(100, 0)]), [250, 150, 100]);
        assert_eq!(weights(100, &[cpu(10, 60), cpu(1000, 40)]), [1500, 1000]);
        // More than there is, since processors were taken out.
        assert_eq!(weights(100, &[cpu(10, 150), cpu(100, 0)]), [10_000, 66]);
        assert_eq!(weights(100, &[]), [0; 0]);
    }

    #[test]
    fn everybody_gets_the_reserve_whatever_the_others_want() {
        let mut random = 1_u64;
        let mut next = |limit: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % limit
        };
        for _ in 0..1000 {
            let percent = 100 * (1 + next(16));
            let mut left = percent;
            let cpus: Vec<CpuRecord> = (0..1 + next(8))
                .map(|_| {
                    let reserve = next(left.min(300) + 1) * next(2);
                    // Weights up to where the largest is a hundred times the smallest: rounding does not count then.
                    left -= reserve;
                    cpu(50 + next(50) as u32, reserve as u32)
                })
                .collect();
            let weights = weights(percent, &cpus);
            let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            for (cpu, weight) in cpus.iter().zip(&weights) {
                let share = f64::from(*weight) * percent as f64 / sum as f64;
                assert!(share >= f64::from(cpu.reserve_percent) * 0.98 - 1.0, "{share} of {percent}: {cpus:?} {weights:?}");
            }
        }
    }
}
