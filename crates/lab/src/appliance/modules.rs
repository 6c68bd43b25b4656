//! Kernel modules of an unpacked kernel package: which file holds a module and what must be loaded before it.
//!
//! A package that was only unpacked has no `modules.dep` (its post-install script would run `depmod`). Each module
//! names the modules it needs in its own `.modinfo` section, which is what `depmod` arrives at too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

/// Why a module could not be found or read.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// Neither a file nor built into the kernel.
    #[error("the kernel in {dir} has no module {name}")]
    Unknown {
        /// The module asked for.
        name: String,
        /// The module directory of the kernel.
        dir: PathBuf,
    },
    /// The file is not a module.
    #[error("{path} is not a kernel module: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The module is compressed and the tool failed.
    #[error("cannot unpack {path} with {tool}: {reason}")]
    Unpack {
        /// The file.
        path: PathBuf,
        /// The program that was called.
        tool: &'static str,
        /// What it said.
        reason: String,
    },
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A module with its content, unpacked.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name with `_` for `-`, as the kernel writes it.
    pub name: String,
    /// The ELF object.
    pub content: Vec<u8>,
    /// Modules that must be loaded before this one, directly needed ones only.
    pub needs: Vec<String>,
}

/// The modules of one kernel.
#[derive(Debug)]
pub struct ModuleTree {
    dir: PathBuf,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

/// `kvm-amd` and `kvm_amd` are the same module; the kernel reports the second.
pub fn canonical_name(name: &str) -> String {
    name.replace('-', "_")
}

fn name_of_file(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|suffix| file.strip_suffix(suffix))?;
    Some(canonical_name(stem))
}

impl ModuleTree {
    /// Lists the modules under `dir` (`.../lib/modules/VERSION`).
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn open(dir: &Path) -> Result<Self, ModuleError> {
        let mut files = BTreeMap::new();
        let mut pending = vec![dir.join("kernel")];
        while let Some(folder) = pending.pop() {
            let read = |source| ModuleError::Read { path: folder.clone(), source };
            for entry in fs::read_dir(&folder).map_err(read)? {
                let entry = entry.map_err(read)?;
                if entry.file_type().map_err(read)?.is_dir() {
                    pending.push(entry.path());
                } else if let Some(name) = name_of_file(&entry.path()) {
                    files.insert(name, entry.path());
                }
            }
        }
        let list = dir.join("modules.builtin");
        let text = fs::read_to_string(&list).map_err(|source| ModuleError::Read { path: list, source })?;
        let builtin = text.lines().filter_map(|line| name_of_file(Path::new(line))).collect();
        Ok(ModuleTree { dir: dir.to_owned(), files, builtin })
    }

    /// Whether the kernel has this, as a module or built in.
    pub fn has(&self, name: &str) -> bool {
        let name = canonical_name(name);
        self.files.contains_key(&name) || self.builtin.contains(&name)
    }

    /// Whether it is part of the kernel image.
    pub fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(&canonical_name(name))
    }

    /// The named modules and everything they need, each once, in an order in which they can be loaded. What is built
    /// into the kernel is left out.
    ///
    /// # Errors
    /// When the kernel has no such module or its file cannot be read.
    pub fn resolve(&self, names: &[&str]) -> Result<Vec<Module>, ModuleError> {
        let mut loaded = Vec::new();
        resolve_with(names, &mut loaded, &mut |name| self.load(name))?;
        Ok(loaded)
    }

    fn load(&self, name: &str) -> Result<Option<Module>, ModuleError> {
        if self.builtin.contains(name) {
            return Ok(None);
        }
        let path = self.files.get(name).ok_or_else(|| ModuleError::Unknown { name: name.to_owned(), dir: self.dir.clone() })?;
        let content = read_unpacked(path)?;
        let info = modinfo(&content).map_err(|reason| ModuleError::Malformed { path: path.clone(), reason })?;
        let needs = info
            .split(|&byte| byte == 0)
            .find_map(|field| field.strip_prefix(b"depends="))
            .map(|list| String::from_utf8_lossy(list).into_owned())
            .unwrap_or_default();
        let needs = needs.split(',').filter(|need| !need.is_empty()).map(canonical_name).collect();
        Ok(Some(Module { name: name.to_owned(), content, needs }))
    }
}

