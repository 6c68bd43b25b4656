//! A guest writes and verifies all the time, while checkpoints of it are made, applied and merged, and `marud` is killed in between.

mod common;

use common::managed::{console, json, managed_lab, start_marud, vm};
use common::{PATIENCE, Vm, flushed, shell, with_file_system};
use lab::Lab;
use lab::host::Host;
use serde_json::Value;

const VOLUMES: [&str; 2] = ["local=/mnt/vms", "guest=/guest"];
const DISK: &str = "maru.disk=vda maru.disk_mib=48";

/// A host with `marud`, and a file system for its VMs at `/mnt`.
fn host() -> Lab {
    let lab = with_file_system(managed_lab(), 1024);
    let host = lab.host(0);
    shell(host, "mkdir /mnt/vms");
    start_marud(host, &VOLUMES);
    lab
}

/// The newest number of blocks that the guest has flushed. It verifies what it reads, and says so for ever if something is lost.
fn newest(said: &str) -> Option<u64> {
    assert!(!said.contains("FAIL"), "{said}");
    flushed(said)
}

/// Waits until the guest has flushed more than it had; gives how much that is.
fn goes_on(host: &Host) -> u64 {
    let id = vm(host, "web")["id"].as_str().unwrap().to_owned();
    let mut first = None;
    let said = console(host, &id, PATIENCE, |said| {
        let now = newest(said);
        first = first.or(now);
        now.zip(first).is_some_and(|(now, first)| now > first + 64)
    });
    newest(&said).expect("just found")
}

/// Checks the disk of the VM, which is off: all that was flushed must be there.
fn verify(host: &Host, flushed: u64) {
    let file = vm(host, "web")["spec"]["disks"][0]["file"].as_str().unwrap().replace("local:", "/mnt/vms/");
    shell(host, &format!("maru disk convert {file} /mnt/check.raw --overwrite"));
    let words = format!("maru.test=disk-verify {DISK} maru.flushed={flushed}");
    let (_, output) = Vm::start(host, "verify", &words, &["--memory", "128M", "--disk", "/mnt/check.raw"]).wait();
    assert!(output.contains("disk-verify ok"), "{output}");
    shell(host, "rm /mnt/check.raw");
}

/// The names in the tree.
fn names(host: &Host) -> Vec<String> {
    let list = json(host, "maru vm checkpoint list web");
    list.as_array().unwrap().iter().map(|checkpoint| checkpoint["name"].as_str().unwrap().to_owned()).collect()
}

fn chain_length(host: &Host) -> usize {
    vm(host, "web")["chains"][0]["files"].as_array().unwrap().len()
}

/// Deletes a checkpoint, and kills `marud` as soon as it has been told to; the next one goes on.
fn delete_with_a_kill(host: &Host, checkpoint: &str) {
    let task = shell(host, &format!("maru vm checkpoint delete web {checkpoint} --no-wait; kill -9 $(pidof marud)"));
    start_marud(host, &VOLUMES);
    println!("{checkpoint} after the kill: {}", json(host, &format!("maru task show {}", task.trim()))["state"]);
    shell(host, &format!("maru task wait {}", task.trim()));
}

#[test]
fn a_guest_that_writes_all_the_time_goes_back_and_on_in_a_tree_of_checkpoints() {
    let lab = host();
    let host = lab.host(0);
    shell(host, "maru disk create /mnt/vms/web.vhdx --size 48M --block-size 1M");
    let words = format!("console=ttyS0 quiet panic=-1 mitigations=off maru.test=load {DISK} maru.mem=0 maru.pace_us=500");
    shell(
        host,
        &format!(
            "maru vm create web --kernel guest:vmlinuz --initrd guest:initramfs --disk local:web.vhdx --memory 128M --cmdline '{words}'"
        ),
    );
    shell(host, "maru vm start web");
    goes_on(host);
    for name in ["one", "two"] {
        shell(host, &format!("maru vm checkpoint create web {name}"));
        goes_on(host);
    }
    for checkpoint in json(host, "maru vm checkpoint list web").as_array().unwrap() {
        println!("{} paused the guest for {} ms", checkpoint["name"], checkpoint["pause_ms"]);
        assert!(checkpoint["pause_ms"].as_u64().unwrap() > 0);
    }
    assert_eq!(chain_length(host), 3);
    // Killed at any point, a checkpoint is there or it is not, and the guest goes on.
    shell(host, "maru vm checkpoint create web three --no-wait; kill -9 $(pidof marud)");
    start_marud(host, &VOLUMES);
    let end = goes_on(host);
    shell(host, "maru vm stop web --force");
    verify(host, end);

    // A branch: the guest goes on in the middle of what it did at the first checkpoint.
    shell(host, "maru vm checkpoint apply web one --before end");
    assert_eq!(vm(host, "web")["state"], "saved");
    shell(host, "maru vm start web");
    goes_on(host);
    shell(host, "maru vm checkpoint create web branch");
    goes_on(host);
    // What the running VM does not use is merged beside it; then what it does.
    delete_with_a_kill(host, "two");
    goes_on(host);
    delete_with_a_kill(host, "branch");
    let branch = goes_on(host);
    shell(host, "maru vm stop web --force");
    verify(host, branch);

    // The other branch has what it had.
    shell(host, "maru vm checkpoint apply web end --discard");
    assert_eq!(vm(host, "web")["state"], "off");
    verify(host, end);
    shell(host, "maru vm start web");
    goes_on(host);
    let names = names(host);
    assert!(["one", "end"].iter().all(|name| names.iter().any(|other| other == name)), "{names:?}");
    // All of them: the disk is one file again, under a guest that writes.
    shell(host, "maru vm checkpoint delete web one --subtree");
    let last = goes_on(host);
    assert_eq!(json(host, "maru vm checkpoint list web"), Value::Array(Vec::new()));
    println!("a chain of {} files, {}", chain_length(host), shell(host, "find /mnt/vms -type f"));
    shell(host, "maru vm stop web --force");
    shell(host, "maru vm checkpoint merge web");
    assert_eq!(chain_length(host), 1);
    verify(host, last);
    shell(host, "maru vm delete web --disks delete");
    assert_eq!(shell(host, "find /mnt/vms -type f; pidof maru-vmm || true"), "");
}
