//! `maru vm checkpoint`.

use api::Checkpoint;
use api::client::Method;
use clap::{Args, Subcommand, ValueEnum};
use uuid::Uuid;

use super::manage::{ShowArgs, segment};
use crate::remote::{RemoteError, TaskArgs, fields, finish, show_one, shown_size, shown_time, spec_fields, table};

const AFTER_HELP: &str = "\
EXAMPLES
  Before an upgrade; and back, if it went wrong:
    maru vm checkpoint create web before-upgrade
    maru vm stop web --force
    maru vm checkpoint apply web before-upgrade
    maru vm start web

  All is well: what was kept for the way back is merged, while the VM runs.
    maru vm checkpoint delete web before-upgrade";

/// Subcommands of `maru vm checkpoint`.
#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub enum CheckpointCommand {
    /// Make a checkpoint of a VM that runs, is paused or is off
    Create(CreateArgs),
    /// List the checkpoints of a VM as a tree, with the space that each takes
    List {
        /// The VM, by its name or id
        vm: String,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Show a checkpoint
    Show {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Rename a checkpoint
    Rename {
        #[command(flatten)]
        which: Which,
        /// Its new name
        new_name: String,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Make a VM that is off what it was
    Apply(ApplyArgs),
    /// Delete a checkpoint; the VM stays as it is
    Delete {
        #[command(flatten)]
        which: Which,
        /// Delete all that were made on it, too
        #[arg(long)]
        subtree: bool,
        #[command(flatten)]
        task: TaskArgs,
    },
    /// Merge what deleted checkpoints left: after a deletion was cancelled, or could not do all while the VM ran
    Merge {
        /// The VM, by its name or id
        vm: String,
        #[command(flatten)]
        task: TaskArgs,
    },
}

/// A checkpoint.
#[derive(Debug, Args)]
pub struct Which {
    /// The VM, by its name or id
    vm: String,
    /// The checkpoint, by its name or id
    checkpoint: String,
}

/// `maru vm checkpoint create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The VM, by its name or id
    vm: String,
    /// The checkpoint's name (the time when left out)
    name: Option<String>,
    /// Freeze the guest's file systems instead of keeping its memory; needs the agent in the guest
    #[arg(long)]
    production: bool,
    /// What to do if the guest cannot freeze its file systems
    #[arg(long, value_enum, default_value_t, requires = "production")]
    otherwise: OtherwiseOption,
    #[command(flatten)]
    task: TaskArgs,
}

/// `--otherwise`.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum OtherwiseOption {
    /// Make no checkpoint
    #[default]
    Refuse,
    /// Make one all the same: disks as after a power cut
    CrashConsistent,
}

/// `maru vm checkpoint apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    #[command(flatten)]
    which: Which,
    /// Make a checkpoint of this name first, of what the VM is now
    #[arg(long, value_name = "NAME", conflicts_with = "discard")]
    before: Option<String>,
    /// What the VM is now is lost
    #[arg(long, required_unless_present = "before")]
    discard: bool,
    #[command(flatten)]
    task: TaskArgs,
}

impl Which {
    fn path(&self) -> String {
        format!("/vms/{}/checkpoints/{}", segment(&self.vm), segment(&self.checkpoint))
    }
}

/// Does it.
pub fn run(command: CheckpointCommand) -> Result<(), RemoteError> {
    match command {
        CheckpointCommand::Create(CreateArgs { vm, name, production, otherwise, task: args }) => {
            let wanted = api::NewCheckpoint {
                name,
                kind: if production { api::WantedCheckpoint::Production } else { api::WantedCheckpoint::Standard },
                otherwise: match otherwise {
                    OtherwiseOption::Refuse => api::Otherwise::Refuse,
                    OtherwiseOption::CrashConsistent => api::Otherwise::CrashConsistent,
                },
            };
            let client = args.connect.client()?;
            let task = client.call(Method::POST, &format!("/vms/{}/checkpoints", segment(&vm)), Some(&wanted))?;
            finish(&client, task, &args)
        }
        CheckpointCommand::List { vm, show } => {
            let list: Vec<Checkpoint> = show.connect.client()?.list(&format!("/vms/{}/checkpoints", segment(&vm)))?;
            show_one(show.output, &list, || tree(&list))
        }
        CheckpointCommand::Show { which, show } => {
            let checkpoint = show.connect.client()?.get(&which.path())?;
            show_one(show.output, &checkpoint, || described(&checkpoint))
        }
        CheckpointCommand::Rename { which, new_name, show } => {
            let wanted = api::RenameCheckpoint { name: new_name };
            let checkpoint: Checkpoint = show.connect.client()?.call(Method::PATCH, &which.path(), Some(&wanted))?;
            show_one(show.output, &checkpoint, || format!("{}: renamed\n", checkpoint.name))
        }
        CheckpointCommand::Apply(ApplyArgs { which, before, task, .. }) => {
            let before = before.map(|name| format!("?before={}", segment(&name))).unwrap_or_default();
            submit(Method::POST, &format!("{}/apply{before}", which.path()), &task)
        }
        CheckpointCommand::Delete { which, subtree, task } => {
            let subtree = if subtree { "?subtree=true" } else { "" };
            submit(Method::DELETE, &format!("{}{subtree}", which.path()), &task)
        }
        CheckpointCommand::Merge { vm, task } => submit(Method::POST, &format!("/vms/{}/checkpoints/merge", segment(&vm)), &task),
    }
}

