//! The kernel and its interfaces.

use crate::probe::{Answer, Answers};
use crate::report::{Group, Item, Status};
use crate::root::Root;

fn item(id: &'static str, title: &'static str, status: Status, found: impl Into<String>) -> Item {
    Item::new(Group::Kernel, id, title, status, found.into())
}

/// The oldest kernel that has everything (KVM's real-time clock, TSC offsets), and the one we test on.
const FLOOR: (u32, u32) = (5, 16);
const TESTED: (u32, u32) = (6, 1);

pub(super) fn items(root: &Root, answers: &Answers) -> Vec<Item> {
    vec![
        version(root),
        io_uring(root, answers.io_uring),
        userfaultfd(root, answers),
        memfd(answers.memfd),
        landlock(answers.landlock),
        seccomp(answers.seccomp),
        cgroups(root),
        ofd_locks(answers.ofd_locks),
    ]
}

fn error(number: i32) -> String {
    std::io::Error::from_raw_os_error(number).to_string()
}

/// `major.minor` of a release such as `6.1.0-56-cloud-amd64`.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn version(root: &Root) -> Item {
    let (id, title) = ("kernel.version", "Linux");
    let Some(release) = root.text("/proc/sys/kernel/osrelease") else {
        return item(id, title, Status::Info, "unknown");
    };
    match parse_release(&release) {
        Some(version) if version < FLOOR => item(id, title, Status::Missing, release)
            .cost("older than 5.16: guests lose time over a move, and we do not test it")
            .fix("Linux 6.1 or newer"),
        Some(version) if version < TESTED => {
            item(id, title, Status::Warn, release).cost("older than the 6.1 we test on").fix("Linux 6.1 or newer")
        }
        _ => item(id, title, Status::Ok, release),
    }
}

fn io_uring(root: &Root, answer: Answer) -> Item {
    let (id, title) = ("kernel.io_uring", "io_uring");
    let number = match answer {
        Ok(_) => return item(id, title, Status::Ok, "yes"),
        Err(number) => number,
    };
    let disabled = root.number("/proc/sys/kernel/io_uring_disabled").unwrap_or(0);
    let (found, fix) = match (number, disabled) {
        (libc::ENOSYS, _) => ("not in this kernel".into(), "a kernel with CONFIG_IO_URING"),
        (_, 1..) => (format!("switched off (kernel.io_uring_disabled={disabled})"), "`sysctl kernel.io_uring_disabled=0`"),
        (libc::ENOMEM, _) => (error(number), "raise the limit on locked memory (`ulimit -l`)"),
        _ => (error(number), "a container or seccomp profile forbids it: run outside, or allow io_uring_setup"),
    };
    item(id, title, Status::Missing, found).cost("disks do not work: the disk engine is built on it").fix(fix)
}

fn userfaultfd(root: &Root, answers: &Answers) -> Item {
    let (id, title) = ("kernel.userfaultfd", "userfaultfd");
    let cost = "a move cannot switch to post-copy: a guest that writes faster than the network carries is slowed instead";
    match (answers.userfaultfd, answers.userfaultfd_user_mode) {
        (Ok(_), _) => item(id, title, Status::Ok, "yes"),
        (Err(libc::ENOSYS), _) => {
            item(id, title, Status::Missing, "not in this kernel").cost(cost).fix("a kernel with CONFIG_USERFAULTFD")
        }
        (Err(_), Ok(_)) => {
            let fix = if root.exists("/dev/userfaultfd") {
                "give this user access to /dev/userfaultfd, or `sysctl vm.unprivileged_userfaultfd=1`"
            } else {
                "`sysctl vm.unprivileged_userfaultfd=1`, or run as root"
            };
            item(id, title, Status::Warn, "for user-mode accesses only, not for KVM's").cost(cost).fix(fix)
        }
        (Err(number), Err(_)) => item(id, title, Status::Missing, error(number))
            .cost(cost)
            .fix("`sysctl vm.unprivileged_userfaultfd=1`, or run as root and outside of a container"),
    }
}

