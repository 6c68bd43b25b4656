//! A control group for each VM, where there are control groups of version 2.
//!
//! Those of VMs that end with their host's lease are in one directory, which the guard empties; those of VMs that are bound to this host, and run
//! on, are in another one beside it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// The time in which a cap counts, in microseconds: the kernel's own. In a shorter one, a cap of 1 % would be less than the kernel takes.
const PERIOD_US: u64 = 100_000;
/// The weight that the kernel gives a group; here what both directories of VMs have together.
const DEFAULT_WEIGHT: u64 = 100;
/// How long a group may take to become empty.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether it is.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The directories in which each running VM has a control group.
#[derive(Clone, Debug)]
pub struct Cgroups {
    directory: Option<PathBuf>,
    /// For VMs that are bound to this host; made with the first.
    bound: Option<PathBuf>,
    /// Whether processor time can be shared out.
    has_cpu: bool,
}

impl Cgroups {
    /// Uses this directory below `/sys/fs/cgroup`; makes it. Gives the reason if VMs go without, or with less.
    pub fn at(path: &Path) -> (Cgroups, Option<String>) {
        if let Err(error) = make(path) {
            let reason = format!("VMs get no control groups of their own: {}: {error}", path.display());
            return (Cgroups { directory: None, bound: None, has_cpu: false }, Some(reason));
        }
        let (mut has_cpu, mut reason) = (true, None);
        for (controller, handed_down) in hand_down(path) {
            if let Err(error) = handed_down {
                has_cpu &= controller != "cpu";
                reason = Some(format!("VMs get no control of their {controller}: {}: {error}", path.display()));
            }
        }
        let bound = path.file_name().map(|name| path.with_file_name(format!("{}-bound", name.display())));
        (Cgroups { directory: Some(path.into()), bound, has_cpu }, reason)
    }

    /// The directory of VMs that end with the lease.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// Those beside these: for what serves VMs and must not end with them.
    pub fn beside(&self) -> Cgroups {
        let directory = self.directory.as_ref().and_then(|directory| Some(directory.parent()?.to_owned()));
        Cgroups { directory, bound: None, ..self.clone() }
    }

    /// Whether processor time can be shared out.
    pub fn has_cpu(&self) -> bool {
        self.has_cpu
    }

    fn group(&self, name: impl std::fmt::Display) -> Option<PathBuf> {
        let name = name.to_string();
        let bound = self.bound.as_ref().map(|bound| bound.join(&name)).filter(|group| group.exists());
        bound.or_else(|| Some(self.directory.as_ref()?.join(name)))
    }

    /// Makes the group of a VM that is about to be started, so that it is among those that are bound to this host, or among the others.
    pub fn begin(&self, vm: Uuid, is_bound: bool) -> io::Result<()> {
        // One of an earlier run may be left on the other side.
        if self.is_bound(vm) != is_bound {
            self.remove(vm)?;
        }
        let (true, Some(bound)) = (is_bound, &self.bound) else { return Ok(()) };
        if !bound.exists() {
            make(bound)?;
            // What cannot be handed down here cannot be in the other directory either, and that was said.
            hand_down(bound).for_each(drop);
        }
        make(&bound.join(vm.to_string()))
    }

    /// Whether a VM is among those that are bound to this host.
    pub fn is_bound(&self, vm: Uuid) -> bool {
        self.bound.as_ref().is_some_and(|bound| bound.join(vm.to_string()).exists())
    }

    /// The file that the process of a VM, or of the switches, must write `0` to, so that it is in its group.
    pub fn enter(&self, vm: impl std::fmt::Display) -> io::Result<Option<File>> {
        let Some(group) = self.group(vm) else { return Ok(None) };
        make(&group)?;
        File::options().write(true).open(group.join("cgroup.procs")).map(Some)
    }

