//! Virtual CPUs: what they look like to the guest ([`cpuid`]), what they can do ([`features`]), how they run ([`vcpu`]), and their saved state ([`state`]).

pub mod cpuid;
pub mod features;
pub mod state;
pub mod vcpu;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// How many vCPUs a VM has, and how they are arranged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    /// vCPUs at start.
    pub count: u32,
    /// vCPUs that it may have after hot add; 0 means `count`.
    #[serde(default)]
    pub max: u32,
    /// Threads per core, 1 or 2.
    #[serde(default = "one")]
    pub threads_per_core: u32,
    /// Sockets; the cores are spread evenly.
    #[serde(default = "one")]
    pub sockets: u32,
    /// All [features](features) that the guest may see of the processors; it is refused to run where one is missing. Without a list it sees what
    /// the host has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<BTreeSet<String>>,
}

fn one() -> u32 {
    1
}

/// Why the vCPUs cannot be arranged as asked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CpuConfigError {
    /// No vCPU at all.
    #[error("a VM needs at least one vCPU")]
    None,
    /// More than KVM gives.
    #[error("{wanted} vCPUs wanted, but KVM on this host gives a VM at most {limit}")]
    TooMany {
        /// vCPUs asked for.
        wanted: u32,
        /// The host's limit.
        limit: u32,
    },
    /// `max` below `count`.
    #[error("at most {max} vCPUs allowed, but {count} wanted at start")]
    MaxBelowCount {
        /// The maximum asked for.
        max: u32,
        /// vCPUs at start.
        count: u32,
    },
    /// The numbers do not divide.
    #[error("{max} vCPUs cannot be spread over {sockets} sockets with {threads} threads per core")]
    Topology {
        /// vCPUs in all.
        max: u32,
        /// Sockets.
        sockets: u32,
        /// Threads per core.
        threads: u32,
    },
}

/// The arrangement of vCPUs, and the APIC ids that follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// vCPUs in all, those for hot add included.
    pub max: u32,
    /// Threads per core.
    pub threads: u32,
    /// Cores per socket.
    pub cores: u32,
    /// Sockets.
    pub sockets: u32,
}

impl Topology {
    /// Checks the configuration against what KVM gives (`limit` vCPUs; ids below `id_limit`).
    pub fn new(config: &CpuConfig, limit: u32, id_limit: u32) -> Result<Topology, CpuConfigError> {
        let max = if config.max == 0 { config.count } else { config.max };
        let (sockets, threads) = (config.sockets, config.threads_per_core);
        if config.count == 0 {
            return Err(CpuConfigError::None);
        }
        if max < config.count {
            return Err(CpuConfigError::MaxBelowCount { max, count: config.count });
        }
        let uneven = CpuConfigError::Topology { max, sockets, threads };
        if sockets == 0 || !(1..=2).contains(&threads) {
            return Err(uneven);
        }
        let per_socket = max.checked_div(sockets).filter(|n| n * sockets == max && n % threads == 0 && *n > 0).ok_or(uneven)?;
        let topology = Topology { max, threads, cores: per_socket / threads, sockets };
        // In xAPIC terms 255 is the broadcast address; interrupts of the I/O APIC reach ids up to 254.
        let id_limit = id_limit.min(255);
        if max > limit || topology.apic_id(max - 1) >= id_limit {
            return Err(CpuConfigError::TooMany { wanted: max, limit: limit.min(id_limit) });
        }
        Ok(topology)
    }

    /// vCPUs per socket.
    pub fn per_socket(&self) -> u32 {
        self.cores * self.threads
    }

    /// Bits of the APIC id that number the thread in its core.
    pub fn thread_bits(&self) -> u32 {
        bits(self.threads)
    }

    /// Bits of the APIC id that number the thread in its socket.
    pub fn socket_shift(&self) -> u32 {
        bits(self.cores) + self.thread_bits()
    }

    /// The APIC id of the vCPU with this index; KVM knows the vCPU by it.
    pub fn apic_id(&self, index: u32) -> u32 {
        let socket = index / self.per_socket();
        let in_socket = index % self.per_socket();
        (socket << self.socket_shift()) | ((in_socket / self.threads) << self.thread_bits()) | (in_socket % self.threads)
    }
}

fn bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(count: u32, max: u32, threads: u32, sockets: u32) -> CpuConfig {
        CpuConfig { count, max, threads_per_core: threads, sockets, features: None }
    }

    #[test]
    fn apic_ids_are_distinct_and_separate_sockets_cores_and_threads() {
        let topology = Topology::new(&config(12, 0, 2, 2), 64, 255).unwrap();
        assert_eq!((topology.cores, topology.socket_shift()), (3, 3));
        let ids: Vec<u32> = (0..12).map(|i| topology.apic_id(i)).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
    }

    #[test]
    fn two_hundred_fifty_four_vcpus_need_no_more_than_kvm_gives() {
        assert!(Topology::new(&config(254, 0, 1, 1), 1024, 4096).is_ok());
        assert_eq!(Topology::new(&config(5, 0, 1, 1), 4, 255), Err(CpuConfigError::TooMany { wanted: 5, limit: 4 }));
        assert!(matches!(Topology::new(&config(300, 0, 1, 1), 1024, 4096), Err(CpuConfigError::TooMany { .. })));
    }

    #[test]
    fn an_uneven_arrangement_is_refused() {
        for bad in [config(5, 0, 2, 1), config(4, 0, 1, 3), config(4, 0, 0, 1), config(4, 0, 1, 0), config(1, 0, 1, 2)] {
            assert!(matches!(Topology::new(&bad, 64, 255), Err(CpuConfigError::Topology { .. })), "{bad:?}");
        }
        assert_eq!(Topology::new(&config(0, 0, 1, 1), 64, 255), Err(CpuConfigError::None));
        assert!(matches!(Topology::new(&config(4, 2, 1, 1), 64, 255), Err(CpuConfigError::MaxBelowCount { .. })));
    }
}
