//! The same loads in several VMs, which run side by side and work in turn.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bench::console::Console;
use bench::protocol::{BlockEvent, BlockOrder, LINE, Load, LoadResult};

/// How long a VM may take to boot, or to end.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// How much longer than planned a load may take.
const LOAD_SLACK: Duration = Duration::from_secs(30);

/// A VM that takes loads; killed when dropped.
struct Guest {
    child: Child,
    input: ChildStdin,
    console: Console,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Guest {
    fn start(argv: &[String]) -> anyhow::Result<Guest> {
        let (program, arguments) = argv.split_first().context("no command line")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else { bail!("no pipes") };
        let console = Console::new(File::from(OwnedFd::from(output)));
        let mut guest = Guest { child, input, console };
        guest.console.wait_for_line(&format!("{LINE} ready"), 0, Instant::now() + BOOT_LIMIT)?;
        Ok(guest)
    }

    fn run(&mut self, load: &Load) -> anyhow::Result<LoadResult> {
        let from = self.console.bytes.len();
        writeln!(self.input, "{}", serde_json::to_string(load)?)?;
        let limit = Duration::from_millis(load.warm_ms + load.run_ms) + LOAD_SLACK;
        // The console echoes the order; the answer, good or bad, comes behind it.
        let answer = self.console.wait_for_line(&format!("{LINE} "), from, Instant::now() + limit)?;
        match answer.strip_prefix("result ") {
            Some(result) => Ok(serde_json::from_str(result)?),
            None => bail!("{}: the guest says: {answer}", load.name),
        }
    }

    fn end(mut self) -> anyhow::Result<()> {
        writeln!(self.input, "end")?;
        let deadline = Instant::now() + BOOT_LIMIT;
        while self.console.more(deadline)? > 0 {}
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the monitor ended with {status}; its console:\n{}", self.console.text());
        }
        Ok(())
    }
}

/// Starts all VMs, runs everything, prints results as they come.
pub fn run(order: &BlockOrder) -> anyhow::Result<()> {
    let mut guests = Vec::new();
    for (name, argv) in &order.contenders {
        guests.push(Guest::start(argv).with_context(|| name.clone())?);
        print(&BlockEvent::Ready(name.clone()))?;
    }
    let start = Instant::now();
    let mut longest = Duration::ZERO;
    for round in 0..order.rounds {
        let round_start = Instant::now();
        if round > 0 && start.elapsed() + longest > Duration::from_millis(order.limit_ms) {
            break;
        }
        for (number, load) in order.loads.iter().enumerate() {
            for turn in 0..guests.len() {
                let contender = (turn + round as usize + number) % guests.len();
                if order.sync {
                    // SAFETY: takes no arguments.
                    unsafe { libc::sync() };
                }
                let result = guests[contender].run(load).with_context(|| order.contenders[contender].0.clone())?;
                print(&BlockEvent::Result { round, load: number, contender, result })?;
            }
        }
        longest = longest.max(round_start.elapsed());
    }
    guests.into_iter().zip(&order.contenders).try_for_each(|(guest, (name, _))| guest.end().with_context(|| name.clone()))
}

fn print(event: &BlockEvent) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(event)?);
    Ok(())
}
