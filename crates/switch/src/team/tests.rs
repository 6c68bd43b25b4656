//! Teams without sockets: what is taken from which NIC.

use super::*;
use crate::frame::build::{ethernet, mac};

/// A team whose NICs have no sockets: nothing can be sent.
fn team(mode: TeamMode, nics: usize) -> Team {
    let names = (0..nics).map(|nic| format!("eth{nic}")).collect();
    Team::new(&TeamConfig { nics: names, mode, ..TeamConfig::single("") }, (0..nics).map(|_| None).collect(), 0)
}

#[test]
fn groups_are_taken_from_the_active_nic_only() {
    let group = ethernet(mac(1), MacAddress::BROADCAST).other(0x0806);
    let single = ethernet(mac(1), mac(2)).other(0x0806);
    for (mode, takes_single) in [(TeamMode::ActiveStandby, false), (TeamMode::SourcePort, true), (TeamMode::AddressHash, true)] {
        let mut team = team(mode, 2);
        team.active = Some(1);
        assert_eq!(team.judge(1, &group, 0), Verdict::Take);
        assert_eq!(team.judge(0, &group, 0), Verdict::Drop(DropReason::Inactive), "{mode:?}");
        assert_eq!(team.judge(0, &single, 0) == Verdict::Take, takes_single, "{mode:?}");
        assert_eq!(team.status().nics[0].counters.rx_drops, if takes_single { 1 } else { 2 });
    }
}

#[test]
fn nothing_is_taken_before_lacp_agrees_and_its_packets_do_not_go_on() {
    let mut team = team(TeamMode::Lacp, 2);
    assert_eq!(team.judge(0, &ethernet(mac(1), mac(2)).other(0x0806), 0), Verdict::Drop(DropReason::Inactive));
    assert_eq!(team.judge(0, &ethernet(mac(1), pdu::DESTINATION).other(pdu::ETHER_TYPE), 0), Verdict::Done);
}

#[test]
fn without_a_link_there_is_nowhere_to_go() {
    for mode in [TeamMode::ActiveStandby, TeamMode::SourcePort, TeamMode::AddressHash, TeamMode::Lacp] {
        let mut team = team(mode, 2);
        let frame = ethernet(mac(1), mac(2)).tcp(("10.0.0.1".parse().unwrap(), 1), ("10.0.0.2".parse().unwrap(), 2));
        let origin = Origin { port: 1, hash: 1, head: &frame };
        let mut pieces = vec![Segment::of(&frame)];
        assert_eq!(team.write(&origin, &Vnet::default(), &mut pieces, frame.len()), Err(DropReason::NoLink));
    }
}

#[test]
fn a_team_that_is_changed_goes_on_with_the_nics_that_stay() {
    let mut before = team(TeamMode::ActiveStandby, 2).status();
    before.nics[1].is_active = true;
    before.nics[1].counters.tx_packets = 7;
    let nics = ["eth5", "eth1"].map(String::from).to_vec();
    let mut after = Team::new(&TeamConfig { nics, ..TeamConfig::single("") }, vec![None, None], 0);
    after.keep_of(&before);
    let counted: Vec<u64> = after.status().nics.iter().map(|nic| nic.counters.tx_packets).collect();
    assert_eq!(counted, [0, 7]);
    assert_eq!(after.active, None, "without a link it is in use no more");
}

#[test]
fn a_team_that_makes_no_sense_is_refused() {
    let config = |nics: &[&str], mode, primary: Option<&str>| TeamConfig {
        nics: nics.iter().map(|nic| nic.to_string()).collect(),
        mode,
        primary: primary.map(str::to_string),
        ..TeamConfig::single("")
    };
    let good = config(&["a", "b"], TeamMode::ActiveStandby, Some("b"));
    assert_eq!(good.check(), Ok(()));
    assert_eq!(config(&[], TeamMode::Lacp, None).check(), Err(config::TeamError::Nics(0)));
    assert_eq!(config(&["a"; 9], TeamMode::Lacp, None).check(), Err(config::TeamError::Nics(9)));
    assert_eq!(config(&["a", "b", "a"], TeamMode::Lacp, None).check(), Err(config::TeamError::Twice("a".into())));
    assert_eq!(config(&["a"], TeamMode::ActiveStandby, Some("c")).check(), Err(config::TeamError::Primary("c".into())));
    assert_eq!(config(&["a"], TeamMode::SourcePort, Some("a")).check(), Err(config::TeamError::PrimaryMode));
    let text = r#"{"nics": ["a", "b"], "mode": "active-standby", "primary": "b"}"#;
    assert_eq!(serde_json::from_str::<TeamConfig>(text).unwrap(), good);
}
