//! What this machine can do as a host: the content of `maru host check`.
//!
//! ```text
//!  /proc, /sys, /dev ──> Root ──┐
//!                               ├──> items (decide, ask nothing) ──> Report ──> text, JSON, exit code
//!  the kernel, KVM ──> Answers ─┘
//! ```
//!
//! **Life cycle.** [`run`] looks once and returns a [`Report`]; nothing stays behind. [`kvm_works`] is the part that the
//! lab needs alone: may QEMU use `-accel kvm` here?
//!
//! **I/O.** Files are read below [`Options::root`]. System calls and KVM are asked by [`Answers::ask`] only; it makes a tiny
//! VM in a process of its own and blocks for at most [`trial::TIME_LIMIT`]. Nothing on the machine is changed.
//!
//! **Errors.** There are none: what cannot be read or tried is itself a finding, with its cost and its fix.
//!
//! ```no_run
//! let report = check::run(&check::Options::default());
//! print!("{}", report.render_text(check::Color::Never, 100));
//! std::process::exit(report.exit_code());
//! ```

mod items;
mod probe;
mod render;
mod report;
mod root;
pub mod trial;

use std::path::PathBuf;

pub use probe::{Answer, Answers, KvmDevice};
pub use render::Color;
pub use report::{Group, Item, Report, Status, Verdict};
pub use trial::{KvmOutcome, KvmStep, KvmTrial, kvm_works};

/// Where to look.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory that stands for `/` when files are read.
    pub root: PathBuf,
    /// What the kernel says. `None` asks the running kernel; tests pass made-up answers that fit their root.
    pub answers: Option<Answers>,
}

impl Default for Options {
    /// This machine.
    fn default() -> Self {
        Self { root: PathBuf::from("/"), answers: None }
    }
}

/// Looks at the machine. Blocks for about a second, at most [`trial::TIME_LIMIT`] and a little.
pub fn run(options: &Options) -> Report {
    let answers = options.answers.clone().unwrap_or_else(Answers::ask);
    let (items, obstacle) = items::all(&root::Root::new(&options.root), &answers);
    Report::new(items, obstacle, answers.trial)
}