/// Depth-first, needs before the module. The kernel's symbol graph has no cycles; a name already seen is skipped, so
/// a forged cycle ends too.
fn resolve_with<E>(
    names: &[&str],
    done: &mut Vec<Module>,
    load: &mut impl FnMut(&str) -> Result<Option<Module>, E>,
) -> Result<(), E> {
    fn visit<E>(
        name: &str,
        seen: &mut BTreeSet<String>,
        done: &mut Vec<Module>,
        load: &mut impl FnMut(&str) -> Result<Option<Module>, E>,
    ) -> Result<(), E> {
        let name = canonical_name(name);
        if !seen.insert(name.clone()) {
            return Ok(());
        }
        if let Some(module) = load(&name)? {
            for need in &module.needs {
                visit(need, seen, done, load)?;
            }
            done.push(module);
        }
        Ok(())
    }
    let mut seen = done.iter().map(|module| module.name.clone()).collect();
    names.iter().try_for_each(|name| visit(name, &mut seen, done, load))
}

/// Debian 13 packs modules with xz, Ubuntu with zstd. They are unpacked here so that the boot does not have to.
fn read_unpacked(path: &Path) -> Result<Vec<u8>, ModuleError> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).map_err(|source| ModuleError::Read { path: path.to_owned(), source }),
    };
    let unpack = |reason| ModuleError::Unpack { path: path.to_owned(), tool, reason };
    let output = Command::new(tool).arg("-dc").arg(path).output().map_err(|error| unpack(error.to_string()))?;
    if !output.status.success() {
        return Err(unpack(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(output.stdout)
}

/// The `.modinfo` section of a 64-bit little-endian ELF object: `key=value` strings, each ended by a zero.
fn modinfo(elf: &[u8]) -> Result<&[u8], &'static str> {
    let bytes = |at: usize, len: usize| elf.get(at..at.checked_add(len)?);
    let number = |at: usize, len: usize| -> Option<usize> {
        let raw = bytes(at, len)?;
        let value = raw.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        usize::try_from(value).ok()
    };
    if bytes(0, 6) != Some(b"\x7fELF\x02\x01".as_slice()) {
        return Err("not a 64-bit ELF object");
    }
    let cut = "cut short";
    let table = number(0x28, 8).ok_or(cut)?;
    let (entry_size, count, names) = (number(0x3a, 2).ok_or(cut)?, number(0x3c, 2).ok_or(cut)?, number(0x3e, 2).ok_or(cut)?);
    let header = |n: usize| table.checked_add(n.checked_mul(entry_size)?);
    let field = |n: usize, at: usize, len: usize| number(header(n)?.checked_add(at)?, len);
    let name_table = field(names, 0x18, 8).ok_or(cut)?;
    for section in 0..count {
        let name_at = name_table.checked_add(field(section, 0, 4).ok_or(cut)?).ok_or(cut)?;
        if bytes(name_at, 9) == Some(b".modinfo\0".as_slice()) {
            let (offset, size) = (field(section, 0x18, 8).ok_or(cut)?, field(section, 0x20, 8).ok_or(cut)?);
            return bytes(offset, size).ok_or(cut);
        }
    }
    Err("it has no .modinfo section")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(graph: &[(&str, &[&str])], wanted: &[&str]) -> Result<Vec<String>, String> {
        let mut done = Vec::new();
        resolve_with(wanted, &mut done, &mut |name: &str| -> Result<Option<Module>, String> {
            if name == "builtin" {
                return Ok(None);
            }
            let (_, needs) = graph.iter().find(|node| node.0 == name).ok_or(format!("no {name}"))?;
            let needs = needs.iter().map(|&need| need.to_owned()).collect();
            Ok(Some(Module { name: name.to_owned(), content: Vec::new(), needs }))
        })?;
        Ok(done.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn needs_come_before_the_module_and_only_once() {
        let graph: &[(&str, &[&str])] =
            &[("kvm_amd", &["kvm", "ccp"]), ("kvm", &["irqbypass"]), ("irqbypass", &[]), ("ccp", &["builtin"])];
        assert_eq!(order(graph, &["kvm", "kvm-amd"]).unwrap(), ["irqbypass", "kvm", "ccp", "kvm_amd"]);
    }

    #[test]
    fn what_is_built_in_is_left_out_and_what_is_missing_is_an_error() {
        assert_eq!(order(&[], &["builtin"]).unwrap(), Vec::<String>::new());
        assert_eq!(order(&[], &["nothing"]).unwrap_err(), "no nothing");
    }

    #[test]
    fn a_cycle_ends() {
        assert_eq!(order(&[("a", &["b"]), ("b", &["a"])], &["a"]).unwrap(), ["b", "a"]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(mut elf in proptest::collection::vec(0u8..=255, 0..400), magic: bool) {
            if magic && elf.len() >= 6 {
                elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
            }
            let _ = modinfo(&elf);
        }
    }
}
