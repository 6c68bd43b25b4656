//! Where the store's members are to be: the next step from what is to what is wanted.
//!
//! One host or two have one member, three to six have three, more have five. An even number is never wanted: two members fail when either
//! does. A witness comes before others, who has a seat keeps it, and a host that is drained, or was not heard of for long, gives it up as soon
//! as another one can take it.

use store::etcd::admin::{Member, MemberId};

use crate::cluster::records::{MemberRecord, MemberState};

/// A host, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Its name.
    pub host: String,
    /// What is known of it.
    pub record: MemberRecord,
    /// Its lease lives.
    pub alive: bool,
    /// It has not been alive for so long that another one is to take its place.
    pub lost: bool,
    /// It is to give everything away.
    pub drained: bool,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// All is as it should be.
    Nothing,
    /// Nothing can be done until this has happened.
    Wait(String),
    /// A host's record is to say what is so.
    Note {
        /// The host.
        host: String,
        /// Its part.
        state: MemberState,
        /// Its member.
        member: Option<MemberId>,
    },
    /// This host is to have a member without a vote.
    Add {
        /// The host.
        host: String,
    },
    /// This host's member is to have a vote, when it has everything.
    Promote {
        /// The host.
        host: String,
        /// Its member.
        member: MemberId,
    },
    /// A member is to go.
    Remove {
        /// Its host, if it has one.
        host: Option<String>,
        /// The member.
        member: MemberId,
        /// Why.
        why: &'static str,
    },
    /// Another member is to lead.
    MoveLeader {
        /// Where the leader is, for clients.
        from_url: String,
        /// The other's host.
        host: String,
        /// The other.
        to: MemberId,
    },
}

/// How many members a cluster of so many hosts is to have.
pub fn wanted(hosts: usize) -> usize {
    match hosts {
        0..=2 => 1,
        3..=6 => 3,
        _ => 5,
    }
}

/// The next step. `leader` is the member that leads the store, if that is known.
pub fn next(seats: &[Seat], members: &[Member], leader: Option<MemberId>) -> Step {
    let member_of = |seat: &Seat| members.iter().find(|member| member.peer_urls.contains(&seat.record.peer_url));
    let seat_of = |member: &Member| seats.iter().find(|seat| member.peer_urls.contains(&seat.record.peer_url));
    let is_voter = |seat: &Seat| member_of(seat).is_some_and(|member| !member.learner);

    for seat in seats {
        let found = member_of(seat);
        let state = match found {
            None => MemberState::Client,
            Some(member) if member.learner => MemberState::Learner,
            Some(_) => MemberState::Voter,
        };
        let member = found.map(|member| member.id);
        let mended = found.is_none() && seat.record.damaged.is_some();
        if (state, member) != (seat.record.state, seat.record.member) || mended {
            return Step::Note { host: seat.host.clone(), state, member };
        }
    }
    let voters = members.iter().filter(|member| !member.learner).count();
    for member in members.iter().filter(|member| member.learner || voters > 1) {
        match seat_of(member) {
            None => return Step::Remove { host: None, member: member.id, why: "its host is not in the cluster any more" },
            Some(seat) if seat.record.damaged.is_some() => {
                let why = "its data cannot be used: it is made anew from the others";
                return Step::Remove { host: Some(seat.host.clone()), member: member.id, why };
            }
            Some(_) => {}
        }
    }

    let wanted = chosen(seats, is_voter);
    let is_wanted = |seat: &Seat| wanted.iter().any(|host| *host == seat.host);
    if let Some(learner) = members.iter().find(|member| member.learner) {
        return match seat_of(learner) {
            Some(seat) if is_wanted(seat) && seat.alive => Step::Promote { host: seat.host.clone(), member: learner.id },
            Some(seat) if is_wanted(seat) && !seat.lost => {
                Step::Wait(format!("{} is to become a member of the store, and is silent", seat.host))
            }
            seat => {
                let why = "another host is to have its place";
                Step::Remove { host: seat.map(|seat| seat.host.clone()), member: learner.id, why }
            }
        };
    }
    // etcd takes no new member while one of the old ones does not answer, so that one goes first.
    if let Some((seat, member)) = pairs(seats, members).find(|(seat, _)| seat.lost && !is_wanted(seat)) {
        let why = "it was not heard of for a long time, and another host takes its place";
        return Step::Remove { host: Some(seat.host.clone()), member: member.id, why };
    }
    if let Some(seat) = seats.iter().find(|seat| is_wanted(seat) && member_of(seat).is_none()) {
        return Step::Add { host: seat.host.clone() };
    }
    let successor = || pairs(seats, members).find(|(seat, _)| is_wanted(seat) && seat.alive && !seat.drained);
    let move_from = |leader: &Member| {
        let (seat, to) = successor()?;
        let from_url = leader.client_urls.first()?.clone();
        Some(Step::MoveLeader { from_url, host: seat.host.clone(), to: to.id })
    };
    if let Some((seat, member)) = pairs(seats, members).find(|(seat, _)| !is_wanted(seat)) {
        let moved = (leader == Some(member.id)).then(|| move_from(member)).flatten();
        let why = if seat.record.leaving { "its host leaves the cluster" } else { "other hosts have its place" };
        return moved.unwrap_or(Step::Remove { host: Some(seat.host.clone()), member: member.id, why });
    }
    let drained = pairs(seats, members).find(|(seat, member)| seat.drained && leader == Some(member.id));
    drained.and_then(|(_, member)| move_from(member)).unwrap_or(Step::Nothing)
}

