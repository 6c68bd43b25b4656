//! What goes into an initramfs, and making it only when that has changed.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::{self, BufWriter};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::cpio::Archive;
use super::fetch::lock_build_dir;
use super::{BOOT_LIST, Kernel, MODULE_DIR, MODULE_LIST, ModuleError, ModuleTree, build_dir, canonical_name};

/// Raise when the layout of the archive changes in a way that its inputs do not show.
const LAYOUT: u32 = 2;
/// Made archives that are kept: one per combination in use, so a few tests can alternate without making theirs again.
const KEPT: usize = 12;

/// Why an initramfs could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// A program or file that goes into it cannot be read.
    #[error("cannot read {path}, which goes into the initramfs")]
    Input {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("cannot write the initramfs {path}")]
    Output {
        /// The archive.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A kernel module is missing or broken.
    #[error(transparent)]
    Module(#[from] ModuleError),
}

/// An initramfs to be made: add programs, modules and files, then [`build`](Initramfs::build).
#[derive(Debug, Clone, Default)]
pub struct Initramfs {
    name: String,
    files: Vec<(PathBuf, String, u32)>,
    contents: Vec<(String, Vec<u8>)>,
    links: Vec<(String, String)>,
    boot_modules: Vec<String>,
    modules: Vec<String>,
}

impl Initramfs {
    /// An empty initramfs; `name` starts the archive's file name.
    pub fn new(name: &str) -> Self {
        Initramfs { name: name.to_owned(), ..Initramfs::default() }
    }

    /// Adds the executable `host_path` as `path`. `/init` is what the kernel starts.
    #[must_use]
    pub fn program(mut self, host_path: impl Into<PathBuf>, path: impl Into<String>) -> Self {
        self.files.push((host_path.into(), path.into(), 0o755));
        self
    }

    /// Adds the file `host_path` as `path`.
    #[must_use]
    pub fn file(mut self, host_path: impl Into<PathBuf>, path: impl Into<String>) -> Self {
        self.files.push((host_path.into(), path.into(), 0o644));
        self
    }

    /// Adds a file with the given content.
    #[must_use]
    pub fn content(mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.contents.push((path.into(), content.into()));
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(mut self, path: impl Into<String>, target: impl Into<String>) -> Self {
        self.links.push((path.into(), target.into()));
        self
    }

    /// Adds busybox with links for the usual commands, among them `/bin/sh`.
    #[must_use]
    pub fn busybox(mut self, busybox: impl Into<PathBuf>) -> Self {
        const APPLETS: &str = "sh ash cat ls cp mv rm mkdir mount umount ps kill sleep echo dd ip ifconfig ping nc arping free \
            dmesg grep sed awk head tail wc sync reboot poweroff df du stat top vi od hexdump md5sum sha256sum blkid uname uptime \
            find touch ln chmod env test true false tar gzip lsmod insmod mknod setsid timeout hostname wget tee seq sort";
        self = self.program(busybox, "/bin/busybox");
        APPLETS.split_whitespace().fold(self, |image, applet| image.symlink(format!("/bin/{applet}"), "busybox"))
    }

    /// Adds kernel modules that the init loads at boot, with what they need.
    #[must_use]
    pub fn boot_modules(mut self, names: &[&str]) -> Self {
        self.boot_modules.extend(names.iter().map(|name| canonical_name(name)));
        self
    }

    /// Adds kernel modules that are loaded by name later, with what they need. Those this kernel lacks are left out.
    #[must_use]
    pub fn modules(mut self, names: &[&str]) -> Self {
        self.modules.extend(names.iter().map(|name| canonical_name(name)));
        self
    }

    /// Makes the archive for `kernel`, unless one with the same inputs is there, and gives its path.
    ///
    /// # Errors
    /// When an input is missing or the build directory cannot be written.
    pub fn build(&self, kernel: &Kernel) -> Result<PathBuf, InitramfsError> {
        let dir = build_dir().join("initramfs");
        let path = dir.join(format!("{}-{:016x}.cpio", self.name, self.fingerprint(kernel)?));
        let output = |source| InitramfsError::Output { path: path.clone(), source };
        fs::create_dir_all(&dir).map_err(output)?;
        let _lock = lock_build_dir().map_err(output)?;
        if path.is_file() {
            // The time of last use decides what is thrown away.
            File::options().append(true).open(&path).and_then(|f| f.set_modified(SystemTime::now())).map_err(output)?;
            return Ok(path);
        }
        let partial = dir.join(format!("{}.partial", self.name));
        self.write(kernel, &partial)?;
        fs::rename(&partial, &path).map_err(output)?;
        discard_old(&dir);
        Ok(path)
    }

    fn fingerprint(&self, kernel: &Kernel) -> Result<u64, InitramfsError> {
        let mut hasher = DefaultHasher::new();
        (LAYOUT, &kernel.modules, &self.boot_modules, &self.modules).hash(&mut hasher);
        (&self.contents, &self.links).hash(&mut hasher);
        for (host_path, path, mode) in &self.files {
            let metadata = fs::metadata(host_path).map_err(|source| InitramfsError::Input { path: host_path.clone(), source })?;
            (host_path, path, mode, metadata.len(), metadata.mtime(), metadata.mtime_nsec(), metadata.ino()).hash(&mut hasher);
        }
        Ok(hasher.finish())
    }

    fn write(&self, kernel: &Kernel, path: &Path) -> Result<(), InitramfsError> {
        let output = |source| InitramfsError::Output { path: path.to_owned(), source };
        let mut archive = Archive::new(BufWriter::new(File::create(path).map_err(output)?));
        for dir in ["/dev", "/proc", "/sys", "/run", "/tmp", "/etc", "/root", "/mnt"] {
            archive.directory(dir).map_err(output)?;
        }
        archive.character_device("/dev/console", 0o600, 5, 1).map_err(output)?;
        for (host_path, inside, mode) in &self.files {
            let content = fs::read(host_path).map_err(|source| InitramfsError::Input { path: host_path.clone(), source })?;
            archive.file(inside, *mode, &content).map_err(output)?;
        }
        for (inside, content) in &self.contents {
            archive.file(inside, 0o644, content).map_err(output)?;
        }
        for (inside, target) in &self.links {
            archive.symlink(inside, target).map_err(output)?;
        }
        self.write_modules(kernel, &mut archive, &output)?;
        archive.finish().map_err(output)?.into_inner().map_err(|error| output(error.into_error()))?;
        Ok(())
    }

    fn write_modules(
        &self,
        kernel: &Kernel,
        archive: &mut Archive<BufWriter<File>>,
        output: &impl Fn(io::Error) -> InitramfsError,
    ) -> Result<(), InitramfsError> {
        let tree = ModuleTree::open(&kernel.modules)?;
        let boot: Vec<&str> = self.boot_modules.iter().map(String::as_str).filter(|name| tree.has(name)).collect();
        let later = self.modules.iter().map(String::as_str).filter(|name| tree.has(name));
        let all: Vec<&str> = boot.iter().copied().chain(later).collect();
        let mut list = String::new();
        for module in tree.resolve(&all)? {
            list += &format!("{}: {}\n", module.name, module.needs.join(" "));
            archive.file(&format!("{MODULE_DIR}/{}.ko", module.name), 0o644, &module.content).map_err(output)?;
        }
        for name in all.iter().filter(|name| tree.is_builtin(name)) {
            list += &format!("@{}\n", canonical_name(name));
        }
        archive.file(MODULE_LIST, 0o644, list.as_bytes()).map_err(output)?;
        archive.file(BOOT_LIST, 0o644, (boot.join("\n") + "\n").as_bytes()).map_err(output)
    }
}

/// Old archives only waste space; failing to remove one is no reason to fail.
fn discard_old(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut archives: Vec<_> =
        entries.flatten().filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
    archives.sort_by(|a, b| b.cmp(a));
    for (_, path) in archives.into_iter().skip(KEPT) {
        let _ = fs::remove_file(path);
    }
}
