//! Talking to `marud`: which one, as whom, and how its answers are shown.

mod contexts;
mod error;
mod secret;
mod servers;
mod show;

pub use contexts::{Connect, ContextCommand, LOCAL_STATE, Local, context_names, run};
pub use error::RemoteError;
pub use secret::TokenArgs;
pub use show::{fields, guest_fields, show_one, shown_size, shown_time, spec_fields, table};

use api::Task;
use api::client::Client;
use clap::Args;
use indicatif::ProgressBar;

use crate::output::{Output, new_bar, print};

/// How a task is waited for.
#[derive(Debug, Args)]
pub struct TaskArgs {
    #[command(flatten)]
    pub connect: Connect,
    /// Do not wait for the end; print the task's id instead
    #[arg(long)]
    pub no_wait: bool,
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Waits for a task that was just made, if that is wanted, and shows what became of it.
pub fn finish(client: &Client, task: Task, args: &TaskArgs) -> Result<(), RemoteError> {
    let said = |task: &Task| match args.no_wait {
        true => format!("{}\n", task.id),
        false => format!("{}: {} {}\n", task.subject(), task.operation, task.state),
    };
    let text = |task: &Task| args.output.render(task, || said(task));
    if args.no_wait {
        return Ok(print(&text(&task)?)?);
    }
    let (mut told, mut bar) = (0, None);
    let task = client.wait(task, |task| look(task, &mut told, &mut bar));
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(print(&text(&task?)?)?)
}

/// Shows how far a task is, and what it waits for, as it goes on.
fn look(task: &Task, told: &mut usize, bar: &mut Option<ProgressBar>) {
    if let Some(progress) = task.progress {
        let bar = bar.get_or_insert_with(|| new_bar(progress.total));
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    }
    for line in &task.log[(*told).min(task.log.len())..] {
        let print = || eprintln!("{}", line.text);
        bar.as_ref().map_or_else(print, |bar| bar.suspend(print));
    }
    *told = task.log.len();
}
