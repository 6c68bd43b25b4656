//! Hosts start every time.

use lab::Lab;

#[test]
#[ignore = "minutes; run it after a change of the machine or the kernel's command line"]
fn hosts_start_every_time() {
    let lab = Lab::new().hosts(2).disk_mib(64).start().unwrap();
    for round in 0..40 {
        lab.hosts().iter().for_each(|host| host.power_cut());
        lab.hosts().iter().for_each(|host| host.switch_on().unwrap());
        let times: Vec<_> = lab.hosts().iter().map(|host| host.wait_ready().unwrap()).collect();
        println!("round {round}: {times:?}");
    }
}
