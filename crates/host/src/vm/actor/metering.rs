//! Metering the VM: looked at often, stored seldom.

use std::collections::BTreeMap;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;
use vmm::control::{DeviceStatus, Request, Status};

use super::super::meter::{self, Reading};
use super::{Actor, STORE_AGAIN};
use crate::records::{EventRecord, TaskStateRecord, UsageRecord};
use crate::state::{Records, StateError};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(10);
/// Between two looks at a monitor that does not answer.
const LOOK_SELDOM: Duration = Duration::from_secs(60);
/// How long a monitor may take to answer. Tasks wait meanwhile.
const LOOK_ANSWER: Duration = Duration::from_secs(2);
/// Between two writes to the store.
const STORE: Duration = Duration::from_secs(60);

/// Counters by device and name.
type Counters = BTreeMap<String, BTreeMap<String, u64>>;

/// What is known of the VM's use.
pub(super) struct Metering {
    usage: UsageRecord,
    /// The run that is metered.
    run: Option<String>,
    /// Counters that the monitor told at its end.
    last: Option<Vec<DeviceStatus>>,
    look_at: Instant,
    stored_at: Instant,
}

impl Metering {
    /// Before anything is known.
    pub(super) fn new() -> Metering {
        let now = Instant::now();
        Metering { usage: UsageRecord::new(OffsetDateTime::now_utc()), run: None, last: None, look_at: now, stored_at: now }
    }
}

impl Actor {
    /// Goes on with what is stored.
    pub(super) async fn load_usage(&mut self) {
        self.metering.usage = loop {
            let id = self.vm.record.id.to_string();
            match self.state.run(move |state| state.read::<UsageRecord>(&id)).await {
                Ok(Some(stored)) => break stored.record,
                Ok(None) => break UsageRecord::new(self.vm.record.created_at),
                Err(StateError::Ending) => return,
                // It will not be readable later either, and the VM does not wait for that.
                Err(StateError::Record(error)) => {
                    tracing::error!(vm = %self.vm.record.name, "its meter cannot be read, and begins anew: {error}");
                    break UsageRecord::new(OffsetDateTime::now_utc());
                }
                Err(error) => tracing::error!(vm = %self.vm.record.name, "its meter cannot be read, trying again: {error}"),
            }
            tokio::time::sleep(STORE_AGAIN).await;
        };
        self.show_usage(0);
    }

    fn show_usage(&self, memory_bytes: u64) {
        self.surroundings.meters.note(self.vm.record.id, self.metering.usage.clone(), memory_bytes);
    }

    /// When to look again.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.machine.as_ref().map(|_| self.metering.look_at)
    }

    /// A run begins, or was found.
    pub(super) async fn meter_run(&mut self) {
        let Some(machine) = &self.machine else { return };
        match meter::run(machine.monitor.pid()) {
            Ok(run) => self.metering.run = Some(run),
            Err(error) => return tracing::error!(vm = %self.vm.record.name, "it cannot be metered: {error}"),
        }
        // Whoever finds this run ended must know which it was.
        self.measure().await;
        self.store_usage().await;
    }

    /// Looks at what was used, and stores it from time to time.
    pub(super) async fn look(&mut self) {
        self.measure().await;
        if self.metering.stored_at.elapsed() >= STORE {
            self.store_usage().await;
        }
    }

    /// Looks at what was used.
    pub(super) async fn measure(&mut self) {
        let (Some(machine), Some(run)) = (&mut self.machine, self.metering.run.clone()) else { return };
        let status = machine.monitor.call::<Status>(&Request::Status, LOOK_ANSWER).await;
        let pid = Some(machine.monitor.pid());
        self.metering.look_at = Instant::now() + if status.is_ok() { LOOK } else { LOOK_SELDOM };
        let devices = status.ok().map(|status| meter::counters(&status.devices));
        let devices = self.with_ports(devices).await;
        self.add_reading(&run, pid, devices.as_ref()).await;
    }

    /// The counters of devices, with those of network cards on switches: the monitor does not see their frames. What a switch does not tell
    /// now is as it was seen last.
    async fn with_ports(&self, devices: Option<Counters>) -> Option<Counters> {
        let mut devices = devices?;
        let on_switch: Vec<String> =
            self.vm.record.nets.iter().filter(|net| net.switch().is_some()).map(|net| net.id.clone()).collect();
        if on_switch.is_empty() {
            return Some(devices);
        }
        let (surroundings, vm) = (self.surroundings.clone(), self.vm.record.id);
        let told = tokio::task::spawn_blocking(move || surroundings.network.counters(vm)).await.ok().flatten();
        let mut told = told.unwrap_or_default();
        let seen = self.metering.usage.seen.as_ref().map(|seen| &seen.devices);
        for net in on_switch {
            if let Some(counters) = told.remove(&net).or_else(|| seen?.get(&net).cloned()) {
                devices.insert(net, counters);
            }
        }
        Some(devices)
    }

    async fn add_reading(&mut self, run: &str, pid: Option<u32>, devices: Option<&Counters>) {
        let (surroundings, id, run) = (self.surroundings.clone(), self.vm.record.id, run.to_owned());
        let read = tokio::task::spawn_blocking(move || Reading::of(&surroundings.cgroups, id, &run, pid)).await;
        let Ok(mut reading) = read else { return };
        reading.devices = devices.cloned();
        self.metering.usage.add(&reading, OffsetDateTime::now_utc());
        self.show_usage(reading.memory_bytes);
    }

    /// The monitor tells its devices' last counters.
    pub(super) fn keep_last_counters(&mut self, devices: Vec<DeviceStatus>) {
        self.metering.last = Some(devices);
    }

    /// The run has ended, a moment ago or while nobody looked; its control group is still there.
    pub(super) async fn meter_end(&mut self) {
        let known = || self.metering.usage.seen.as_ref().map(|seen| seen.run.clone());
        let Some(run) = self.metering.run.take().or_else(known) else { return };
        let devices = self.metering.last.take().map(|devices| meter::counters(&devices));
        // Its ports are there until it is stored that it is off.
        let devices = self.with_ports(devices).await;
        self.add_reading(&run, None, devices.as_ref()).await;
        self.show_usage(0);
        self.store_usage().await;
    }

    /// Begins to meter anew, and tells of it.
    pub(super) async fn reset_usage(&mut self, task: Uuid) {
        self.measure().await;
        self.metering.usage.reset(OffsetDateTime::now_utc());
        self.store_usage().await;
        self.show_usage(0);
        self.measure().await;
        self.change(Some(task), move |_, record| {
            record?.end(TaskStateRecord::Done, None);
            None::<EventRecord>
        })
        .await;
    }

    async fn store_usage(&mut self) {
        self.metering.stored_at = Instant::now();
        let (id, usage) = (self.vm.record.id.to_string(), self.metering.usage.clone());
        loop {
            let (id, usage) = (id.clone(), usage.clone());
            let stored = self.state.run(move |state| {
                let unchanged = state.read::<UsageRecord>(&id)?.is_some_and(|stored| stored.record == usage);
                if !unchanged {
                    state.commit(&store::Transaction::new().write(&id, &usage))?;
                }
                Ok(())
            });
            match stored.await {
                Ok(()) | Err(StateError::Ending) => return,
                Err(error) => tracing::error!(vm = %self.vm.record.name, "its meter cannot be stored, trying again: {error}"),
            }
            tokio::time::sleep(STORE_AGAIN).await;
        }
    }
}
