//! Why a monitor has ended.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use vmm::monitor::Ending as Told;

/// How much of a monitor's log is looked at.
const LOG_END: u64 = 4096;

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub reason: String,
    /// Whether that was not in order.
    pub failed: bool,
}

impl Ending {
    /// From what the monitor told last, its exit status (known if it was started by this `marud`), and its log.
    pub fn find(told: Option<&str>, status: Option<ExitStatus>, log: &Path) -> Ending {
        if let Some(reason) = told {
            let in_order = [Told::PoweredOff, Told::Stopped].iter().any(|ending| ending.to_string() == reason);
            return Ending { reason: reason.into(), failed: !in_order };
        }
        let last_words = last_line(log, "maru-vmm: ").map(|line| format!(": {line}")).unwrap_or_default();
        let how = match status {
            Some(status) if status.success() => return Ending { reason: "it ended in order".into(), failed: false },
            Some(status) => match (status.signal(), status.code()) {
                (Some(signal), _) => format!("its monitor was killed by signal {signal}"),
                (None, code) => format!("its monitor ended with status {}", code.unwrap_or(-1)),
            },
            None => "its monitor is gone".into(),
        };
        Ending { reason: how + &last_words, failed: true }
    }
}

/// What a program said last on standard error, without its name.
pub fn last_line(log: &Path, name: &str) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_END))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_END).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let said = text.lines().rev().find_map(|line| line.strip_prefix(name))?;
    // A monitor may have been taken over: nothing of it goes to a terminal as it is.
    Some(said.chars().filter(|character| !character.is_control()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_certain_reason_counts() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        std::fs::write(&log, "maru-vmm: disk /x: \u{1b}[2Jis locked\nnoise\n").unwrap();
        let find = |told, status: Option<i32>| Ending::find(told, status.map(ExitStatus::from_raw), &log);
        let ending = |reason: &str, failed| Ending { reason: reason.into(), failed };
        assert_eq!(find(Some("the guest powered off"), Some(0)), ending("the guest powered off", false));
        assert_eq!(find(Some("the guest caused a triple fault"), None), ending("the guest caused a triple fault", true));
        assert_eq!(find(None, Some(0)), ending("it ended in order", false));
        assert_eq!(find(None, Some(9)), ending("its monitor was killed by signal 9: disk /x: [2Jis locked", true));
        assert_eq!(find(None, Some(1 << 8)), ending("its monitor ended with status 1: disk /x: [2Jis locked", true));
        assert_eq!(find(None, None), ending("its monitor is gone: disk /x: [2Jis locked", true));
        assert_eq!(Ending::find(None, None, &directory.path().join("none")), ending("its monitor is gone", true));
    }
}
