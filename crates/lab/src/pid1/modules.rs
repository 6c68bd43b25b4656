//! Loads the kernel modules that the initramfs builder put in, with what they need.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use crate::appliance::{BOOT_LIST, MODULE_DIR, MODULE_LIST, canonical_name};

/// Loads every module of the boot list but the KVM for the other maker's processors. A module that fails does not keep
/// the others from loading. Gives what failed and why.
pub fn load_boot_modules() -> Vec<(String, io::Error)> {
    let list = match fs::read_to_string(BOOT_LIST) {
        Ok(list) => list,
        Err(error) => return vec![(BOOT_LIST.to_owned(), error)],
    };
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has_flag = |flag| processor.split_whitespace().any(|word| word == flag);
    let (amd, intel) = (has_flag("svm"), has_flag("vmx"));
    let fits = |name: &str| match name {
        "kvm_amd" => amd,
        "kvm_intel" => intel,
        _ => true,
    };
    let names = list.lines().filter(|name| !name.is_empty() && fits(name));
    names.filter_map(|name| load_module(name, "").err().map(|error| (name.to_owned(), error))).collect()
}

/// Loads the module `name` with `parameters`, after the modules it needs. A module that is loaded or built in already
/// is no error.
///
/// # Errors
/// When the initramfs does not hold it or the kernel refuses it.
pub fn load_module(name: &str, parameters: &str) -> io::Result<()> {
    let name = canonical_name(name);
    let list = fs::read_to_string(MODULE_LIST)?;
    let needs: BTreeMap<&str, Vec<&str>> = list
        .lines()
        .filter_map(|line| line.split_once(": ").or_else(|| line.strip_suffix(':').map(|name| (name, ""))))
        .map(|(name, needs)| (name, needs.split_whitespace().collect()))
        .collect();
    if !needs.contains_key(name.as_str()) {
        if list.lines().any(|line| line.strip_prefix('@') == Some(&name)) {
            return Ok(());
        }
        if fs::metadata(format!("/sys/module/{name}")).is_ok() {
            return Ok(());
        }
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("module {name} is not part of this image")));
    }
    // The list is in load order, so the wanted part of it is too.
    let mut wanted = BTreeSet::from([name.as_str()]);
    let mut pending = vec![name.as_str()];
    while let Some(module) = pending.pop() {
        for need in needs.get(module).into_iter().flatten() {
            if wanted.insert(need) {
                pending.push(need);
            }
        }
    }
    let mut order = list.lines().filter_map(|line| line.split(':').next()).filter(|module| wanted.contains(module));
    order.try_for_each(|module| insert(module, if module == name { parameters } else { "" }))
}

fn insert(name: &str, parameters: &str) -> io::Result<()> {
    // A loaded module has `initstate`; a built-in one's directory under /sys/module has not.
    if fs::metadata(format!("/sys/module/{name}/initstate")).is_ok() {
        return Ok(());
    }
    let file = File::open(format!("{MODULE_DIR}/{name}.ko"))?;
    let parameters = CString::new(parameters)?;
    // SAFETY: the descriptor and the string outlive the call; the kernel only reads the string.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        error => Err(io::Error::new(error.kind(), format!("{name}: {error}"))),
    }
}
