//! VMs of a host are changed while they run, cloned, exported and imported.

mod common;

use common::managed::{console, managed_lab, start_marud, vm};
use common::{PATIENCE, facts, make_taps, shell};
use lab::host::Host;
use serde_json::Value;

/// What the guest of a VM sees, when that is as wanted.
fn sees(host: &Host, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    println!("waiting for a guest that sees {what}");
    let id = vm(host, name)["id"].as_str().unwrap().to_owned();
    let mut seen = None;
    console(host, &id, PATIENCE, |text| {
        seen = facts(text).filter(|facts| wanted(facts));
        seen.is_some()
    });
    seen.expect("just seen")
}

#[test]
fn a_real_guest_is_changed_while_it_runs_and_its_disks_go_to_clones_and_out_and_back() {
    let lab = managed_lab().start().unwrap();
    let host = lab.host(0);
    make_taps(host, &["t0"]);
    start_marud(host, &["local=/srv", "guest=/guest"]);
    let disks = |facts: &Value| facts["disks"].as_array().unwrap().len();
    let memory = |facts: &Value| facts["mem_total_kib"].as_u64().unwrap();
    shell(
        host,
        "maru vm create web --kernel guest:vmlinuz --initrd guest:initramfs --disk size=64M --memory 128M --max-memory 384M --max-cpus 2 \
         --cmdline 'console=ttyS0 quiet panic=-1 mitigations=off memhp_default_state=online maru.test=idle'",
    );
    shell(host, "maru vm start web");
    let first = sees(host, "web", "the first facts", |facts| disks(facts) == 1);

    shell(
        host,
        "maru vm edit web --cpus 2 --memory 256M --add-disk size=32M,id=data --add-net tap=t0,id=nic,mac=52:54:00:00:00:07",
    );
    sees(host, "web", "all that is new", |facts| {
        disks(facts) == 2
            && facts["nics"][0]["mac"] == "52:54:00:00:00:07"
            && facts["cpus"] == 2
            && memory(facts) >= memory(&first) + 120 * 1024
    });
    shell(host, "maru vm edit web --grow-disk data=48M --link nic=down");
    sees(host, "web", "the larger disk", |facts| facts["disks"][1]["size_bytes"] == 48 << 20);
    // A guest that runs gives devices back; marud, which is killed meanwhile, goes on waiting for that.
    let task = shell(host, "maru vm edit web --remove-disk data --remove-net nic --no-wait && kill -9 $(pidof marud)");
    start_marud(host, &["local=/srv", "guest=/guest"]);
    shell(host, &format!("maru task wait {}", task.trim()));
    sees(host, "web", "the devices gone", |facts| disks(facts) == 1 && facts["nics"].as_array().unwrap().is_empty());
    assert_eq!(vm(host, "web")["spec"]["disks"].as_array().unwrap().len(), 1);
    let refused = host.exec(["maru", "vm", "edit", "web", "--max-cpus", "4"]).unwrap();
    assert!(!refused.success() && refused.error_text().contains("while the VM runs"), "{}", refused.error_text());
    // vCPUs go and come back, also after the VM was saved with fewer than it had.
    shell(host, "maru vm edit web --cpus 1");
    sees(host, "web", "one vCPU", |facts| facts["cpus"] == 1);
    shell(host, "maru vm edit web --cpus 2");
    sees(host, "web", "both vCPUs", |facts| facts["cpus"] == 2);
    shell(host, "maru vm edit web --cpus 1 && maru vm save web && maru vm start web && maru vm edit web --cpus 2");
    sees(host, "web", "both vCPUs after a restore", |facts| facts["cpus"] == 2);
    shell(host, "maru vm stop web");

    shell(host, "maru vm clone web whole && maru vm clone web linked --linked && maru vm export linked local:out/linked");
    shell(host, "maru vm import local:out/linked --name back");
    for name in ["web", "whole", "linked", "back"] {
        shell(host, &format!("maru vm start {name}"));
        sees(host, name, "its disk", |facts| facts["disks"][0]["size_bytes"] == 64 << 20);
        shell(host, &format!("maru vm stop {name} && maru vm delete {name} --disks delete"));
    }
    shell(host, "rm -r /srv/out /srv/web/data.vhdx && rmdir /srv/web /srv/vms");
    let left = shell(host, "ls -A /srv /run/maru/vms; pidof maru-vmm || true");
    assert_eq!(left.trim(), "/run/maru/vms:\n\n/srv:", "{left}");
}
