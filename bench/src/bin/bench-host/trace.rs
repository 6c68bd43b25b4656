//! Where the time of a boot goes, from KVM's own trace events.
//!
//! Each entry to the guest and exit from it is recorded with its time and reason. The time from an exit to the next entry of
//! the same vCPU is what that exit cost: in KVM, in the monitor, or asleep.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use bench::protocol::Phases;

const TRACEFS: &str = "/sys/kernel/tracing";
const EVENTS: &[&str] = &["kvm_entry", "kvm_exit", "kvm_pio", "kvm_mmio"];
/// Of each processor: a boot has some ten thousand exits of some hundred bytes.
const BUFFER_KIB: u32 = 65536;
/// Reasons and addresses that are reported.
const REPORTED: usize = 16;

/// A trace that is being recorded.
pub struct Trace(());

impl Trace {
    /// Starts it.
    pub fn start() -> io::Result<Trace> {
        if !Path::new(TRACEFS).join("trace").exists() {
            // SAFETY: the strings are zero-terminated; the file system takes no data.
            let result = unsafe {
                libc::mount(c"tracefs".as_ptr(), c"/sys/kernel/tracing".as_ptr(), c"tracefs".as_ptr(), 0, std::ptr::null())
            };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        set("tracing_on", "0")?;
        set("trace_clock", "mono")?;
        set("buffer_size_kb", &BUFFER_KIB.to_string())?;
        set("trace", "")?;
        for event in EVENTS {
            set(&format!("events/kvm/{event}/enable"), "1")?;
        }
        set("tracing_on", "1")?;
        Ok(Trace(()))
    }

    /// Stops recording.
    pub fn stop(&self) -> io::Result<()> {
        set("tracing_on", "0")
    }

    /// Adds up what was recorded. `started_us` is when the process was started, on the monotonic clock.
    pub fn phases(self, started_us: f64) -> io::Result<Phases> {
        let lost = (0..64).map_while(|cpu| fs::read_to_string(format!("{TRACEFS}/per_cpu/cpu{cpu}/stats")).ok());
        let lost =
            lost.filter_map(|stats| stats.lines().find_map(|line| line.strip_prefix("overrun: ")?.parse::<u64>().ok())).sum();
        let mut sum = Sum::default();
        for line in BufReader::new(File::open(format!("{TRACEFS}/trace"))?).lines() {
            sum.add(&line?);
        }
        for event in EVENTS {
            set(&format!("events/kvm/{event}/enable"), "0")?;
        }
        set("trace", "")?;
        Ok(sum.phases(started_us, lost))
    }
}

fn set(file: &str, value: &str) -> io::Result<()> {
    let path = format!("{TRACEFS}/{file}");
    fs::write(&path, value).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
}

#[derive(Default)]
struct Vcpu {
    entered: Option<f64>,
    left: Option<(f64, String)>,
}

#[derive(Default)]
struct Sum {
    first_entry: Option<f64>,
    in_guest_us: f64,
    /// By thread: the vCPU's number is not in every event.
    vcpus: HashMap<String, Vcpu>,
    exits: HashMap<String, (u64, f64)>,
    accesses: HashMap<String, u64>,
}

impl Sum {
    /// `vcpu0-123  [000] d..1.  12.345678: kvm_exit: vcpu 0 reason io rip 0x..`
    fn add(&mut self, line: &str) {
        let Some((head, rest)) = line.split_once(": ") else { return };
        let Some((event, data)) = rest.split_once(": ") else { return };
        let Some(time) = head.split_whitespace().last().and_then(|text| text.parse::<f64>().ok()) else { return };
        let Some((thread, _)) = head.split_once(" [") else { return };
        let time_us = time * 1e6;
        let words: Vec<&str> = data.split_whitespace().collect();
        let after =
            |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1)).copied().unwrap_or("?");
        let vcpu = self.vcpus.entry(thread.trim().to_owned()).or_default();
        match event {
            "kvm_entry" => {
                self.first_entry.get_or_insert(time_us);
                if let Some((left, reason)) = vcpu.left.take() {
                    let sum = self.exits.entry(reason).or_default();
                    sum.0 += 1;
                    sum.1 += time_us - left;
                }
                vcpu.entered = Some(time_us);
            }
            "kvm_exit" => {
                if let Some(entered) = vcpu.entered.take() {
                    self.in_guest_us += time_us - entered;
                }
                vcpu.left = Some((time_us, after("reason").to_owned()));
            }
            // `pio_write at 0x3f8 size 1 count 1 val 0x0`
            "kvm_pio" => {
                let direction = words.first().copied().unwrap_or("?");
                *self.accesses.entry(format!("{direction} {}", after("at"))).or_default() += 1;
            }
            // `mmio write len 4 gpa 0xfee00000 val 0x0`
            "kvm_mmio" => {
                let direction = words.get(1).copied().unwrap_or("?");
                let address = u64::from_str_radix(after("gpa").trim_start_matches("0x"), 16).unwrap_or(0);
                *self.accesses.entry(format!("mmio_{direction} {:#x}", address & !0xfff)).or_default() += 1;
            }
            _ => {}
        }
    }

    fn phases(self, started_us: f64, lost: u64) -> Phases {
        let mut exits: Vec<_> = self.exits.into_iter().map(|(reason, (count, us))| (reason, count, us / 1e3)).collect();
        let is_halt = |reason: &str| reason.eq_ignore_ascii_case("hlt");
        let halted_ms = exits.iter().filter(|(reason, ..)| is_halt(reason)).map(|(.., ms)| ms).sum();
        exits.sort_by(|a, b| b.2.total_cmp(&a.2));
        let mut accesses: Vec<_> = self.accesses.into_iter().collect();
        accesses.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        exits.truncate(REPORTED);
        accesses.truncate(REPORTED);
        Phases {
            before_guest_ms: self.first_entry.map_or(0.0, |entry| (entry - started_us) / 1e3),
            in_guest_ms: self.in_guest_us / 1e3,
            halted_ms,
            exits,
            accesses,
            lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_costs_the_time_until_its_vcpu_goes_on() {
        let mut sum = Sum::default();
        for line in [
            "           vcpu0-9   [000] d..1.     1.000100: kvm_entry: vcpu 0, rip 0x100",
            "           vcpu0-9   [000] d..1.     1.000300: kvm_exit: vcpu 0 reason io rip 0x1 info1 0x0",
            "           vcpu0-9   [000] .....     1.000310: kvm_pio: pio_write at 0x3f8 size 1 count 1 val 0x0",
            "           vcpu1-10  [001] d..1.     1.000350: kvm_entry: vcpu 1, rip 0x100",
            "           vcpu0-9   [000] d..1.     1.000400: kvm_entry: vcpu 0, rip 0x102",
        ] {
            sum.add(line);
        }
        let phases = sum.phases(1e6, 0);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
        assert!(near(phases.before_guest_ms, 0.1) && near(phases.in_guest_ms, 0.2), "{phases:?}");
        assert!(phases.exits[0].0 == "io" && phases.exits[0].1 == 1 && near(phases.exits[0].2, 0.1), "{phases:?}");
        assert_eq!(phases.accesses, [("pio_write 0x3f8".to_owned(), 1)]);
    }
}
