//! What the trial does, in order: measure first, then prove, each proof in a fresh VM if the one before broke its VM.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;

use super::session::{Command, PING_ANSWER, Session, SetupError, StepError};
use super::{KvmStep, KvmTrial, SLOW_RATIO, layout};

/// Longest for one command. A healthy one takes microseconds, in an emulated host milliseconds.
const STEP_LIMIT: Duration = Duration::from_secs(2);
/// No new command begins after this long; leaves the parent's limit room for the last one.
const TOTAL_LIMIT: Duration = Duration::from_secs(15);
/// What one measurement should take.
const MEASURE_FOR: Duration = Duration::from_millis(10);

/// Kernel-mode proofs: the command, its name and its right answer.
const PROOFS: [(Command, &str, u64); 6] = [
    (Command::Tables, "descriptor tables and segments", 0x0008_0030),
    (Command::Control, "control registers, MSRs and swapgs", 0x2222_2222),
    (Command::Exceptions, "exceptions and page faults", 0x11111),
    (Command::Vector, "SSE and XSAVE in ring 0", 2 * 0x0123_4567_89ab_cdef + 32),
    (Command::User, "user mode and back", 1042),
    (Command::Timer, "interrupt controller, timer and halt", 1),
];

/// Runs the whole trial in this process, which must be the child's (see child.rs).
pub(super) fn carry_out(device: &Path) -> KvmTrial {
    let mut trial = KvmTrial::unavailable("not finished");
    let opened = CString::new(device.as_os_str().as_bytes())
        .map_err(|error| error.to_string())
        .and_then(|path| Kvm::new_with_path(path).map_err(|error| format!("{}: {error}", device.display())));
    let kvm = match opened {
        Ok(kvm) => kvm,
        Err(error) => return KvmTrial::unavailable(error),
    };
    let mut bench = Bench { kvm: &kvm, session: None, began: Instant::now() };

    match bench.session() {
        Ok(session) => trial.tsc_offset = Some(session.has_tsc_offset()),
        Err(Broken::Setup(error)) => return KvmTrial::unavailable(format!("no VM can be made: {error}")),
        Err(error) => {
            // Without its first instruction there is nothing to add, only time limits to sit out.
            step(&mut trial, "the first instruction", |_| Err(error));
            trial.judge();
            return trial;
        }
    }

    step(&mut trial, "a loop of plain instructions", |trial| measure_loop(&mut bench, trial));
    for (command, title, each) in [
        (Command::Port, "port reads", u64::from(PING_ANSWER)),
        (Command::Mmio, "device register accesses", u64::from(PING_ANSWER)),
        (Command::Cpuid, "CPUID", vendor_word(&kvm)),
    ] {
        step(&mut trial, title, |trial| {
            let took = measure_exits(&mut bench, command, each)?;
            match command {
                Command::Port => trial.port_exit_ns = Some(took),
                // One round is a store and a load: two exits.
                Command::Mmio => trial.mmio_exit_ns = Some(took / 2),
                _ => trial.cpuid_exit_ns = Some(took),
            }
            Ok(())
        });
    }
    for (command, title, right) in PROOFS {
        step(&mut trial, title, |_| bench.expect(command, 0, right).map(drop));
    }
    trial.judge();
    trial
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Step(#[from] StepError),
    #[error("wrong result {found:#x} where {right:#x} is right")]
    Wrong { found: u64, right: u64 },
    #[error("not tried: the trial's time was used up")]
    NoTime,
}

fn step(trial: &mut KvmTrial, title: &str, body: impl FnOnce(&mut KvmTrial) -> Result<(), Broken>) {
    let error = body(trial).err().map(|error| error.to_string());
    trial.steps.push(KvmStep { title: title.to_owned(), error });
}

/// Hands out a VM that runs, a new one after a failure.
struct Bench<'a> {
    kvm: &'a Kvm,
    session: Option<Session>,
    began: Instant,
}

impl Bench<'_> {
    fn session(&mut self) -> Result<&mut Session, Broken> {
        if self.began.elapsed() > TOTAL_LIMIT {
            return Err(Broken::NoTime);
        }
        let session = match self.session.take() {
            Some(session) => session,
            None => {
                let mut session = Session::new(self.kvm)?;
                session.start(STEP_LIMIT)?;
                session
            }
        };
        Ok(self.session.insert(session))
    }

    /// One command, whose result must be `right`; how long it took.
    fn expect(&mut self, command: Command, argument: u64, right: u64) -> Result<Duration, Broken> {
        let (found, took) = match self.session()?.command(command, argument, STEP_LIMIT) {
            Ok(done) => done,
            Err(error) => {
                self.session = None;
                return Err(error.into());
            }
        };
        if found == right { Ok(took) } else { Err(Broken::Wrong { found, right }) }
    }
}

/// The same loop natively and in the guest.
fn measure_loop(bench: &mut Bench<'_>, trial: &mut KvmTrial) -> Result<(), Broken> {
    let time_native = |rounds: u64| {
        let began = Instant::now();
        let value = std::hint::black_box(layout::native_loop(rounds));
        (value, began.elapsed())
    };
    // Few rounds first: they tell an emulator, which would take seconds for the many.
    let mut rounds = 4096u64;
    bench.expect(Command::Loop, 64, time_native(64).0)?;
    loop {
        let (right, _) = time_native(rounds);
        let native = (0..3).map(|_| time_native(rounds).1).min().unwrap_or_default();
        let mut guest = Duration::MAX;
        for _ in 0..3 {
            guest = guest.min(bench.expect(Command::Loop, rounds, right)?);
            if guest > STEP_LIMIT / 8 {
                break;
            }
        }
        let ratio = guest.as_secs_f64() / native.as_secs_f64().max(1e-9);
        trial.loop_rounds = Some(rounds);
        trial.loop_native_ns = Some(nanoseconds(native));
        trial.loop_guest_ns = Some(nanoseconds(guest));
        trial.loop_slowdown = Some((ratio * 100.0).round() / 100.0);
        // Long enough that entering and leaving the guest no longer counts, or hopeless.
        let hopeless = ratio > SLOW_RATIO && guest > MEASURE_FOR;
        if native >= MEASURE_FOR || hopeless || guest > STEP_LIMIT / 8 || rounds >= 1 << 32 {
            return Ok(());
        }
        rounds *= 4;
    }
}

/// Nanoseconds for one of the exits that `command` causes; each adds `each` to its result.
fn measure_exits(bench: &mut Bench<'_>, command: Command, each: u64) -> Result<u64, Broken> {
    let mut count = 16u64;
    loop {
        let took = bench.expect(command, count, each.wrapping_mul(count))?;
        if took >= MEASURE_FOR || count >= 1 << 20 {
            return Ok(nanoseconds(took) / count);
        }
        count *= 4;
    }
}

/// What CPUID leaf 0 gives in ebx.
fn vendor_word(kvm: &Kvm) -> u64 {
    let Ok(cpuid) = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES) else {
        return 0;
    };
    cpuid.as_slice().iter().find(|entry| entry.function == 0).map_or(0, |entry| u64::from(entry.ebx))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
