//! A lab as a whole: hosts, cables, shared disks.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::appliance::GuestImageError;
use crate::appliance::{
    FetchError, HOST_BOOT_MODULES, HOST_MODULES, Initramfs, InitramfsError, Kernel, busybox, etcd, kernel, program,
};
use crate::cable::Cable;
use crate::dirs::LabDirs;
use crate::host::{Accelerator, DiskFile, Host, HostError, HostSpec, Sharing};
#[cfg(doc)]
use crate::host::{SHARED_DIR, STATE_DIR};

/// Cable nets of every lab.
pub const CABLES: usize = 2;
/// Most hosts in one lab: their addresses and MACs end in one byte.
pub const MAX_HOSTS: usize = 200;

/// Why a lab could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A package could not be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The appliance could not be made.
    #[error(transparent)]
    Appliance(#[from] InitramfsError),
    /// The test guest could not be made.
    #[error(transparent)]
    Guest(#[from] GuestImageError),
    /// A state disk could not be given a file system.
    #[error("mke2fs made no file system on {path}: {reason} (Debian: apt-get install e2fsprogs)")]
    FileSystem {
        /// The disk.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// A program of ours is missing.
    #[error("cannot find the program {0}: build it with `cargo build --release`, or name its directory in MARU_BIN_DIR")]
    Program(String),
    /// A directory or disk could not be made.
    #[error("cannot make {path}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Too many or no hosts.
    #[error("a lab has 1 to {MAX_HOSTS} hosts, not {0}")]
    Hosts(usize),
    /// The hosts do not become a cluster.
    #[error("{host}: {what}: {reason}")]
    Cluster {
        /// The host that was asked.
        host: String,
        /// The command, or what was waited for.
        what: String,
        /// What it said.
        reason: String,
    },
    /// A host did not start.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// What a lab shall be; made by [`Lab::new`].
#[derive(Debug, Clone)]
pub struct LabSpec {
    name: Option<String>,
    hosts: usize,
    memory_mib: u32,
    cpus: u32,
    disks_mib: Vec<u64>,
    shared_disks_mib: Vec<u64>,
    state_disk_mib: Option<u64>,
    shared_dir: bool,
    witness: bool,
    programs: Vec<(PathBuf, String)>,
    files: Vec<(PathBuf, String)>,
    modules: Vec<String>,
    managed: bool,
    kernel_words: String,
    qemu_arguments: Vec<String>,
    accelerator: Accelerator,
}

impl LabSpec {
    /// The lab's name; tests leave it out and get one of their own.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How many hosts (1).
    #[must_use]
    pub fn hosts(mut self, count: usize) -> Self {
        self.hosts = count;
        self
    }

    /// Memory per host in MiB (1024).
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Processors per host (2).
    #[must_use]
    pub fn cpus(mut self, count: u32) -> Self {
        self.cpus = count;
        self
    }

    /// Gives every host one more disk of its own. Shared disks come after all of these.
    #[must_use]
    pub fn disk_mib(mut self, mib: u64) -> Self {
        self.disks_mib.push(mib);
        self
    }

    /// Adds a disk that all hosts see, like a shared LUN.
    #[must_use]
    pub fn shared_disk(mut self, mib: u64) -> Self {
        self.shared_disks_mib.push(mib);
        self
    }

    /// Gives every host a disk with a file system, mounted at [`STATE_DIR`] before its services start: what is there, the state of
    /// `marud` with it, survives a power cut. It comes after all other disks.
    #[must_use]
    pub fn state_disk_mib(mut self, mib: u64) -> Self {
        self.state_disk_mib = Some(mib);
        self
    }

    /// Gives all hosts one directory, mounted at [`SHARED_DIR`], like the shared volume of a cluster. It is [`Lab::shared_dir`] on this
    /// machine, and empty at first. Locks on its files are each host's own.
    #[must_use]
    pub fn shared_dir(mut self) -> Self {
        self.shared_dir = true;
        self
    }

    /// Has the last host be a [cluster](Lab::form_cluster)'s witness: it keeps the store, and runs no VMs.
    #[must_use]
    pub fn witness(mut self) -> Self {
        self.witness = true;
        self
    }

    /// Puts `etcd` and `etcdctl` into the hosts' `/bin`.
    ///
    /// # Errors
    /// When they cannot be fetched, or a library of theirs is not on this machine.
    pub fn etcd(mut self) -> Result<Self, FetchError> {
        let etcd = etcd()?;
        for (name, program) in etcd.programs {
            self = self.binary(program, format!("/bin/{name}"));
        }
        Ok(etcd.libraries.into_iter().fold(self, |spec, library| spec.binary(&library, library.display().to_string())))
    }

    /// Puts a program of this machine into the hosts.
    #[must_use]
    pub fn binary(mut self, local: impl Into<PathBuf>, path: impl Into<String>) -> Self {
        self.programs.push((local.into(), path.into()));
        self
    }

    /// Puts a file of this machine into the hosts.
    #[must_use]
    pub fn file(mut self, local: impl Into<PathBuf>, path: impl Into<String>) -> Self {
        self.files.push((local.into(), path.into()));
        self
    }

    /// Puts one more kernel module into the hosts, to be loaded by name.
    #[must_use]
    pub fn module(mut self, name: impl Into<String>) -> Self {
        self.modules.push(name.into());
        self
    }

    /// Has the hosts run `marud` as a service, with a volume `local`, and counts them as up when it answers. Maru's programs have to be among
    /// [their programs](LabSpec::binary).
    #[must_use]
    pub fn managed(mut self) -> Self {
        self.managed = true;
        self
    }

    /// Adds words to the kernel's command line.
    #[must_use]
    pub fn kernel_words(mut self, words: &str) -> Self {
        self.kernel_words = format!("{} {words}", self.kernel_words);
        self
    }

    /// Adds arguments to QEMU's.
    #[must_use]
    pub fn qemu_arguments<I: IntoIterator<Item: Into<String>>>(mut self, arguments: I) -> Self {
        self.qemu_arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Says what executes the hosts' processors instead of looking what this machine can do.
    #[must_use]
    pub fn accelerator(mut self, accelerator: Accelerator) -> Self {
        self.accelerator = accelerator;
        self
    }

    /// Starts all hosts side by side and waits until they are up.
    ///
    /// # Errors
    /// When something is missing on this machine or a host does not come up; then nothing is left running.
    pub fn start(self) -> Result<Lab, LabError> {
        self.start_with(&mut |_| {})
    }

    /// Like [`LabSpec::start`], telling `progress` what is done.
    ///
    /// # Errors
    /// As [`LabSpec::start`].
    pub fn start_with(self, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Lab, LabError> {
        let lab = self.prepare(progress)?;
        for host in &lab.hosts {
            host.switch_on()?;
            progress(Progress::PoweredOn { host: host.name() });
        }
        for host in &lab.hosts {
            let time = host.wait_ready()?;
            progress(Progress::Ready { host: host.name(), time });
        }
        Ok(lab)
    }

    /// Makes everything but gives no host power.
    ///
    /// # Errors
    /// When something is missing on this machine.
    pub fn prepare(self, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Lab, LabError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !(1..=MAX_HOSTS).contains(&self.hosts) {
            return Err(LabError::Hosts(self.hosts));
        }
        progress(Progress::Kernel);
        let kernel = kernel()?;
        progress(Progress::Appliance);
        let initramfs = self.appliance(&kernel)?;
        let name =
            self.name.clone().unwrap_or_else(|| format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let dirs = LabDirs::create(&name).map_err(|source| LabError::File { path: name.clone().into(), source })?;
        // The build directory may throw the image away while the lab still needs it for a restart.
        let own_initramfs = dirs.runtime.join("initramfs");
        fs::hard_link(&initramfs, &own_initramfs)
            .or_else(|_| fs::copy(&initramfs, &own_initramfs).map(|_| ()))
            .map_err(|source| LabError::File { path: own_initramfs.clone(), source })?;
        let shared: Result<Vec<DiskFile>, LabError> = (self.shared_disks_mib.iter().enumerate())
            .map(|(n, mib)| disk(dirs.state.join(format!("shared{n}.raw")), *mib, Sharing::Shared))
            .collect();
        let shared = shared?;
        let shared_dir = self.shared_dir.then(|| dirs.shared());
        if let Some(path) = &shared_dir {
            fs::create_dir(path).map_err(|source| LabError::File { path: path.clone(), source })?;
        }
        let cables: io::Result<Vec<Arc<Cable>>> = (0..CABLES).map(|n| Cable::new(n as u64).map(Arc::new)).collect();
        let cables = cables.map_err(|source| LabError::File { path: dirs.runtime.clone(), source })?;
        let mut hosts = Vec::new();
        for index in 0..self.hosts {
            let name = format!("h{}", index + 1);
            let state_dir = dirs.state.join(&name);
            fs::create_dir_all(&state_dir).map_err(|source| LabError::File { path: state_dir.clone(), source })?;
            let own: Result<Vec<DiskFile>, LabError> = (self.disks_mib.iter().enumerate())
                .map(|(n, mib)| disk(state_dir.join(format!("disk{n}.raw")), *mib, Sharing::Private))
                .collect();
            let mut disks = own?;
            disks.extend(shared.iter().cloned());
            if let Some(mib) = self.state_disk_mib {
                let made = disk(state_dir.join("state.raw"), mib, Sharing::Private)?;
                make_file_system(&made.path)?;
                disks.push(made);
            }
            let spec = HostSpec {
                name,
                index,
                memory_mib: self.memory_mib,
                cpus: self.cpus,
                disks,
                state_disk: self.state_disk_mib.is_some(),
                shared_dir: shared_dir.clone(),
                kernel: kernel.vmlinuz.clone(),
                initramfs: own_initramfs.clone(),
                runtime_dir: dirs.runtime.clone(),
                state_dir,
                accelerator: self.accelerator,
                managed: self.managed,
                kernel_words: self.kernel_words.clone(),
                qemu: std::env::var("MARU_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".into()),
                qemu_arguments: self.qemu_arguments.clone(),
            };
            hosts.push(Host::new(spec, cables.clone()));
        }
        Ok(Lab { name, hosts, cables, dirs, witness: self.witness })
    }

    fn appliance(&self, kernel: &Kernel) -> Result<PathBuf, LabError> {
        let init = program("maru-init").ok_or_else(|| LabError::Program("maru-init".into()))?;
        let modules: Vec<&str> = HOST_MODULES.iter().copied().chain(self.modules.iter().map(String::as_str)).collect();
        let mut image = Initramfs::new("host")
            .program(init, "/init")
            .symlink("/bin/maru-init", "/init")
            .symlink("/sbin", "bin")
            .busybox(busybox()?)
            .boot_modules(HOST_BOOT_MODULES)
            .modules(&modules);
        for (local, path) in &self.programs {
            image = image.program(local, path);
        }
        for (local, path) in &self.files {
            image = image.file(local, path);
        }
        Ok(image.build(kernel)?)
    }
}

/// What [`LabSpec::start_with`] has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Fetching the kernel, unless it is there.
    Kernel,
    /// Making the appliance, unless it is there.
    Appliance,
    /// A host has power.
    PoweredOn {
        /// Its name.
        host: &'a str,
    },
    /// A host is up.
    Ready {
        /// Its name.
        host: &'a str,
        /// Since power-on.
        time: Duration,
    },
}

/// Running hosts. Everything ends when this is dropped.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: QEMU, hubs, files.
    hosts: Vec<Host>,
    cables: Vec<Arc<Cable>>,
    name: String,
    dirs: LabDirs,
    witness: bool,
}

impl Lab {
    /// Describes a lab: one host with 2 processors and 1024 MiB of memory, until said otherwise.
    #[expect(clippy::new_ret_no_self, reason = "`Lab::new().hosts(3).start()` reads as what it does")]
    pub fn new() -> LabSpec {
        LabSpec {
            name: None,
            hosts: 1,
            memory_mib: 1024,
            cpus: 2,
            disks_mib: Vec::new(),
            shared_disks_mib: Vec::new(),
            state_disk_mib: None,
            shared_dir: false,
            witness: false,
            programs: Vec::new(),
            files: Vec::new(),
            modules: Vec::new(),
            managed: false,
            kernel_words: String::new(),
            qemu_arguments: Vec::new(),
            accelerator: Accelerator::detect(),
        }
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Host `index`, counted from 0.
    ///
    /// # Panics
    /// When there are not that many hosts.
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Those that run VMs: all but a [witness](LabSpec::witness).
    pub fn vm_hosts(&self) -> &[Host] {
        &self.hosts[..self.hosts.len() - usize::from(self.witness)]
    }

    /// Cable net `index`, 0 or 1.
    ///
    /// # Panics
    /// When there is no such cable net.
    pub fn cable(&self, index: usize) -> &Cable {
        &self.cables[index]
    }

    /// Where disks and logs are; the logs stay when the lab has ended.
    pub fn state_dir(&self) -> &Path {
        &self.dirs.state
    }

    /// What hosts have at [`SHARED_DIR`], if [it was asked for](LabSpec::shared_dir).
    pub fn shared_dir(&self) -> PathBuf {
        self.dirs.shared()
    }

    /// Where the sockets are.
    pub fn runtime_dir(&self) -> &Path {
        &self.dirs.runtime
    }
}

fn disk(path: PathBuf, mib: u64, sharing: Sharing) -> Result<DiskFile, LabError> {
    let made = File::create(&path).and_then(|file| file.set_len(mib << 20));
    made.map_err(|source| LabError::File { path: path.clone(), source })?;
    Ok(DiskFile { path, sharing })
}

fn make_file_system(path: &Path) -> Result<(), LabError> {
    let mut mke2fs = Command::new("mke2fs");
    // Tools of the administrator are not on everybody's PATH.
    mke2fs.args(["-q", "-F", "-t", "ext4"]).arg(path).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let reason = match mke2fs.output() {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    Err(LabError::FileSystem { path: path.to_owned(), reason })
}
