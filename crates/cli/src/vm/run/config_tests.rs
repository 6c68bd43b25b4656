//! From command lines to configurations.

use clap::Parser;
use vmm::config::{NetBackend, OnReset};
use vmm::state::Writer;

use super::super::args::ConfigSource;
use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: RunArgs,
}

fn args(rest: &[&str]) -> RunArgs {
    Command::try_parse_from([&["run"], rest].concat()).unwrap_or_else(|error| panic!("{error}")).args
}

fn usage_error(rest: &[&str]) -> String {
    Command::try_parse_from([&["run"], rest].concat()).err().unwrap().to_string()
}

fn booted(rest: &[&str]) -> Result<VmConfig, RunError> {
    let args = args(&[&["--kernel", "/k"], rest].concat());
    let ConfigSource::Boot(kernel) = args.source() else { panic!("a kernel was given") };
    boot(&args, kernel)
}

fn restored(file: &Path, rest: &[&str]) -> Result<VmConfig, RunError> {
    let args = args(&[&["--restore", file.to_str().unwrap()], rest].concat());
    let ConfigSource::Saved(file) = args.source() else { panic!("a saved VM was given") };
    saved(&args, file)
}

#[test]
fn a_kernel_alone_makes_a_small_vm_with_a_console() {
    let config = booted(&[]).unwrap();
    assert_eq!((config.cpus.count, config.memory.size), (1, 512 << 20));
    assert_eq!((config.boot.command_line.as_str(), config.name.as_str()), ("console=ttyS0", "vm"));
    assert!(config.rng && !config.balloon && config.disks.is_empty() && config.nets.is_empty() && config.vsock.is_none());
    assert_eq!(config.on_reset, OnReset::Restart);
}

#[test]
fn every_option_arrives() {
    let config = booted(&[
        "--initrd",
        "/i",
        "--cmdline",
        "root=/dev/vda quiet",
        "--disk",
        "/a",
        "--disk",
        "/b,ro,id=data",
        "--net",
        "tap=t0",
        "--net",
        "vhost-user=/s,mac=52:54:00:00:00:01",
        "--cpus",
        "2,max=4",
        "--memory",
        "1G,hotplug=2G",
        "--console",
        "virtio",
        "--balloon",
        "--no-rng",
        "--vsock",
        "cid=3,path=/v",
        "--name",
        "web",
        "--on-reset",
        "exit",
    ])
    .unwrap();
    assert_eq!(config.boot.initrd.as_deref(), Some(Path::new("/i")));
    assert_eq!(config.boot.command_line, "root=/dev/vda quiet console=hvc0");
    let ids: Vec<_> = config.disks.iter().map(|disk| (disk.id.as_str(), disk.read_only)).collect();
    assert_eq!(ids, [("disk0", false), ("data", true)]);
    assert_eq!((config.nets[0].id.as_str(), config.nets[0].mac), ("net0", default_mac("web", 0)));
    assert_eq!((config.nets[1].id.as_str(), config.nets[1].mac.0[5]), ("net1", 1));
    assert_eq!((config.cpus.count, config.cpus.max, config.memory.hotplug_size), (2, 4, 2 << 30));
    assert!(config.balloon && !config.rng && config.vsock.is_some());
    assert_eq!(config.on_reset, OnReset::Exit);
}

#[test]
fn a_console_that_was_chosen_is_left_alone() {
    let line = |text| booted(&["--cmdline", text]).unwrap().boot.command_line;
    assert_eq!(line("console=ttyS1 quiet"), "console=ttyS1 quiet");
    assert_eq!(line("netconsole=x"), "netconsole=x console=ttyS0");
    assert_eq!(line("--verbose"), "--verbose console=ttyS0");
}

#[test]
fn wrong_options_are_named_and_are_wrong_usage() {
    let error = booted(&["--disk", "/a,rw"]).unwrap_err();
    assert_eq!(error.exit_status(), 2);
    assert_eq!(
        vmm::error_chain(&error),
        format!("--disk '/a,rw': there is no part 'rw'; the form is {}", crate::options::DISK_FORM)
    );
    let error = booted(&["--disk", "/a,id=x", "--net", "tap=t,id=x"]).unwrap_err();
    assert_eq!(error.exit_status(), 2);
    assert!(vmm::error_chain(&error).contains("two devices are called 'x'"));

    let kernel = ["--kernel", "/k"];
    let with = |rest: &[&str]| usage_error(&[&kernel, rest].concat());
    assert!(with(&["--memory", "512"]).contains("'--memory <SIZE[,hotplug=SIZE][,hugepages]>'"));
    assert!(with(&["--cpus", "0"]).contains("at least one vCPU"));
    assert!(with(&["--vsock", "cid=1"]).contains("--vsock"));
    assert!(with(&["--console", "seriel"]).contains("serial"));
    assert!(with(&["--memroy", "1G"]).contains("--memory"));
    assert!(with(&["--restore", "/s"]).contains("cannot be used with"));
    assert!(usage_error(&[]).contains("--kernel"));
    assert!(usage_error(&["--restore", "/s", "--memory", "1G"]).contains("cannot be used with"));
}

fn saved_vm(config: &VmConfig) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = Writer::new(file.reopen().unwrap()).unwrap();
    writer.section("config", 1, &serde_json::to_vec(config).unwrap()).unwrap();
    writer.finish().unwrap();
    file
}

#[test]
fn a_saved_vm_is_what_it_was_with_its_devices_where_they_are_now() {
    let before = booted(&["--disk", "/old", "--disk", "/same,ro", "--net", "tap=old"]).unwrap();
    let file = saved_vm(&before);
    assert_eq!(restored(file.path(), &[]).unwrap(), before);
    let after = restored(file.path(), &["--disk", "disk0=/new", "--net", "net0=tap=new"]).unwrap();
    assert_eq!((after.disks[0].path.as_path(), after.disks[1].path.as_path()), (Path::new("/new"), Path::new("/same")));
    assert_eq!((&after.nets[0].backend, after.nets[0].mac), (&NetBackend::Tap("new".into()), before.nets[0].mac));
}

#[test]
fn devices_that_a_saved_vm_does_not_have_are_refused_with_those_that_it_has() {
    let file = saved_vm(&booted(&["--disk", "/a", "--disk", "/b"]).unwrap());
    let text = |rest: &[&str]| restored(file.path(), rest).unwrap_err().to_string();
    assert_eq!(text(&["--disk", "root=/x"]), "--disk: the saved VM has no disk 'root', it has disk0, disk1");
    assert_eq!(text(&["--net", "net0=tap=x"]), "--net: the saved VM has no network card 'net0', it has none");
    let error = restored(file.path(), &["--disk", "/x"]).unwrap_err();
    assert!(vmm::error_chain(&error).contains("the form is ID=FILE"));
}

#[test]
fn what_is_no_saved_vm_is_refused() {
    let error = restored(Path::new("/nowhere/saved"), &[]).unwrap_err();
    assert_eq!((error.to_string().as_str(), error.exit_status()), ("cannot open the saved VM /nowhere/saved", 1));
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = restored(file.path(), &[]).unwrap_err();
    assert!(vmm::error_chain(&error).contains("this is not a saved VM"));
}
