//! Looking from outside whether a process is confined.

use std::fs;
use std::io;

/// The threads of a process that are not confined, by name: those without a seccomp filter or without `no_new_privs`. For a running
/// confined program there is none.
pub fn unconfined_threads(pid: u32) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while we look.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        if (field("Seccomp"), field("NoNewPrivs")) != (Some("2"), Some("1")) {
            found.push(field("Name").unwrap_or_default().to_string());
        }
    }
    Ok(found)
}