/// Hosts with their members.
fn pairs<'a>(seats: &'a [Seat], members: &'a [Member]) -> impl Iterator<Item = (&'a Seat, &'a Member)> {
    seats.iter().filter_map(|seat| Some((seat, members.iter().find(|m| m.peer_urls.contains(&seat.record.peer_url))?)))
}

/// The hosts that are to have a vote.
fn chosen(seats: &[Seat], is_voter: impl Fn(&Seat) -> bool) -> Vec<&str> {
    let mut staying: Vec<&Seat> = seats.iter().filter(|seat| !seat.record.leaving).collect();
    // Those that have a seat count, lost or not: their loss is no reason for fewer.
    let able = staying.iter().filter(|seat| seat.alive || is_voter(seat)).count();
    let count = wanted(staying.len()).min(if able.is_multiple_of(2) { able.saturating_sub(1) } else { able }).max(1);
    let burden = |seat: &Seat| match (seat.alive, is_voter(seat)) {
        _ if seat.lost => 2,
        (false, false) => 2,
        _ if seat.drained => 1,
        _ => 0,
    };
    staying.sort_by(|one, other| {
        let key = |seat: &Seat| (burden(seat), !seat.record.witness, !is_voter(seat));
        key(one).cmp(&key(other)).then_with(|| one.host.cmp(&other.host))
    });
    staying.into_iter().take(count).map(|seat| seat.host.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    fn seat(number: u8) -> Seat {
        Seat {
            host: format!("h{number}"),
            record: MemberRecord {
                addresses: vec![[192, 0, 2, number].into()],
                api_port: 8420,
                client_url: format!("https://192.0.2.{number}:2379"),
                peer_url: format!("https://192.0.2.{number}:2380"),
                witness: false,
                version: "0.1.0".into(),
                state: MemberState::Client,
                member: None,
                leaving: false,
                damaged: None,
                certificates: 0,
                join: Uuid::nil(),
                joined_at: OffsetDateTime::UNIX_EPOCH,
            },
            alive: true,
            lost: false,
            drained: false,
        }
    }

    /// A cluster whose steps are done at once.
    struct Played {
        seats: Vec<Seat>,
        members: Vec<Member>,
        leader: Option<MemberId>,
        next_id: u64,
        log: Vec<String>,
    }

    impl Played {
        /// The first host has made the cluster.
        fn of(hosts: u8) -> Played {
            let mut played =
                Played { seats: (1..=hosts).map(seat).collect(), members: Vec::new(), leader: None, next_id: 1, log: Vec::new() };
            played.add("h1", false);
            played.leader = Some(MemberId(1));
            played
        }

        fn seat(&mut self, host: &str) -> &mut Seat {
            self.seats.iter_mut().find(|seat| seat.host == host).unwrap()
        }

        fn add(&mut self, host: &str, learner: bool) {
            let id = MemberId(self.next_id);
            self.next_id += 1;
            let record = &self.seat(host).record;
            let member = Member {
                id,
                name: host.into(),
                peer_urls: vec![record.peer_url.clone()],
                client_urls: vec![record.client_url.clone()],
                learner,
            };
            self.members.push(member);
        }

        /// Does all steps; gives the voters.
        fn settle(&mut self) -> Vec<String> {
            self.log.clear();
            for _ in 0..100 {
                let step = next(&self.seats, &self.members, self.leader);
                match step {
                    Step::Nothing => break,
                    Step::Wait(text) => {
                        self.log.push(text);
                        break;
                    }
                    Step::Note { host, state, member } => {
                        let record = &mut self.seat(&host).record;
                        (record.state, record.member, record.damaged) = (state, member, None);
                    }
                    Step::Add { host } => {
                        assert!(self.members.iter().all(|member| !member.learner), "etcd takes one learner");
                        assert!(self.voters_answer(), "etcd takes none while a voter is silent");
                        self.log.push(format!("add {host}"));
                        self.add(&host, true);
                    }
                    Step::Promote { host, member } => {
                        assert!(self.seat(&host).alive);
                        self.log.push(format!("promote {host}"));
                        self.members.iter_mut().find(|m| m.id == member).unwrap().learner = false;
                    }
                    Step::Remove { member, .. } => {
                        let index = self.members.iter().position(|m| m.id == member).unwrap();
                        self.log.push(format!("remove {}", self.members[index].name));
                        self.members.remove(index);
                        if self.leader == Some(member) {
                            self.leader = self.members.iter().find(|member| !member.learner).map(|member| member.id);
                        }
                    }
                    Step::MoveLeader { host, to, .. } => {
                        self.log.push(format!("lead {host}"));
                        self.leader = Some(to);
                    }
                }
                assert!(self.members.iter().any(|member| !member.learner), "there is always one: {:?}", self.log);
            }
            let mut voters: Vec<String> =
                self.members.iter().filter(|member| !member.learner).map(|member| member.name.clone()).collect();
            voters.sort();
            voters
        }

        fn voters_answer(&self) -> bool {
            self.members.iter().filter(|member| !member.learner).all(|member| {
                self.seats.iter().find(|seat| seat.host == member.name).is_some_and(|seat| seat.alive)
            })
        }
    }

    #[test]
    fn one_or_two_hosts_have_one_member_three_have_three_and_seven_have_five() {
        for (hosts, voters) in [(1, 1), (2, 1), (3, 3), (6, 3), (7, 5), (20, 5)] {
            assert_eq!(Played::of(hosts).settle().len(), voters, "{hosts} hosts");
        }
        let mut three = Played::of(3);
        three.settle();
        assert_eq!(three.log, ["add h2", "promote h2", "add h3", "promote h3"]);
    }

    #[test]
    fn nobody_begins_with_two_members_while_the_third_is_not_there() {
        let mut played = Played::of(3);
        played.seat("h3").alive = false;
        assert_eq!(played.settle(), ["h1"]);
        played.seat("h3").alive = true;
        assert_eq!(played.settle(), ["h1", "h2", "h3"]);
    }

    #[test]
    fn a_witness_has_a_vote_before_others() {
        let mut played = Played::of(5);
        played.seat("h5").record.witness = true;
        assert_eq!(played.settle(), ["h1", "h2", "h5"]);
        // One that comes later takes the place of another.
        let mut played = Played::of(4);
        assert_eq!(played.settle(), ["h1", "h2", "h3"]);
        played.seat("h4").record.witness = true;
        assert_eq!(played.settle(), ["h1", "h2", "h4"]);
        assert_eq!(played.log, ["add h4", "promote h4", "remove h3"]);
    }

    #[test]
    fn a_host_that_is_silent_keeps_its_seat_until_it_is_lost_and_another_one_is_there() {
        let mut played = Played::of(4);
        played.settle();
        played.seat("h2").alive = false;
        assert_eq!(played.settle(), ["h1", "h2", "h3"]);
        played.seat("h2").lost = true;
        assert_eq!(played.settle(), ["h1", "h3", "h4"]);
        assert_eq!(played.log, ["remove h2", "add h4", "promote h4"]);
        // Without another one, it keeps it.
        let mut played = Played::of(3);
        played.settle();
        (played.seat("h2").alive, played.seat("h2").lost) = (false, true);
        assert_eq!(played.settle(), ["h1", "h2", "h3"]);
        assert!(played.log.is_empty());
    }

    #[test]
    fn a_drained_host_gives_its_seat_to_another_and_leads_no_more() {
        let mut played = Played::of(4);
        played.settle();
        played.seat("h1").drained = true;
        assert_eq!(played.settle(), ["h2", "h3", "h4"]);
        assert_eq!(played.log, ["add h4", "promote h4", "lead h2", "remove h1"]);
        let mut played = Played::of(3);
        played.settle();
        played.seat("h1").drained = true;
        assert_eq!(played.settle(), ["h1", "h2", "h3"], "nobody else can take it");
        assert_eq!(played.log, ["lead h2"]);
    }

    #[test]
    fn the_only_member_moves_when_its_host_leaves() {
        let mut played = Played::of(2);
        played.settle();
        played.seat("h1").record.leaving = true;
        assert_eq!(played.settle(), ["h2"]);
        assert_eq!(played.log, ["add h2", "promote h2", "lead h2", "remove h1"]);
        let mut played = Played::of(3);
        played.settle();
        played.seat("h3").record.leaving = true;
        assert_eq!(played.settle(), ["h1"], "two hosts are left, and have one member");
    }

    #[test]
    fn a_member_with_damaged_data_is_made_anew_and_one_of_a_removed_host_goes() {
        let mut played = Played::of(3);
        played.settle();
        played.seat("h2").record.damaged = Some("its data".into());
        assert_eq!(played.settle(), ["h1", "h2", "h3"]);
        assert_eq!(played.log, ["remove h2", "add h2", "promote h2"]);
        played.seats.retain(|seat| seat.host != "h3");
        assert_eq!(played.settle(), ["h1"]);
    }

    proptest! {
        /// Whatever becomes of hosts: steps end, and what is left is an odd number of members, the hosts that can have them having them.
        #[test]
        fn every_cluster_settles(hosts in 1_u8..9, faults in prop::collection::vec((1_u8..9, 0_u8..6), 0..12)) {
            let mut played = Played::of(hosts);
            played.settle();
            for (host, fault) in faults {
                let silent = played.seats.iter().filter(|seat| !seat.alive).count();
                let leaving = played.seats.iter().filter(|seat| seat.record.leaving).count();
                let majority = played.members.iter().filter(|member| !member.learner).count() / 2;
                let Some(seat) = played.seats.iter_mut().find(|seat| seat.host == format!("h{host}")) else { continue };
                match fault {
                    // The store must go on, or nobody takes steps.
                    0 if silent < majority => (seat.alive, seat.lost) = (false, true),
                    1 => (seat.alive, seat.lost) = (true, false),
                    2 => seat.drained = true,
                    3 => seat.drained = false,
                    4 => seat.record.witness = !seat.record.witness,
                    5 if leaving + 1 < usize::from(hosts) && seat.alive && silent == 0 => seat.record.leaving = true,
                    _ => {}
                }
                let voters = played.settle();
                let staying = played.seats.iter().filter(|seat| !seat.record.leaving).count();
                prop_assert!(voters.len() % 2 == 1 && voters.len() <= wanted(staying), "{voters:?} of {staying}: {:?}", played.log);
            }
        }
    }
}