fn memfd(answer: Answer) -> Item {
    let (id, title) = ("kernel.memfd", "memfd");
    match answer {
        Ok(_) => item(id, title, Status::Ok, "yes"),
        Err(number) => item(id, title, Status::Missing, error(number))
            .cost("guest memory cannot be shared with the virtual switch: VMs have no network")
            .fix("a kernel with CONFIG_MEMFD_CREATE"),
    }
}

fn landlock(answer: Answer) -> Item {
    let (id, title) = ("kernel.landlock", "Landlock");
    let number = match answer {
        Ok(version) => return item(id, title, Status::Ok, format!("ABI {version}")),
        Err(number) => number,
    };
    let (found, fix) = match number {
        libc::EOPNOTSUPP => ("in the kernel, but not switched on".into(), "add landlock to lsm= on the kernel command line"),
        libc::ENOSYS => ("not in this kernel".into(), "Linux 5.13 or newer with CONFIG_SECURITY_LANDLOCK"),
        other => (error(other), "allow landlock_create_ruleset in the container's seccomp profile"),
    };
    item(id, title, Status::Warn, found)
        .cost("one of the walls around a VM's process is missing: a monitor taken over can see more files")
        .fix(fix)
}

fn seccomp(answer: Answer) -> Item {
    let (id, title) = ("kernel.seccomp", "seccomp");
    match answer {
        Ok(_) => item(id, title, Status::Ok, "yes"),
        Err(number) => item(id, title, Status::Missing, error(number))
            .cost("maru-vmm cannot restrict its threads to the system calls they need")
            .fix("a kernel with CONFIG_SECCOMP_FILTER"),
    }
}

fn cgroups(root: &Root) -> Item {
    let (id, title) = ("kernel.cgroup2", "cgroup v2");
    let mounts = root.text("/proc/mounts").unwrap_or_default();
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let target = words.next()?;
        (words.next()? == "cgroup2").then(|| target.to_owned())
    });
    let cost = "CPU, memory and disk limits of VMs do not hold";
    let Some(mount) = mount else {
        return item(id, title, Status::Missing, "not mounted")
            .cost(cost)
            .fix("`mount -t cgroup2 none /sys/fs/cgroup`; with systemd: systemd.unified_cgroup_hierarchy=1");
    };
    let available = root.text(&format!("{mount}/cgroup.controllers")).unwrap_or_default();
    let lacking: Vec<&str> = ["cpu", "memory", "io", "pids"]
        .into_iter()
        .filter(|wanted| !available.split_whitespace().any(|have| have == *wanted))
        .collect();
    if lacking.is_empty() {
        return item(id, title, Status::Ok, format!("{mount}: {available}"));
    }
    item(id, title, Status::Warn, format!("{mount}, without {}", lacking.join(", ")))
        .cost(cost)
        .fix("the controllers are held by cgroup v1: boot with systemd.unified_cgroup_hierarchy=1 or cgroup_no_v1=all")
}

fn ofd_locks(answer: Answer) -> Item {
    let (id, title) = ("kernel.ofd_locks", "File locks (OFD)");
    match answer {
        Ok(_) => item(id, title, Status::Ok, "yes"),
        Err(number) => item(id, title, Status::Missing, error(number))
            .cost("a disk file cannot be kept from being opened twice")
            .fix("Linux 3.15 or newer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_kinds_are_understood() {
        assert_eq!(parse_release("6.1.0-56-cloud-amd64"), Some((6, 1)));
        assert_eq!(parse_release("6.18-rc3"), Some((6, 18)));
        assert_eq!(parse_release("5.15.153.1-microsoft-standard-WSL2"), Some((5, 15)));
        assert_eq!(parse_release("weird"), None);
        assert_eq!(parse_release(""), None);
    }
}
