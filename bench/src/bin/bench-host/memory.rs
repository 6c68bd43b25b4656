//! A monitor's own memory, from `/proc/PID/smaps`.

use std::collections::BTreeMap;
use std::{fs, io};

use bench::protocol::OwnMemory;

/// Mappings that are reported by name.
const LARGEST: usize = 8;

/// The memory of a process but for the mapping that is `guest_bytes` long, as no other is.
pub fn own(pid: u32, guest_bytes: u64) -> io::Result<OwnMemory> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?.count() as u64;
    Ok(OwnMemory { threads, ..of_smaps(&smaps, guest_bytes) })
}

fn of_smaps(smaps: &str, guest_bytes: u64) -> OwnMemory {
    let mut own = OwnMemory::default();
    let mut names: BTreeMap<String, u64> = BTreeMap::new();
    let (mut name, mut is_guest) = (String::new(), false);
    for line in smaps.lines() {
        let Some((key, value)) =
            line.split_once(':').filter(|(key, _)| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
        else {
            // `7f0000000000-7f0000001000 r--p 00000000 00:02 123    /lib/name`
            name = line.split_whitespace().nth(5).unwrap_or("[anonymous]").to_owned();
            is_guest = length(line) == Some(guest_bytes);
            continue;
        };
        let kib: u64 = value.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0);
        match key {
            "Rss" if is_guest => own.guest_kib += kib,
            "Rss" => {
                own.rss_kib += kib;
                *names.entry(name.clone()).or_default() += kib;
            }
            "Private_Clean" | "Private_Dirty" if !is_guest => own.private_kib += kib,
            "Anonymous" if !is_guest => own.anonymous_kib += kib,
            _ => {}
        }
    }
    let mut largest: Vec<_> = names.into_iter().collect();
    largest.sort_by_key(|(_, kib)| std::cmp::Reverse(*kib));
    largest.truncate(LARGEST);
    OwnMemory { largest, ..own }
}

fn length(header: &str) -> Option<u64> {
    let (start, end) = header.split_whitespace().next()?.split_once('-')?;
    u64::from_str_radix(end, 16).ok()?.checked_sub(u64::from_str_radix(start, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_counted_apart_from_all_other_mappings() {
        let smaps = "\
7f0000000000-7f0004000000 rw-s 00000000 00:01 12 /memfd:guest-memory (deleted)
Rss:               65536 kB
Private_Dirty:     65536 kB
Anonymous:             0 kB
5500-5600 r-xp 00000000 00:02 7                          /bin/maru-vmm
Rss:                 800 kB
Private_Clean:       700 kB
Anonymous:             0 kB
7ffe-7fff rw-p 00000000 00:00 0
Rss:                  40 kB
Private_Dirty:        40 kB
Anonymous:            40 kB
VmFlags: rd wr mr
";
        let own = of_smaps(smaps, 64 << 20);
        assert_eq!((own.rss_kib, own.private_kib, own.anonymous_kib, own.guest_kib), (840, 740, 40, 65536));
        assert_eq!(own.largest[0], ("/bin/maru-vmm".to_owned(), 800));
    }
}
