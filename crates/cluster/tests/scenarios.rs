//! Scenarios, played, and their logs. `MARU_WRITE_LOGS=1` writes the logs anew; read what has changed before keeping it.

use std::fs;
use std::path::Path;

use cluster::simulate::scenario::Scenario;

/// Plays a scenario, and compares its log with the one that was kept.
fn play(name: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let text = fs::read_to_string(directory.join(format!("{name}.toml"))).unwrap();
    let played = Scenario::parse(&text).unwrap().play();
    assert_eq!(played.violation, None);
    let kept = directory.join(format!("{name}.log"));
    if std::env::var_os("MARU_WRITE_LOGS").is_some() {
        fs::write(&kept, &played.log).unwrap();
    }
    let expected = fs::read_to_string(&kept).unwrap();
    assert!(played.log == expected, "{}is not what {} has", played.log, kept.display());
}

#[test]
fn a_cluster_that_lost_all_power_comes_back_by_itself() {
    play("all-lost-power");
}

#[test]
fn files_of_one_hosts_own_are_copied_when_it_is_drained() {
    play("copy");
}

#[test]
fn vms_with_files_of_their_hosts_own_run_on_without_a_lease() {
    play("bound");
}

#[test]
fn a_drained_host_gives_its_vms_away_and_gets_them_back() {
    play("drain");
}

#[test]
fn a_host_that_stood_still_writes_nothing_when_it_goes_on() {
    play("freeze");
}

#[test]
fn a_lost_leader_costs_seconds() {
    play("leader-lost");
}

#[test]
fn a_host_without_a_watchdog_waits_for_a_word() {
    play("no-watchdog");
}

#[test]
fn a_host_that_is_not_heard_stops_in_time() {
    play("one-way");
}

#[test]
fn vms_of_a_host_without_power_start_elsewhere_by_priority() {
    play("power-cut");
}

#[test]
fn vms_stop_without_a_quorum_and_come_back_with_it() {
    play("quorum-lost");
}

#[test]
fn a_vm_that_fails_too_often_is_given_up_until_a_user_starts_it() {
    play("restart-limit");
}

#[test]
fn services_that_are_restarted_fence_nobody_and_those_that_hang_do() {
    play("services");
}

#[test]
fn two_hosts_and_a_witness_survive_a_host() {
    play("two-hosts-and-witness");
}

#[test]
fn a_host_that_is_switched_off_in_order_takes_no_vm_with_it_and_gets_all_back() {
    let text = r#"
        title = "A host is switched off in order"
        hosts = 3
        end_s = 60
        vm = [{ name = "web", preferred = ["h2"] }, { name = "mail", preferred = ["h2"] }, { name = "bound", possible = ["h2"] }]
        step = [
            { at_s = 10, do = "go-down h2" }, { at_s = 20, do = "power-cut h2" }, { at_s = 30, do = "power-on h2" },
        ]
    "#;
    let played = Scenario::parse(text).unwrap().play();
    assert_eq!(played.violation, None);
    let (down, rest) = played.log.split_once("h2 is to be switched off").unwrap().1.split_once("power cut of h2").unwrap();
    for line in
        ["bound is gone: Saved", "web is gone: Saved", "mail is gone: Saved", "restores web", "restores mail", "h2 is drained"]
    {
        assert!(down.contains(line), "{line}: {}", played.log);
    }
    let (off, back) = rest.split_once("h2 gets power").unwrap();
    assert!(!off.contains("bound goes to") && !played.log.contains("Killed"), "{}", played.log);
    assert!(back.contains("h2       restores bound"), "{}", played.log);
    for vm in ["web", "mail", "bound"] {
        assert!(back.contains(&format!("{vm} belongs to h2")), "{}", played.log);
    }
}

#[test]
fn every_scenario_has_a_log() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let scenarios: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(".toml")).collect();
    assert_eq!(scenarios.len(), 13);
    assert!(scenarios.iter().all(|name| names.contains(&format!("{name}.log"))));
}

/// The error of a scenario with one line more, or with another in its place.
fn refusal(text: &str) -> String {
    Scenario::parse(text).err().unwrap().to_string()
}

#[test]
fn what_is_no_scenario_is_refused_with_the_reason() {
    let with = |more: &str| refusal(&format!("title = \"x\"\nhosts = 3\nend_s = 10\n{more}"));
    let step = |at: &str, what: &str| with(&format!("[[step]]\nat_s = {at}\ndo = \"{what}\"\n"));
    assert!(refusal("").contains("missing field"));
    assert!(with("colour = 1").contains("unknown field `colour`"));
    assert!(refusal("title = \"x\"\nend_s = 1").contains("1 to 1000 hosts"));
    assert!(refusal("title = \"x\"\nhosts = 99999999\nend_s = 1").contains("1 to 1000 hosts"));
    assert!(with("members = [\"h9\"]").contains("'h9' is no host"));
    assert!(with("[[vm]]\nname = \"h1\"").contains("'h1' is there twice"));
    assert!(with("[[vm]]\nname = \"a/b\"").contains("no name"));
    assert!(step("nan", "heal").contains("NaN s is no time"));
    assert!(step("-1", "heal").contains("-1 s is no time"));
    assert!(step("1e300", "heal").contains("is no time"));
    assert!(step("1", "").contains("no such command"));
    assert!(step("1", "explode h1").contains("the step 'explode h1'"));
    for wrong in
        ["power-cut", "power-cut h9", "freeze h1 x", "freeze h1 -1", "freeze h1 inf", "cut 3 h1 h2", "loss 1 101", "start web"]
    {
        assert!(step("1", wrong).contains(&format!("the step '{wrong}'")));
    }
}

#[test]
fn the_times_of_a_failover_are_those_that_the_book_says() {
    // Each with the moment of the power cut, and the line of the start elsewhere.
    for (name, start, from_s, to_s) in [("power-cut", "starts database", 4.5, 5.2), ("leader-lost", "starts web", 4.5, 5.2)] {
        let log =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(format!("{name}.log"))).unwrap();
        let time = |line: &str| line.split_whitespace().next().unwrap().parse::<f64>().unwrap();
        let cut = log.lines().find(|line| line.contains("*        power cut of")).map(time).unwrap();
        let started = log.lines().filter(|line| line.contains(start)).map(time).find(|at| *at > cut).unwrap();
        assert!((from_s..=to_s).contains(&(started - cut)), "{name}: {}", started - cut);
    }
}