fn submit(method: Method, path: &str, args: &TaskArgs) -> Result<(), RemoteError> {
    let client = args.connect.client()?;
    let task = client.call(method, path, None::<&()>)?;
    finish(&client, task, args)
}

fn kind(checkpoint: &Checkpoint) -> &'static str {
    match checkpoint.kind {
        api::CheckpointKind::Off => "off",
        api::CheckpointKind::Standard => "standard",
        api::CheckpointKind::Production => "production",
        api::CheckpointKind::CrashConsistent => "crash-consistent",
    }
}

/// Each below the one that it was made on.
fn tree(list: &[Checkpoint]) -> String {
    let mut rows = Vec::new();
    below(list, None, 0, &mut rows);
    table(["NAME", "KIND", "CREATED", "PAUSE", "DISKS", "MEMORY", "ID"], rows.into_iter())
}

fn below(list: &[Checkpoint], parent: Option<Uuid>, depth: usize, rows: &mut Vec<[String; 7]>) {
    for checkpoint in list.iter().filter(|it| it.parent == parent) {
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        let here = if checkpoint.current { " *" } else { "" };
        rows.push([
            format!("{}{}{here}", "  ".repeat(depth), checkpoint.name),
            kind(checkpoint).into(),
            shown_time(checkpoint.created_at),
            or_none(checkpoint.pause_ms.map(|time| format!("{time} ms"))),
            shown_size(checkpoint.disks.iter().map(|disk| disk.bytes).sum()),
            or_none(checkpoint.memory_bytes.map(shown_size)),
            checkpoint.id.to_string(),
        ]);
        below(list, Some(checkpoint.id), depth + 1, rows);
    }
}

fn described(checkpoint: &Checkpoint) -> String {
    let mut shown = vec![
        ("name", checkpoint.name.clone()),
        ("id", checkpoint.id.to_string()),
        ("kind", kind(checkpoint).into()),
        ("created", shown_time(checkpoint.created_at)),
    ];
    shown.extend(checkpoint.parent.map(|id| ("made on", id.to_string())));
    shown.extend(checkpoint.pause_ms.map(|time| ("pause", format!("{time} ms"))));
    shown.extend(
        checkpoint.disks.iter().map(|disk| ("frozen", format!("{}: {} ({})", disk.id, disk.file, shown_size(disk.bytes)))),
    );
    shown.extend(checkpoint.memory_bytes.map(|bytes| ("memory file", shown_size(bytes))));
    shown.extend(spec_fields(&checkpoint.spec));
    fields(&shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_shows_what_was_made_on_what_and_where_the_vm_is() {
        let spec: api::VmSpec =
            serde_json::from_str(r#"{"name":"web","memory_bytes":67108864,"boot":{"kernel":"local:vmlinuz"}}"#).unwrap();
        let one = |number: u128, parent: Option<u128>, current| Checkpoint {
            id: Uuid::from_u128(number),
            name: format!("c{number}"),
            created_at: time::OffsetDateTime::UNIX_EPOCH,
            parent: parent.map(Uuid::from_u128),
            current,
            kind: api::CheckpointKind::Standard,
            disks: Vec::new(),
            memory_bytes: Some(1 << 20),
            pause_ms: Some(12),
            spec: spec.clone(),
        };
        let text = tree(&[one(1, None, false), one(2, Some(1), false), one(3, Some(1), true), one(4, Some(2), false)]);
        let names: Vec<&str> = text.lines().skip(1).map(|line| line.split("  standard").next().unwrap().trim_end()).collect();
        assert_eq!(names, ["c1", "  c2", "    c4", "  c3 *"]);
        assert!(text.contains("12 ms") && text.contains("1 MiB"), "{text}");
    }
}
