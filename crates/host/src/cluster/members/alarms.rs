//! What etcd raises alarms about: a store that is full, and members that hold different things.

use store::etcd::admin::Alarm;
use store::{Revision, Store, StoreError, Transaction};

use super::{Members, RoundError, Work};
use crate::cluster::records::{MemberRecord, MemberState};
use crate::records::{EventKind, EventRecord};
use crate::state::Records;

impl Work {
    /// Looks what is wrong, does something about it, and tells of it.
    pub(super) fn look_for_alarms(&self, members: &Members) -> Result<(), RoundError> {
        for (member, alarm) in self.setting.etcd.alarms()? {
            let text = match alarm {
                Alarm::NoSpace => self.make_room(members),
                Alarm::Corrupt => self.find_the_odd_one(members),
                Alarm::Other(number) => Err(format!("etcd has raised the alarm {number}, which is not known here")),
            };
            let ended = match text {
                Ok(text) => self.setting.etcd.disarm(member, alarm).map(|()| text).map_err(|error| error.to_string()),
                Err(text) => Err(text),
            };
            let text = ended.unwrap_or_else(|text| text);
            tracing::error!("{text}");
            self.setting.state.commit(&Transaction::new().tell(&EventRecord::now(EventKind::StoreAlarm, text)))?;
        }
        Ok(())
    }

    /// The store was full: forgets what changed, and gives the space back.
    fn make_room(&self, members: &Members) -> Result<String, String> {
        let failed = |error: StoreError| format!("the store is full, and no room can be made: {error}");
        let etcd = &self.setting.etcd;
        let newest = etcd.revision().map_err(failed)?;
        etcd.compact(newest).map_err(failed)?;
        for (_, member) in members.iter().filter(|(_, member)| member.member.is_some()) {
            etcd.defragment(&member.client_url).map_err(failed)?;
        }
        Ok("the store was full: what had changed long ago was forgotten, and there is room again".into())
    }

    /// Members hold different things. The one that most differ from goes, and is made anew from the others.
    fn find_the_odd_one(&self, members: &Members) -> Result<String, String> {
        let failed = |error: StoreError| format!("members of the store differ, and it cannot be told which is wrong: {error}");
        let etcd = &self.setting.etcd;
        let voters: Vec<&(String, MemberRecord)> =
            members.iter().filter(|(_, member)| member.state == MemberState::Voter).collect();
        // Up to where all of them are.
        let mut common = None;
        for (_, member) in &voters {
            let revision = etcd.status(&member.client_url).map_err(failed)?.revision;
            common = Some(common.map_or(revision, |common: Revision| common.min(revision)));
        }
        let mut hashes = Vec::new();
        for (host, member) in &voters {
            let hash = etcd.hash(&member.client_url, common.unwrap_or_default()).map_err(failed)?;
            hashes.push((host, member.member, hash));
        }
        let count = |hash| hashes.iter().filter(|(_, _, other)| *other == hash).count();
        let odd = hashes.iter().find(|(_, _, hash)| count(*hash) * 2 < hashes.len());
        let Some((host, Some(id), _)) = odd else {
            return Err(
                "members of the store differ, and there are too few to tell which one is wrong: stop the host whose you \
                        believe less, and remove it with `maru cluster remove`"
                    .into(),
            );
        };
        // Records cannot be changed before the alarm is ended; that it is gone is noted after that.
        etcd.remove(*id).map_err(failed)?;
        Ok(format!("the store's member on {host} held something else than the others, and is made anew"))
    }
}
