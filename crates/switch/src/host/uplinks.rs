//! Ports with NICs behind them.

use super::{Host, HostError, attach};
use crate::control::Backend;
use crate::links::{Links, Missing};
use crate::pipeline::{PortNumber, SwitchNumber};
use crate::policy::PortPolicy;
use crate::team::Team;
use crate::team::config::{TeamConfig, TeamError};
use crate::worker::{Device, Ended, Handle, Worker};

impl Host {
    pub(super) fn add_team(
        &mut self,
        worker: &Handle,
        switch: SwitchNumber,
        team: TeamConfig,
        policy: PortPolicy,
        missing: Missing,
    ) -> Result<PortNumber, HostError> {
        self.check_team(&team, None)?;
        if self.links.is_none() {
            self.links = Some(Links::start().map_err(HostError::Links)?);
        }
        let Some(links) = &self.links else { return Err(Ended.into()) };
        // Until all is in place no change of a link comes in between.
        let mut registry = links.lock();
        let (opened, nics) = registry.open(&team.nics, team.datapath, missing, None)?;
        let number = attach(worker, switch, policy, move |now| Device::Team(Box::new(Team::new(&team, nics, now))))?;
        registry.watch(worker, number, opened);
        Ok(number)
    }

    /// Puts another team behind an uplink's port.
    pub(super) fn set_team(&mut self, name: &str, team: TeamConfig) -> Result<(), HostError> {
        let (worker, number) = self.place(name)?;
        if self.entry(name)?.config.backend.nics().is_empty() {
            return Err(HostError::NoUplink(name.into()));
        }
        self.check_team(&team, Some(name))?;
        let Some(links) = &self.links else { return Err(Ended.into()) };
        let mut registry = links.lock();
        let (opened, nics) = registry.open(&team.nics, team.datapath, Missing::Awaited, Some((&worker, number)))?;
        let config = team.clone();
        worker.call(move |worker| replace(worker, number, &config, nics))?.map_err(HostError::Attach)?;
        registry.forget(&worker, number);
        registry.watch(&worker, number, opened);
        drop(registry);
        self.entry(name)?.config.backend = Backend::from(team);
        Ok(())
    }

    /// Refuses a team that makes no sense, or has a NIC of another port than `own`.
    fn check_team(&self, team: &TeamConfig, own: Option<&str>) -> Result<(), TeamError> {
        team.check()?;
        for (port, entry) in self.ports.iter().filter(|(port, _)| Some(port.as_str()) != own) {
            if let Some(nic) = team.nics.iter().find(|nic| entry.config.backend.nics().contains(nic)) {
                return Err(TeamError::Used { nic: nic.clone(), port: port.clone() });
            }
        }
        Ok(())
    }
}

fn replace(
    worker: &mut Worker,
    number: PortNumber,
    config: &TeamConfig,
    mut nics: Vec<crate::links::FoundNic>,
) -> std::io::Result<()> {
    let status = worker.team_status(number);
    for (name, found) in config.nics.iter().zip(&mut nics) {
        if let Some((socket @ None, _)) = found {
            *socket = worker.take_socket(number, name);
        }
    }
    let mut team = Team::new(config, nics, worker.now());
    if let Some(status) = status {
        team.keep_of(&status);
    }
    let is_reflecting = team.is_reflecting();
    // What was there before goes with the sockets that it still has.
    worker.attach(number, Device::Team(Box::new(team)))?;
    worker.switch.set_reflecting(number, is_reflecting);
    worker.announce_moved(number);
    Ok(())
}
