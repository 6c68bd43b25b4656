//! The trial: does KVM on this machine really run a kernel?
//!
//! A `/dev/kvm` that opens proves little, so the trial makes a tiny VM and has it do what kernels do: in 64-bit mode and
//! ring 0, with its own page and descriptor tables and the in-kernel interrupt controller. It then measures what an exit
//! costs and how fast a loop runs compared with the very same bytes run natively.
//!
//! ```text
//! kvm_works() ── fork ──> child: one VM, command after command, each with an alarm ── result over a pipe ──> KvmTrial
//!      └─ waits up to TIME_LIMIT, then kills the child and says how far it came
//! ```
//!
//! The child is a process of its own because neither a guest that never returns, nor a kernel fault in an odd KVM, nor a
//! thread stuck inside `KVM_RUN` may take the caller along. Whether KVM is emulated is judged by right answers and by the
//! ratio of two loops on the same machine, never by absolute times: in a virtual host that QEMU emulates everything is slow,
//! and KVM there is good.

mod child;
mod layout;
mod plan;
mod session;

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest a trial takes before it is broken off.
pub const TIME_LIMIT: Duration = Duration::from_secs(20);

/// A guest loop that takes more than this many times its native time is being emulated. Hardware runs it at 1.0 to 1.1,
/// KVM inside an emulated host at 1 to 2, a busy machine may double that; an instruction emulator takes hundreds.
pub const SLOW_RATIO: f64 = 10.0;

/// What the trial found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvmOutcome {
    /// Kernel code runs, with the right results, at the processor's speed.
    Works,
    /// Kernel code gives the right results but runs in an emulator.
    SlowlyEmulated,
    /// A VM can be made, but some kernel code does not run or runs wrong.
    Fails,
    /// No VM can be made.
    Unavailable,
}

/// How one thing that the guest was told to do ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmStep {
    /// What was tried.
    pub title: String,
    /// Empty when it went right; otherwise what went wrong.
    pub error: Option<String>,
}

/// The trial's result: the outcome, why, and what was measured on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvmTrial {
    /// The outcome.
    pub outcome: KvmOutcome,
    /// One sentence: why that outcome.
    pub reason: String,
    /// Each thing tried, in order.
    pub steps: Vec<KvmStep>,
    /// Port read that user space answers, there and back, in nanoseconds.
    pub port_exit_ns: Option<u64>,
    /// Device register access that user space answers, in nanoseconds.
    pub mmio_exit_ns: Option<u64>,
    /// `CPUID`, answered inside KVM, in nanoseconds.
    pub cpuid_exit_ns: Option<u64>,
    /// Rounds of the loop that the next two numbers are for.
    pub loop_rounds: Option<u64>,
    /// The loop run natively, best of several, in nanoseconds.
    pub loop_native_ns: Option<u64>,
    /// The loop run by the guest in ring 0, best of several, in nanoseconds.
    pub loop_guest_ns: Option<u64>,
    /// Guest time divided by native time.
    pub loop_slowdown: Option<f64>,
    /// True when `KVM_VCPU_TSC_OFFSET` can be used; absent when no vCPU could be made.
    pub tsc_offset: Option<bool>,
    /// How long the trial took, in milliseconds.
    pub took_ms: u64,
}

impl KvmTrial {
    /// A trial that could not begin.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self {
            outcome: KvmOutcome::Unavailable,
            reason: reason.into(),
            steps: Vec::new(),
            port_exit_ns: None,
            mmio_exit_ns: None,
            cpuid_exit_ns: None,
            loop_rounds: None,
            loop_native_ns: None,
            loop_guest_ns: None,
            loop_slowdown: None,
            tsc_offset: None,
            took_ms: 0,
        }
    }

    /// True when a VM monitor (ours, or QEMU with `-accel kvm`) can use this machine's KVM.
    pub fn works(&self) -> bool {
        self.outcome == KvmOutcome::Works
    }

    /// Sets outcome and reason from the steps and the measurements.
    fn judge(&mut self) {
        let failed: Vec<&KvmStep> = self.steps.iter().filter(|step| step.error.is_some()).collect();
        let speed = match self.loop_slowdown {
            Some(ratio) if ratio > SLOW_RATIO => {
                format!("kernel code runs {} times slower than natively", round(ratio))
            }
            _ => String::new(),
        };
        (self.outcome, self.reason) = match failed.first() {
            _ if self.steps.is_empty() => (KvmOutcome::Unavailable, "nothing could be tried".into()),
            Some(first) => {
                let mut reason = format!(
                    "{} of {} kernel-mode checks failed, first {}: {}",
                    failed.len(),
                    self.steps.len(),
                    first.title,
                    first.error.as_deref().unwrap_or_default()
                );
                if !speed.is_empty() {
                    reason = format!("{reason}; {speed}");
                }
                (KvmOutcome::Fails, reason)
            }
            None if !speed.is_empty() => (KvmOutcome::SlowlyEmulated, speed),
            None if self.loop_slowdown.is_none() => (KvmOutcome::Fails, "its speed could not be measured".into()),
            None => (KvmOutcome::Works, "kernel-mode code runs correctly at the processor's speed".into()),
        };
    }
}

/// A ratio as people say it.
fn round(ratio: f64) -> String {
    if ratio < 10.0 { format!("{ratio:.1}") } else { format!("{ratio:.0}") }
}

/// Tries this machine's `/dev/kvm`. Takes well under a second where KVM works on hardware, never more than [`TIME_LIMIT`].
///
/// Safe to call from any thread; the calling thread blocks. Needs no privilege but access to `/dev/kvm`; without it the
/// outcome is [`KvmOutcome::Unavailable`].
pub fn kvm_works() -> KvmTrial {
    try_device(Path::new("/dev/kvm"))
}

fn try_device(device: &Path) -> KvmTrial {
    // Said by the parent: cheap, and a machine without KVM needs no child.
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open(device) {
        return KvmTrial::unavailable(format!("{}: {error}", device.display()));
    }
    let began = std::time::Instant::now();
    let mut trial =
        child::run(TIME_LIMIT, || plan::carry_out(device)).unwrap_or_else(|error| KvmTrial::unavailable(error.to_string()));
    trial.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    trial
}

#[cfg(test)]
mod tests;
