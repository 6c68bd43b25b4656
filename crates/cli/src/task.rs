//! `maru task`: long work.

use clap::{Args, Subcommand};

use crate::output::Output;
use crate::remote::{Connect, RemoteError, TaskArgs, fields, finish, show_one, shown_size, shown_time, table};

/// Subcommands of `maru task`.
#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// List tasks, the newest last
    List {
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Show a task, with what it did
    Show {
        /// Its id
        task: String,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Wait for a task's end; fails if the task does
    Wait {
        /// Its id
        task: String,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Cancel a task that has not begun, one that waits for a guest, or long work
    Cancel {
        /// Its id
        task: String,
        #[command(flatten)]
        show: ShowArgs,
    },
}

/// How it is shown.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    connect: Connect,
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Does it.
pub fn run(command: TaskCommand) -> Result<(), RemoteError> {
    match command {
        TaskCommand::List { show } => {
            let tasks: Vec<api::Task> = show.connect.client()?.list("/tasks")?;
            show_one(show.output, &tasks, || {
                let row = |task: &api::Task| {
                    let made = shown_time(task.created_at);
                    let id = task.id.to_string();
                    [
                        id,
                        task.operation.to_string(),
                        task.subject().to_owned(),
                        task.state.to_string(),
                        task.created_by.clone(),
                        made,
                    ]
                };
                table(["ID", "OPERATION", "OF", "STATE", "BY", "CREATED"], tasks.iter().map(row))
            })
        }
        TaskCommand::Show { task, show } => {
            let task: api::Task = show.connect.client()?.get(&format!("/tasks/{task}"))?;
            show_one(show.output, &task, || described(&task))
        }
        TaskCommand::Wait { task, show } => {
            let client = show.connect.client()?;
            let task = client.get(&format!("/tasks/{task}"))?;
            finish(&client, task, &TaskArgs { connect: show.connect, no_wait: false, output: show.output })
        }
        TaskCommand::Cancel { task, show } => {
            let task: api::Task = show.connect.client()?.post(&format!("/tasks/{task}/cancel?wait=10"))?;
            show_one(show.output, &task, || format!("{}: {} {}\n", task.subject(), task.operation, task.state))
        }
    }
}

fn described(task: &api::Task) -> String {
    let mut shown = vec![
        ("operation", task.operation.to_string()),
        ("of", task.subject().to_owned()),
        ("state", task.state.to_string()),
        ("created", format!("{}, by {}", shown_time(task.created_at), task.created_by)),
    ];
    shown.extend(task.progress.map(|progress| {
        let (done, total) = (shown_size(progress.done), shown_size(progress.total));
        ("progress", format!("{done} of {total}, {} %", (progress.done as f64 * 100.0 / progress.total.max(1) as f64) as u64))
    }));
    shown.extend(task.makes.map(|vm| ("makes", vm.to_string())));
    shown.extend(task.started_at.map(|at| ("started", shown_time(at))));
    shown.extend(task.ended_at.map(|at| ("ended", shown_time(at))));
    shown.extend(task.error.as_ref().map(|error| ("error", error.to_string())));
    shown.extend(task.log.iter().map(|line| ("log", format!("{} {}", shown_time(line.at), line.text))));
    fields(&shown)
}
