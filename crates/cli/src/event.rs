//! `maru event`: what happens.

use std::io::{self, Write};

use clap::{Args, Subcommand};

use crate::output::Output;
use crate::remote::{Connect, RemoteError, shown_time};

/// Subcommands of `maru event`.
#[derive(Debug, Subcommand)]
pub enum EventCommand {
    /// Follow events until interrupted
    Tail(TailArgs),
}

const AFTER_HELP: &str = "\
EXAMPLES
  What happens from now on:
    maru event tail

  All that is remembered, and then what happens, for programs: one JSON object a line
    maru event tail --after 0 -o json";

/// Where to begin.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct TailArgs {
    #[command(flatten)]
    connect: Connect,
    /// Begin behind the event with this number; 0 means with the first that is remembered
    #[arg(long, value_name = "NUMBER")]
    after: Option<u64>,
    /// How to show events
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Does it.
pub fn run(command: &EventCommand) -> Result<(), RemoteError> {
    let EventCommand::Tail(args) = command;
    let mut shown = Ok(());
    args.connect.client()?.follow(args.after, |event| {
        shown = show(args.output, &event);
        shown.is_ok()
    })?;
    shown
}

fn show(output: Output, event: &api::Event) -> Result<(), RemoteError> {
    let mut out = io::stdout().lock();
    let text = || {
        let vm = event.vm_name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
        format!("{} {} {vm}{}", event.id, shown_time(event.at), event.text)
    };
    out.write_all(output.render_next(event, text)?.as_bytes())?;
    Ok(out.flush()?)
}