    /// The most that a VM's threads together get, in per cent of one processor. Makes its group if it is not there. Gives whether there are
    /// such groups.
    pub fn set_cap(&self, vm: Uuid, cap_percent: Option<u32>) -> io::Result<bool> {
        let Some(group) = self.group(vm).filter(|_| self.has_cpu) else { return Ok(false) };
        make(&group)?;
        let quota = cap_percent.map_or("max".into(), |cap| (u64::from(cap) * PERIOD_US / 100).to_string());
        fs::write(group.join("cpu.max"), format!("{quota} {PERIOD_US}"))?;
        Ok(true)
    }

    /// A running VM's part of the processors beside others. Gives whether it has a group.
    pub fn set_weight(&self, vm: Uuid, weight: u32) -> io::Result<bool> {
        let Some(group) = self.group(vm).filter(|_| self.has_cpu) else { return Ok(false) };
        match fs::write(group.join("cpu.weight"), weight.to_string()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            written => written.map(|()| true),
        }
    }

    /// Shares out between the two directories what one of them would have, as the weights of their VMs are: so that these share as if they were in
    /// one, to a hundredth.
    pub fn balance(&self, weights: impl Iterator<Item = (Uuid, u32)>) -> io::Result<()> {
        let (Some(directory), Some(bound), true) = (&self.directory, &self.bound, self.has_cpu) else { return Ok(()) };
        if !bound.exists() {
            return Ok(());
        }
        let (mut of_bound, mut of_all) = (0, 0);
        for (vm, weight) in weights {
            of_all += u64::from(weight);
            of_bound += if self.is_bound(vm) { u64::from(weight) } else { 0 };
        }
        let share = of_bound * DEFAULT_WEIGHT / of_all.max(1);
        for (group, weight) in [(directory, DEFAULT_WEIGHT - share), (bound, share)] {
            fs::write(group.join("cpu.weight"), weight.max(1).to_string())?;
        }
        Ok(())
    }

    /// Processor time of a VM in microseconds, since its group was made.
    pub fn cpu_us(&self, vm: Uuid) -> Option<u64> {
        let stat = fs::read_to_string(self.group(vm)?.join("cpu.stat")).ok()?;
        stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?.parse().ok()
    }

    /// Memory of a VM in bytes.
    pub fn memory_bytes(&self, vm: Uuid) -> Option<u64> {
        fs::read_to_string(self.group(vm)?.join("memory.current")).ok()?.trim().parse().ok()
    }

    /// Removes the group of a VM that has ended. The kernel's threads for a VM, and a process that is no child of ours, are gone a moment
    /// later than the VM has ended: that is waited for.
    pub fn remove(&self, vm: impl std::fmt::Display) -> io::Result<()> {
        let Some(group) = self.group(vm) else { return Ok(()) };
        let start = Instant::now();
        loop {
            match fs::remove_dir(&group) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && start.elapsed() < PATIENCE => {
                    std::thread::sleep(LOOK_AGAIN);
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => return Ok(()),
            }
        }
    }

    /// VMs that have a group.
    pub fn list(&self) -> Vec<Uuid> {
        let entries = self.directory.iter().chain(&self.bound).flat_map(fs::read_dir).flatten().flatten();
        entries.filter_map(|entry| Uuid::parse_str(entry.file_name().to_str()?).ok()).collect()
    }
}

/// Lets a group's children have what it has: the group and the one above must hand it down. Gives what came of it for each controller.
fn hand_down(path: &Path) -> impl Iterator<Item = (&'static str, io::Result<()>)> {
    ["cpu", "memory"].into_iter().map(move |controller| {
        let mut levels = path.parent().into_iter().chain([path]);
        let hand = |level: &Path| fs::write(level.join("cgroup.subtree_control"), format!("+{controller}"));
        (controller, levels.try_for_each(hand))
    })
}

fn make(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Where nothing is mounted, or version 1, this is a directory like any other.
    if group.join("cgroup.procs").exists() {
        return Ok(());
    }
    fs::remove_dir(group)?;
    Err(io::Error::other("there are no control groups of version 2"))
}
